#!/usr/bin/env python3
"""What others make of the corpus: Node (llhttp), nginx and HAProxy beside the verdicts of ours and hyper's that `cargo test` checks.

    gateway/http/differential/run.py > docs/http-readers.md

nginx and HAProxy stand between a raw client and a raw backend; a form of a request is what the client sends and the verdict is what
reaches the backend; a form of a response is what the backend sends and the verdict is what reaches the client. Who is not installed has no
column. Every reader gets QUIET seconds in which nothing happens before its verdict is taken.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
QUIET = float(os.environ.get("QUIET", "0.5"))
ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}


def forms(name):
    with open(os.path.join(HERE, "..", "corpus", name)) as file:
        for block in file.read().split("\n\n"):
            lines = [line for line in block.splitlines() if line and not line.startswith("#")]
            if lines:
                form = {"name": lines[0], "to": "GET", "bytes": b""}
                for line in lines[1:]:
                    key, _, value = line.partition(" ")
                    form[key] = form["bytes"] + unescape(value) if key == "bytes" else value
                yield form


def unescape(text):
    return re.sub(
        rb"\\(x[0-9a-f]{2}|.)",
        lambda match: bytes.fromhex(match[1][1:].decode()) if match[1].startswith(b"x") else ESCAPES[match[1].decode()],
        text.encode(),
    )


def escape(raw):
    """As `escape_ascii` of Rust."""
    special = {9: "\\t", 10: "\\n", 13: "\\r", 34: '\\"', 39: "\\'", 92: "\\\\"}
    return "".join(special.get(b) or (chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in raw)


class Messages:
    """A plain reader of well-formed messages off a socket: what a proxy writes is taken at its word."""

    def __init__(self, sock):
        self.sock, self.buffer, self.ended = sock, b"", False

    def more(self):
        try:
            piece = self.sock.recv(65536)
        except TimeoutError:
            raise
        except OSError:
            piece = b""
        self.ended |= not piece
        self.buffer += piece
        return bool(piece)

    def upto(self, mark):
        while mark not in self.buffer:
            if not self.more():
                return None
        head, _, self.buffer = self.buffer.partition(mark)
        return head

    def exactly(self, length):
        while len(self.buffer) < length:
            if not self.more():
                return None
        piece, self.buffer = self.buffer[:length], self.buffer[length:]
        return piece

    def head(self):
        head = self.upto(b"\r\n\r\n")
        if head is None:
            return None
        first, *lines = head.split(b"\r\n")
        return first, {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}

    def body(self, fields, until_close):
        """Its length, or None when it is cut."""
        if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
            length = 0
            while True:
                size = self.upto(b"\r\n")
                if size is None:
                    return None
                size = int(size.split(b";")[0], 16)
                if size == 0:
                    while (line := self.upto(b"\r\n")) != b"":
                        if line is None:
                            return None
                    return length
                if self.exactly(size + 2) is None:
                    return None
                length += size
        if b"content-length" in fields:
            length = int(fields[b"content-length"])
            return length if self.exactly(length) is not None else None
        if until_close:
            while self.more():
                pass
            return len(self.buffer)
        return 0


class Backend:
    """Behind a proxy: notes the requests that come; answers 200, or with `answer` and the end of the connection."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.seen, self.answer = [], None
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        messages = Messages(sock)
        try:
            while head := messages.head():
                method, path, _ = (head[0].split(b" ") + [b"", b""])[:3]
                length = messages.body(head[1], until_close=False)
                self.seen.append(f"{method.decode()} {escape(path)} {'bad' if length is None else length}")
                if self.answer is not None:
                    sock.sendall(self.answer)
                    break
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (OSError, ValueError):
            pass
        sock.close()


def send(port, raw):
    """Sends bytes and reads until nothing more comes; gives what came."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(QUIET)
        came = b""
        try:
            sock.sendall(raw)
            while piece := sock.recv(65536):
                came += piece
        except OSError:
            pass
        return came


def refusal(came):
    """The status of the last answer, unless it is 200 or interim."""
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", came)]
    return [f"refuses {statuses[-1]}"] if statuses and statuses[-1] >= 300 else []


class Proxy:
    def __init__(self, folder, name, version, command, config):
        self.name, self.backend = f"{name} {version}", Backend()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        path = os.path.join(folder, name + ".conf")
        with open(path, "w") as file:
            file.write(config.format(port=self.port, backend=self.backend.port, folder=folder))
        self.process = subprocess.Popen(
            [part.format(path=path, folder=folder) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    sys.exit(f"{name} does not listen; try: {' '.join(self.process.args)}")
                time.sleep(0.05)

    def request(self, form):
        self.backend.seen, self.backend.answer = [], None
        came = send(self.port, form["bytes"])
        # A body that a proxy broke off is known a moment after its connection is.
        time.sleep(QUIET / 5)
        return " + ".join(self.backend.seen + refusal(came)) or "waits"

    def response(self, form):
        self.backend.answer = form["bytes"]
        target = "a:80" if form["to"] == "CONNECT" else "/"
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.settimeout(QUIET * 4)
            sock.sendall(f"{form['to']} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            messages, events = Messages(sock), []
            try:
                while head := messages.head():
                    status = int(head[0].split(b" ")[1])
                    if status // 100 == 1 and status != 101:
                        events.append(str(status))
                        continue
                    if status in (400, 405, 501, 502):
                        return " + ".join(events + [f"refuses {status}"])
                    none = status in (101, 204, 304) or form["to"] == "HEAD" or form["to"] == "CONNECT" and status < 300
                    length = 0 if none else messages.body(head[1], until_close=True)
                    return " + ".join(events + [f"{status} {'bad' if length is None else length}"])
            except TimeoutError:
                return " + ".join(events + ["waits"])
            except ValueError:
                return " + ".join(events + ["passes garbage on"])
            return " + ".join(events + ["refuses"])


class Node:
    def __init__(self):
        self.name = "Node " + subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip().lstrip("v")
        self.process = subprocess.Popen(
            ["node", os.path.join(HERE, "node.js")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = json.loads(self.process.stdout.readline())["port"]
        self.events = []
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def request(self, form):
        self.events.clear()
        came = send(self.port, form["bytes"])
        time.sleep(QUIET / 5)
        seen = [re.sub(r" (\S+) ", lambda m: f" {escape(m[1].encode('latin-1'))} ", event["request"], count=1) for event in self.events]
        return " + ".join(seen + refusal(came)) or "waits"

    def response(self, form):
        self.events.clear()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(5)
            order = {"port": listener.getsockname()[1], "method": form["to"]}
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(5)
                Messages(sock).head()
                sock.sendall(form["bytes"])
                sock.shutdown(socket.SHUT_WR)
                deadline = time.monotonic() + 5
                while not self.events and time.monotonic() < deadline:
                    time.sleep(0.01)
        return self.events[0]["response"] if self.events else "waits"


NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log /dev/null;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{backend}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_next_upstream off; }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 10s
  timeout http-request 10s
  retries 0
frontend in
  bind 127.0.0.1:{port}
  default_backend out
backend out
  server one 127.0.0.1:{backend}
"""


def version(command):
    out = subprocess.run(command, capture_output=True, text=True)
    return re.search(r"\d+\.\d+\.\d+", out.stdout + out.stderr)[0]


def readers(folder):
    if shutil.which("node"):
        yield Node()
    if shutil.which("nginx"):
        yield Proxy(folder, "nginx", version(["nginx", "-v"]), ["nginx", "-p", "{folder}", "-c", "{path}"], NGINX)
    if shutil.which("haproxy"):
        yield Proxy(folder, "HAProxy", version(["haproxy", "-v"]), ["haproxy", "-f", "{path}"], HAPROXY)


def cell(verdict, ours, kind):
    """`=` for the same as ours; the words of a reason are ours alone."""
    plain = re.sub(r"(refuses(?: \d+)?|bad) .*", r"\1", ours)
    same = verdict == plain or kind == "response" and verdict.startswith("refuses") and plain.startswith("refuses")
    # A proxy that reads a body before it passes it on refuses what others break off, with or without a 400.
    broken = plain.endswith(" bad") and verdict in (plain + " + refuses 400", "refuses 400", "refuses 502", "refuses")
    return "=" if same or broken else code(verdict)


def code(verdict):
    text = (verdict or "nothing").replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def table(name, kind, others):
    columns = [[] for _ in others]

    def judge(reader, column):
        for form in forms(name):
            column.append(getattr(reader, kind)(form))

    threads = [threading.Thread(target=judge, args=pair) for pair in zip(others, columns)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("| form | right | ours | hyper |", *(f" {reader.name} |" for reader in others), sep="")
    print("| --- | --- | --- | --- |", *(" --- |" for _ in others), sep="")
    for at, form in enumerate(forms(name)):
        cells = [cell(verdict, form["ours"], kind) for verdict in [form["hyper"]] + [column[at] for column in columns]]
        print(f"| {form['name']} | {form['why']} | {code(form['ours'])} |", *(f" {text} |" for text in cells), sep="")


def main():
    with tempfile.TemporaryDirectory() as folder:
        others = list(readers(folder))
        try:
            print(INTRODUCTION.format(names=", ".join(reader.name for reader in others)))
            print("## Requests\n")
            table("requests.txt", "request", others)
            print("\n## Responses\n")
            table("responses.txt", "response", others)
        finally:
            for reader in others:
                reader.process.terminate()
                reader.process.wait()


INTRODUCTION = """# What readers make of ambiguous messages

Made by `gateway/http/differential/run.py` with {names}. The bytes of each form are in `gateway/http/corpus/`; our verdict and hyper's are checked by
`cargo test -p archipelago-http`, the others are as seen on the day. nginx and HAProxy pass messages on: theirs is what the other side of them got.

A request is `METHOD path length-of-its-body`, one after the other with `+` between; a response is `status length`; `bad` for a length: broken off. `=` is the same
as ours, also where a body is broken off with or without a 400. hyper's client does not show interim responses here. `waits`: no verdict while the connection stays open.
"""

if __name__ == "__main__":
    main()
