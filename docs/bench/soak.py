#!/usr/bin/env python3
"""Mixed traffic through two gateways for a long time, while endpoints are killed: does anything leak, does anything fail?

    docs/bench/soak.py MESHCTL [--minutes 30] [--seed 1] [--base-port 24400] [--keep DIR]

`meshctl up` starts two clusters with one gateway each. Clients of paris use HTTP/1.1, HTTP/2 (curl), gRPC streams (grpcio, where it is
installed) and TCP services that only tokyo has, in two instances each: small requests, uploads and downloads whose bytes are
checked, downloads that are cancelled, readers that stall. Every 20 s an instance is killed, and its supervisor starts it again.

A failure is explained if a kill happened while the exchange was open or within 3 s before it, for what cannot be sent again (an
exchange that the instance had begun). At the end the clients stop, and in both gateways memory must have been flat after the warm-up,
connections be zero and descriptors back to where they were. Prints one line of JSON a minute, one for each failure with the kills
around it, and a verdict; exit code 1: it failed. With --keep the state is in DIR afterwards, with the access logs of both gateways.
"""

import argparse
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
GRPC_SERVER = os.path.join(HERE, "..", "..", "gateway", "tests", "peers", "grpc_server.py")
EXPLAINED_SECONDS = 3
KILL_EVERY_SECONDS = 20
TOPOLOGY = """
apiVersion: archipelago.dev/v1alpha1
kind: Topology
metadata: {{ name: soak }}
spec:
  trustDomain: mesh.example
  controlPlane: {{ nodes: 1 }}
  clusters:
    - {{ name: paris, region: eu, gateways: 1, services: [{{ name: own, namespace: shop, protocol: http, versions: [v1], instances: 1, port: 80 }}] }}
    - name: tokyo
      region: ap
      gateways: 1
      services:
        - {{ name: web, namespace: shop, protocol: http, versions: [v1], instances: 2, port: 80 }}
        - {{ name: catalog, namespace: shop, protocol: h2c, versions: [v1], instances: 2, port: 80 }}
        - {{ name: ledger, namespace: shop, protocol: tcp, versions: [v1], instances: 2, port: 9000 }}
        - {{ name: calls, namespace: shop, protocol: h2c, port: 80, endpoints: {calls} }}
{exports}
"""


class Mesh:
    """Two clusters, and what their gateways use."""

    def __init__(self, meshctl, base, calls, keep):
        self.meshctl, self.keep = os.path.abspath(meshctl), keep
        self.dir = os.path.abspath(keep) if keep else tempfile.mkdtemp(prefix="soak-")
        os.makedirs(self.dir, exist_ok=True)
        self.state = os.path.join(self.dir, "state")
        names = ["web", "catalog", "ledger", "calls"]
        exports = "".join(
            f"---\napiVersion: archipelago.dev/v1alpha1\nkind: ServiceExport\nmetadata: {{ name: {name}, namespace: shop }}\n" for name in names
        )
        path = os.path.join(self.dir, "soak.yaml")
        with open(path, "w") as out:
            out.write(TOPOLOGY.format(calls=json.dumps(calls), exports=exports))
        self.run("up", path, "--detach", "--base-port", str(base), "--workers", "2", *(["--access-log"] if keep else []))
        self.status = json.loads(self.run("status", "-o", "json"))

    def run(self, *args):
        done = subprocess.run([self.meshctl, "--state", self.state, *args], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"meshctl {' '.join(args)}: {done.returncode}: {done.stderr}")
        return done.stdout

    def processes(self, role):
        """Process id by name; those that are running now."""
        status = json.loads(self.run("status", "-o", "json"))
        return {p["name"]: p["pid"] for p in status["processes"] if p["role"] == role and p["state"] == "running"}

    def down(self):
        subprocess.run([self.meshctl, "--state", self.state, "down"], capture_output=True)
        if not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)


class Gateway:
    def __init__(self, cluster, pid):
        self.cluster, self.pid, self.metrics = cluster["name"], pid, cluster["gateways"][0]["metrics"]
        self.samples = []

    def sample(self):
        with open(f"/proc/{self.pid}/status") as file:
            rss = next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024
        fields = open(f"/proc/{self.pid}/stat").read().rsplit(")", 1)[1].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        with urllib.request.urlopen(self.metrics, timeout=10) as response:
            text = response.read().decode()
        open_ = sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("mesh_gateway_connections{"))
        self.samples.append({"at": time.monotonic(), "rss": rss, "fds": len(os.listdir(f"/proc/{self.pid}/fd")), "cpu": cpu, "connections": int(open_)})
        return self.samples[-1]


def slope(samples):
    """Least squares, MiB per hour."""
    xs, ys = [s["at"] / 3600 for s in samples], [s["rss"] for s in samples]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys)) / (sum((a - x) ** 2 for a in xs) or 1)


class Traffic:
    """Clients, each a thread, and what became of their exchanges."""

    def __init__(self, seed, http_address, tcp_address, calls):
        self.host, self.port = http_address.rsplit(":", 1)[0], int(http_address.rsplit(":", 1)[1])
        self.tcp_address, self.calls, self.seed = tcp_address, calls, seed
        self.stop, self.lock, self.kills = threading.Event(), threading.Lock(), []
        self.done, self.failures, self.threads = {}, [], []

    def start(self):
        kinds = [self.small] * 3 + [self.upload, self.upload, self.download, self.download, self.cancel, self.stalled, self.stalled, self.curl, self.tcp]
        if self.calls:
            kinds += [self.unary, self.call_streams, self.call_cancels]
        for index, kind in enumerate(kinds):
            thread = threading.Thread(target=self.loop, args=(kind, random.Random(f"{self.seed} {index}")), daemon=True)
            thread.start()
            self.threads.append(thread)

    def loop(self, kind, rng):
        state = {}
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                kind(rng, state)
                with self.lock:
                    self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1
            except Exception as error:  # whatever it is: it is judged below
                state.pop("connection", None)
                with self.lock:
                    self.failures.append((began, time.monotonic(), kind.__name__, f"{type(error).__name__}: {error}"))
                    print(json.dumps(self.told(*self.failures[-1])), flush=True)
            self.stop.wait(rng.uniform(0.05, 0.6))

    def told(self, began, ended, kind, error):
        """A failure as it happened, with whom the last kills before its end were of, and how long before."""
        ago = {victim: round(ended - kill, 2) for kill, victim in self.kills[-2:]}
        return {"failed": kind, "at": time.strftime("%H:%M:%S", time.gmtime()), "took_s": round(ended - began, 2), "killed_s_before": ago, "error": error}

    def unexplained(self):
        near = lambda began, ended: any(began - EXPLAINED_SECONDS <= kill <= ended for kill, _ in self.kills)
        return [f"{kind}: {error}" for began, ended, kind, error in self.failures if not near(began, ended)]

    def request(self, state, method, path, host="web.shop", body=None, headers=()):
        """One request on a connection that is kept; gives the response."""
        connection = state.get("connection") or http.client.HTTPConnection(self.host, self.port, timeout=60)
        state["connection"] = connection
        connection.request(method, path, body=body, headers={"Host": host, **dict(headers)}, encode_chunked=hasattr(body, "__next__"))
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"{method} {path}: {response.status} {response.read()[:200]!r}")
        return response

    def small(self, rng, state):
        host = rng.choice(["web.shop", "catalog.shop"])
        answer = json.loads(self.request(state, "GET", "/", host).read())
        assert answer["cluster"] == "tokyo", answer

    def upload(self, rng, state):
        data = rng.randbytes(rng.choice([100, 10_000, 300_000, 2_000_000]))
        chunked = rng.random() < 0.5
        pieces = iter([data[at : at + 40_000] for at in range(0, len(data), 40_000)])
        headers = {"Transfer-Encoding": "chunked"} if chunked else {}
        answer = json.loads(self.request(state, "POST", "/digest", rng.choice(["web.shop", "catalog.shop"]), pieces if chunked else data, headers).read())
        assert answer["sha256"] == hashlib.sha256(data).hexdigest(), answer

    def download(self, rng, state):
        length = rng.choice([1_000, 100_000, 3_000_000])
        data = self.request(state, "GET", f"/bytes/{length}", rng.choice(["web.shop", "catalog.shop"])).read()
        assert data == (bytes(range(251)) * (length // 251 + 1))[:length], f"{len(data)} bytes of {length}"

    def cancel(self, rng, state):
        response = self.request(state, "GET", "/bytes/20000000", rng.choice(["web.shop", "catalog.shop"]))
        response.read(rng.randrange(1, 200_000))
        connection = state.pop("connection")
        if rng.random() < 0.5:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        response.close()
        connection.close()

    def stalled(self, rng, state):
        response = self.request(state, "GET", "/bytes/50000000", rng.choice(["web.shop", "catalog.shop"]))
        self.stop.wait(rng.uniform(2, 10))
        response.read(1000)
        response.close()
        state.pop("connection").close()

    def curl(self, rng, state):
        url = f"http://{self.host}:{self.port}/" + rng.choice(["", "bytes/200000", "headers", "trailers", "stream/5/20"])
        command = ["curl", "-sS", "--fail", "--http2-prior-knowledge", "-H", "Host: catalog.shop", "-m", "60", "-o", os.devnull, url]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"curl: {done.returncode} {done.stderr}"

    def tcp(self, rng, state):
        data = rng.randbytes(rng.choice([10, 50_000, 500_000]))
        host, port = self.tcp_address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=60) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        assert json.loads(answer)["sha256"] == hashlib.sha256(data).hexdigest(), answer

    def channel(self, state):
        import grpc

        if "channel" not in state:
            state["channel"] = grpc.insecure_channel(f"{self.host}:{self.port}", options=[("grpc.default_authority", "calls.shop")])
        return state["channel"]

    def unary(self, rng, state):
        data = rng.randbytes(rng.choice([5, 3_000]))
        assert self.channel(state).unary_unary("/peers.Test/Echo")(data, timeout=30) == data

    def call_streams(self, rng, state):
        channel, messages = self.channel(state), [rng.randbytes(rng.choice([5, 2_000])) for _ in range(40)]
        assert list(channel.unary_stream("/peers.Test/Count")(b"30 0.02", timeout=60)) == [str(n).encode() for n in range(30)]
        assert channel.stream_unary("/peers.Test/Digest")(iter(messages), timeout=60).split()[0] == b"40"
        assert list(channel.stream_stream("/peers.Test/Chat")(iter(messages), timeout=60)) == messages

    def call_cancels(self, rng, state):
        call = self.channel(state).unary_stream("/peers.Test/Count")(b"1000000 0.001", timeout=60)
        for _, _ in zip(range(rng.randrange(1, 200)), call):
            pass
        call.cancel()


class Calls:
    """Two gRPC servers."""

    def __init__(self, base):
        self.ports = []
        try:
            import grpc  # noqa: F401
        except ImportError:
            print("SKIPPED: gRPC traffic, because grpcio is not installed for this Python", file=sys.stderr)
            return
        self.ports = [base + 900, base + 901]
        self.processes = [self.serve(port) for port in self.ports]

    def serve(self, port):
        command = [sys.executable, GRPC_SERVER, "--port", str(port)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process.stdout.readline()
        return process

    def kill(self, index):
        self.processes[index].kill()
        self.processes[index].wait()
        self.processes[index] = self.serve(self.ports[index])

    def end(self):
        for process in getattr(self, "processes", []):
            process.kill()


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("meshctl")
    flags.add_argument("--minutes", type=float, default=30)
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--base-port", type=int, default=24400)
    flags.add_argument("--keep", metavar="DIR")
    args = flags.parse_args()
    calls = Calls(args.base_port)
    mesh = Mesh(args.meshctl, args.base_port, [f"127.0.0.1:{port}" for port in calls.ports] or ["127.0.0.1:9"], args.keep)
    try:
        sys.exit(soak(args, mesh, calls))
    finally:
        calls.end()
        mesh.down()


def soak(args, mesh, calls):
    pids, clusters = mesh.processes("gateway"), mesh.status["clusters"]
    gateways = [Gateway(cluster, pids[f"{cluster['name']}/gw-1"]) for cluster in clusters]
    http_address = next(c["gateways"][0]["http"] for c in clusters if c["name"] == "paris").removeprefix("http://")
    services = {service["name"]: service for service in json.loads(mesh.run("services", "-o", "json"))}
    tcp_address = next(way["address"] for way in services["shop/ledger"]["tcp"] if way["cluster"] == "paris")
    before = [gateway.sample() for gateway in gateways]
    traffic = Traffic(args.seed, http_address, tcp_address, bool(calls.ports))
    rng, began, length = random.Random(args.seed), time.monotonic(), args.minutes * 60
    next_kill, next_line = began + KILL_EVERY_SECONDS / 2, began + min(60, length / 3)
    traffic.start()
    while (now := time.monotonic()) < began + length:
        time.sleep(min(5, max(0.1, began + length - now)))
        samples = [gateway.sample() for gateway in gateways]
        # Not at the very end: what was killed is to be back.
        if next_kill <= now < began + length - 10:
            next_kill += KILL_EVERY_SECONDS
            demos = mesh.processes("demo")
            victim = rng.choice(sorted(demos) + list(range(len(calls.ports))))
            traffic.kills.append((time.monotonic(), victim))
            calls.kill(victim) if victim in range(len(calls.ports)) else os.kill(demos[victim], signal.SIGKILL)
        if now >= next_line:
            next_line += min(60, length / 3)
            line = {g.cluster: {"rss_mib": round(s["rss"], 1), "fds": s["fds"], "connections": s["connections"], "cpu_s": round(s["cpu"], 1)} for g, s in zip(gateways, samples)}
            print(json.dumps({"s": round(now - began), "done": sum(traffic.done.values()), "failed": len(traffic.failures), "kills": len(traffic.kills), **line}), flush=True)
    traffic.stop.set()
    for thread in traffic.threads:
        thread.join(90)
    return verdict(gateways, before, traffic, args.minutes)


def verdict(gateways, before, traffic, minutes):
    wrong = [f"unexplained: {failure}" for failure in traffic.unexplained()]
    deadline = time.monotonic() + 90
    for gateway, first in zip(gateways, before):
        # Connections to endpoints are closed after 30 idle seconds.
        while (last := gateway.sample())["connections"] > first["connections"] or last["fds"] > first["fds"] + 4:
            if time.monotonic() > deadline:
                wrong.append(f"{gateway.cluster}: {last} at the end, {first} before")
                break
            time.sleep(2)
        warm = [s for s in gateway.samples if s["at"] > gateway.samples[0]["at"] + 60 * minutes / 4]
        per_hour = slope(warm)
        print(json.dumps({"gateway": gateway.cluster, "rss_mib": [round(first["rss"], 1), round(warm[0]["rss"], 1), round(max(s["rss"] for s in warm), 1), round(last["rss"], 1)], "slope_mib_per_hour": round(per_hour, 2), "fds": [first["fds"], max(s["fds"] for s in warm), last["fds"]], "cpu_s": round(last["cpu"] - first["cpu"], 1)}))
        # Shorter runs say nothing of memory: the allocator is still filling its pools.
        if minutes >= 10 and per_hour > SLOPE_MAX:
            wrong.append(f"{gateway.cluster}: memory grows by {per_hour:.1f} MiB an hour")
    print(json.dumps({"done": traffic.done, "failed": len(traffic.failures), "kills": len(traffic.kills), "wrong": wrong[:20]}))
    return 1 if wrong else 0


SLOPE_MAX = 6.0

if __name__ == "__main__":
    main()
