#!/usr/bin/env python3
"""Cluster kill, silent cut and switch under load, through a whole federation of `meshctl up` (docs/benchmarks.md).

Each scenario: GETs at a fixed rate enter at one cluster, whose traffic a switch has sent to another; at second AT that one is
killed (every process of it, SIGKILL), or every tunnel packet to and from it is dropped in silence, or the traffic is switched to a
third one. One JSON line per scenario goes to RESULTS.

Environment: MESHCTL and CHAOS (binaries, required), BASE_PORT=23000, RATE=500, DURATION=20, AT=3, REPS=3, RESULTS (default
standard output), SCENARIOS=switch,kill,cut,cost, LOAD_NICE=0 (niceness of everything started here).
"""
import json, os, shutil, subprocess, sys, tempfile, threading, time

MESHCTL, CHAOS = os.environ["MESHCTL"], os.environ["CHAOS"]
BASE = os.environ.get("BASE_PORT", "23000")
RATE, DURATION, AT = (float(os.environ.get(k, d)) for k, d in (("RATE", "500"), ("DURATION", "20"), ("AT", "3")))
REPS = int(os.environ.get("REPS", "3"))
SCENARIOS = os.environ.get("SCENARIOS", "switch,kill,cut,cost").split(",")
SERVICE, HOST, ENTRY, SERVED, OTHER = "shop/checkout", "checkout.shop", "frankfurt", "paris", "tokyo"
TICKS = os.sysconf("SC_CLK_TCK")
os.nice(int(os.environ.get("LOAD_NICE", "0")))


def mesh(state, *arguments, parse=False):
    command = [MESHCTL, "--state", state, *arguments] + (["-o", "json"] if parse else [])
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout) if parse else done.stdout


def cpu_total():
    fields = [int(x) for x in open("/proc/stat").readline().split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / TICKS


def cpu_of(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def entry_url(state):
    for line in mesh(state, "status").splitlines():
        columns = line.split()
        if columns and columns[0] == f"{ENTRY}/gw-1":
            return next(c for c in columns if c.startswith("http://")) + "/"
    raise RuntimeError(f"no gateway of {ENTRY} in the status")


def processes(state):
    """name -> pid, from the last table of `status`."""
    rows, inside = {}, False
    for line in mesh(state, "status").splitlines():
        columns = line.split()
        if columns[:3] == ["PROCESS", "ROLE", "PID"]:
            inside = True
        elif inside and len(columns) >= 4 and columns[2].isdigit():
            rows[columns[0]] = int(columns[2])
    return rows


def scenario(name, state, url):
    mesh(state, "switch", SERVICE, "--to", SERVED)
    time.sleep(1)
    event, answer = {}, {}

    def act():
        time.sleep(AT)
        event["at"] = time.time()
        if name == "switch":
            answer["meshctl"] = mesh(state, "switch", SERVICE, "--to", OTHER).strip()
        elif name in ("kill", "cut"):
            mesh(state, "drill", name, SERVED, "--for", "20s")
        event["done"] = time.time()

    before, processes_before = cpu_total(), {p: cpu_of(i) for p, i in processes(state).items()}
    actor = threading.Thread(target=act)
    load = subprocess.Popen([CHAOS, "load", url, "--host", HOST, "--rate", f"{RATE:g}", "--duration", f"{DURATION:g}s",
                             "--timeout", "5s", "-q", "-o", "json"], stdout=subprocess.PIPE, text=True)
    actor.start()
    report = json.loads(load.communicate(timeout=DURATION + 60)[0])
    actor.join()
    busy = (cpu_total() - before) / DURATION
    own = {p: cpu_of(i) - processes_before[p] for p, i in processes(state).items()
           if p in processes_before and os.path.exists(f"/proc/{i}")} if name == "cost" else {}
    second = int(event["at"] - report["startedUnixMillis"] / 1e3)
    timeline = {row["second"]: row for row in report["timeline"]}
    row = {"exp": "federation", "scenario": name, "sent": report["sent"], "failed": report["failed"],
           "failures": {k: v for k, v in report["failures"].items() if v}, "by_cluster": report["byCluster"],
           "event_second": second, "event_took_ms": round((event["done"] - event["at"]) * 1e3, 1),
           "p50_ms": report["latencyMicros"]["p50"] / 1e3, "p99_ms": report["latencyMicros"]["p99"] / 1e3,
           "max_ms": report["latencyMicros"]["max"] / 1e3,
           "seconds": [{k: timeline[s].get(k) for k in ("second", "failed", "p50Micros", "p99Micros", "maxMicros", "byCluster")}
                       for s in range(max(0, second - 1), second + 3) if s in timeline],
           "p99_before_ms": max((timeline[s]["p99Micros"] for s in range(1, second) if s in timeline), default=0) / 1e3,
           "lag_p99_ms": report["generator"]["lagP99Micros"] / 1e3, "cores_busy": round(busy, 2), **answer}
    if own:
        gateways = {p: round(c / report["sent"] * 1e6, 1) for p, c in own.items() if "/gw-" in p}
        row["cpu_us_per_request"] = gateways
    mesh(state, "drill", "end")
    return row


def main():
    results = open(os.environ["RESULTS"], "a") if os.environ.get("RESULTS") else sys.stdout
    for rep in range(REPS):
        for name in SCENARIOS:
            # A fresh federation each time: nothing of one outage is left for the next.
            state = tempfile.mkdtemp(prefix="federation-bench-")
            try:
                started = time.time()
                mesh(os.path.join(state, "s"), "up", "-d", "--base-port", BASE)
                ready = time.time() - started
                row = scenario(name, os.path.join(state, "s"), entry_url(os.path.join(state, "s")))
                print(json.dumps({**row, "rep": rep, "ready_s": round(ready, 1), "commands": 1}), file=results, flush=True)
            finally:
                subprocess.run([MESHCTL, "--state", os.path.join(state, "s"), "down"], capture_output=True, timeout=60)
                shutil.rmtree(state, ignore_errors=True)


if __name__ == "__main__":
    main()
