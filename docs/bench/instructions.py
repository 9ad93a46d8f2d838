#!/usr/bin/env python3
"""Instructions, instruction-cache misses and allocations per request of one gateway hop, beside HAProxy and nginx, counted by callgrind.

Unlike time, the counts do not depend on what else the machine does: two runs differ by a few per thousand, so a change of one
percent is visible. It sees user space only, and one connection at a time. Guards the hot path: compare before and after a change.

    docs/bench/instructions.py GATEWAY BENCH_STATE [--requests 2000] [--without haproxy,nginx]

GATEWAY and BENCH_STATE: `cargo build --profile dist -p archipelago-gateway --bins --examples`. Needs valgrind and nginx (the
backend); HAProxy for its column. Prints a table; exit code 1 when something did not answer.
"""

import argparse
import contextlib
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

BODY = b"x" * 100
BACKEND, FRONT = 18000, 18081
ALLOCATOR = re.compile(r"_?mi_|_?_?(libc_)?(malloc|calloc|realloc|free|memalign)|_int_|aligned_alloc|posix_memalign|_mid_memalign|tcache")
ALLOCATES = re.compile(r"mi_\w*(alloc|zalloc|calloc)|malloc|calloc|realloc|memalign|aligned_alloc|posix_memalign")
FIELDS = [
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"),
    ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Accept-Language", "en-US,en;q=0.9,de;q=0.8"),
    ("Cache-Control", "no-cache"),
    ("Cookie", "session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes; ab=17"),
    ("Referer", "https://shop.example.com/catalog?page=1"),
    ("X-Request-Id", "7f9c2ba4-e88f-4f1e-8d1a-0a7f0a5b1c2d"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("Sec-Fetch-Dest", "document"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Site", "same-origin"),
    ("X-Forwarded-For", "10.1.2.3"),
    ("Pragma", "no-cache"),
]
REQUESTS = {
    "2 lines": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "15 fields": "\r\n".join(
        ["GET /api/v1/items?page=2&sort=asc HTTP/1.1", "Host: 127.0.0.1", *(f"{n}: {v}" for n, v in FIELDS), "", ""]
    ).encode(),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gateway", type=pathlib.Path)
    parser.add_argument("bench_state", type=pathlib.Path)
    parser.add_argument("--requests", type=int, default=2000, help="that are counted, of each kind (default %(default)s)")
    parser.add_argument("--without", default="", help="peers to leave out, by commas")
    options = parser.parse_args()
    missing = [tool for tool in ("valgrind", "callgrind_control", "nginx") if not shutil.which(tool)]
    if missing:
        sys.exit(f"error: {', '.join(missing)} not found; install valgrind and nginx")
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        proxies = {"nginx": nginx(work), "haproxy": haproxy(work), "archipelago": archipelago(work, options)}
        left_out = set(options.without.split(",")) | {name for name in proxies if name == "haproxy" and not shutil.which(name)}
        with backend(work):
            columns = [f"{kind}: {what}" for kind in REQUESTS for what in ("instructions", "I1 misses", "allocations")]
            print(f"| proxy | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
            for name, command in proxies.items():
                if name not in left_out:
                    counts = [counted(work, command, request, options.requests) for request in REQUESTS.values()]
                    cells = [f"{n:,.0f} | {misses:,.0f} | {allocations:.1f}" for n, misses, allocations in counts]
                    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def nginx(work):
    config = work / "front.conf"
    config.write_text(
        f"worker_processes 1; daemon off; master_process off; pid {work}/front.pid; error_log /dev/null;"
        "events { worker_connections 1024; } http { access_log off;"
        f"upstream u {{ server 127.0.0.1:{BACKEND}; keepalive 64; }}"
        f"server {{ listen 127.0.0.1:{FRONT}; keepalive_requests 100000000; location / {{ proxy_pass http://u;"
        "proxy_http_version 1.1; proxy_set_header Connection ''; } } }"
    )
    return ["nginx", "-c", str(config)]


def haproxy(work):
    config = work / "haproxy.cfg"
    config.write_text(
        "global\n nbthread 1\ndefaults\n mode http\n timeout client 30s\n timeout server 30s\n timeout connect 5s\n"
        f"frontend f\n bind 127.0.0.1:{FRONT}\n default_backend b\nbackend b\n http-reuse always\n server s 127.0.0.1:{BACKEND}\n"
    )
    return ["haproxy", "-db", "-f", str(config)]


def archipelago(work, options):
    state = work / "state"
    addresses = [f"127.0.0.1:{port}" for port in (BACKEND, 18110, 18111)]
    subprocess.run([options.bench_state, state, *addresses], check=True)
    flags = {"http": FRONT, "tunnel": 18112, "dns": 18113, "health": 18114, "metrics": 18115, "tcp-base": 18200}
    command = [str(options.gateway), "--cluster", "front", "--name", "gw-1", "--workers", "1", "--state-dir", str(state / "front")]
    return command + [part for flag, port in flags.items() for part in (f"--{flag}", f"127.0.0.1:{port}")]


@contextlib.contextmanager
def backend(work):
    config = work / "backend.conf"
    config.write_text(
        f"worker_processes 1; daemon off; master_process off; pid {work}/backend.pid; error_log /dev/null;"
        "events { worker_connections 1024; } http { access_log off; keepalive_requests 100000000;"
        f"server {{ listen 127.0.0.1:{BACKEND}; location / {{ return 200 '{BODY.decode()}'; }} }} }}"
    )
    with running(["nginx", "-c", str(config)]):
        connected(BACKEND).close()
        yield


def counted(work, command, request, requests):
    """Instructions, misses of a cache of 32 KiB, and allocations per request, those before the count begins left out."""
    out = work / "callgrind"
    for old in work.glob("callgrind*"):
        old.unlink()
    valgrind = ["valgrind", "--tool=callgrind", "--cache-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=1048576,16,64"]
    with running([*valgrind, f"--callgrind-out-file={out}", *command]) as process:
        stream = connected(FRONT)
        # Connections are made and buffers have grown.
        ask(stream, request, 200)
        control(process, "-z")
        ask(stream, request, requests)
        control(process, "-d")
        text = pathlib.Path(f"{out}.1").read_text(errors="replace")
    events, totals = (re.search(rf"^{line}: (.*)$", text, re.M) for line in ("events", "totals"))
    if not events or not totals:
        sys.exit("error: callgrind wrote no totals")
    total = dict(zip(events[1].split(), map(int, totals[1].split())))
    return total["Ir"] / requests, total["I1mr"] / requests, allocations(text) / requests


def allocations(text):
    """Calls of an allocator by what is no part of one."""
    names, caller, callee, calls = {}, None, None, 0
    for line in text.splitlines():
        if named := re.match(r"(c?)fn=\((\d+)\)(?: (.*))?", line):
            if named[3]:
                names[named[2]] = named[3].strip()
            if named[1]:
                callee = named[2]
            else:
                caller = named[2]
        elif (called := re.match(r"calls=(\d+)", line)) and ALLOCATES.match(names[callee]) and not ALLOCATOR.match(names[caller]):
            calls += int(called[1])
    return calls


def control(process, flag):
    subprocess.run(["callgrind_control", flag, str(process.pid)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ask(stream, request, times):
    for _ in range(times):
        stream.sendall(request)
        answer = b""
        while not answer.endswith(BODY):
            piece = stream.recv(65536)
            if not piece:
                sys.exit(f"error: the connection ended; last answer: {answer!r}")
            answer += piece
        if not answer.startswith(b"HTTP/1.1 200 "):
            sys.exit(f"error: {answer!r}")


def connected(port):
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"error: nobody listens on port {port}: {error}")
            time.sleep(0.1)


@contextlib.contextmanager
def running(command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


if __name__ == "__main__":
    main()
