#!/usr/bin/env python3
"""What telemetry costs a gateway: `--telemetry full` (the default) beside `minimal`, and full with every request in the access log.

    docs/bench/telemetry.py GATEWAY BENCH_STATE [--rounds 5] [--seconds 5] [--counts-only]

Instructions per request by callgrind, as docs/bench/instructions.py counts them, which do not depend on what else the machine does; then, with wrk
at full load, CPU time per request and memory afterwards, interleaved, medians with the spread behind them: for a quiet machine. GATEWAY and
BENCH_STATE: `cargo build --profile dist -p archipelago-gateway --bins --examples`. Needs valgrind, nginx (the backend) and wrk.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

import instructions

LEVELS = {
    "full": [],
    "minimal": ["--telemetry", "minimal"],
    "full, access log": ["--access-log", "/dev/null"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gateway", type=pathlib.Path)
    parser.add_argument("bench_state", type=pathlib.Path)
    parser.add_argument("--requests", type=int, default=2000, help="that are counted, of each kind (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of load, each time (default %(default)s)")
    parser.add_argument("--counts-only", action="store_true", help="instructions only: nothing that depends on the machine")
    options = parser.parse_args()
    needed = ["valgrind", "callgrind_control", "nginx"] + ([] if options.counts_only else ["wrk"])
    if missing := [tool for tool in needed if not shutil.which(tool)]:
        sys.exit(f"error: {', '.join(missing)} not found; install valgrind, nginx and wrk")
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        command = instructions.archipelago(work, options)
        with instructions.backend(work):
            print("| telemetry | instructions per request, 2 lines | 15 fields |\n| --- | --- | --- |")
            for level, flags in LEVELS.items():
                counts = [
                    instructions.counted(work, command + flags, request, options.requests)[0]
                    for request in instructions.REQUESTS.values()
                ]
                print(f"| {level} | {' | '.join(f'{count:,.0f}' for count in counts)} |", flush=True)
            if not options.counts_only:
                loaded(command, options)


def loaded(command, options):
    """CPU time per request, and resident memory, after a second of warming up."""
    seen = {level: [] for level in LEVELS}
    for _ in range(options.rounds):
        for level, flags in LEVELS.items():
            with instructions.running(command + flags) as process:
                instructions.connected(instructions.FRONT).close()
                load(1)
                before = cpu_seconds(process.pid)
                requests = load(options.seconds)
                seen[level].append(((cpu_seconds(process.pid) - before) * 1e6 / requests, resident_mb(process.pid)))
    print("\n| telemetry | CPU µs per request | memory, MB |\n| --- | --- | --- |")
    for level, runs in seen.items():
        cells = [f"{statistics.median(values):.2f} [{min(values):.2f}–{max(values):.2f}]" for values in zip(*runs)]
        print(f"| {level} | {' | '.join(cells)} |")


def load(seconds):
    """Requests that were answered."""
    url = f"http://127.0.0.1:{instructions.FRONT}/"
    ran = subprocess.run(["wrk", "-t", "1", "-c", "64", "-d", f"{seconds}s", url], check=True, capture_output=True, text=True)
    if failed := re.search(r"Non-2xx or 3xx responses: (\d+)", ran.stdout):
        sys.exit(f"error: {failed[0]}")
    return int(re.search(r"(\d+) requests in", ran.stdout)[1])


def cpu_seconds(pid):
    """User and system time of a process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid):
    """What it has of memory."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1000


if __name__ == "__main__":
    main()
