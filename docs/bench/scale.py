#!/usr/bin/env python3
"""What one change costs a large federation: CPU, bytes and time, per kind of change.

    docs/bench/scale.py MESHCTL [--services 2000] [--clusters 10] [--base-port 37400]

Runs `meshctl up` with one gateway per cluster, gives every cluster's agent the same N exported services, waits until all is
quiet, and then makes one change at a time: an endpoint that moves, a `split set`, a gateway that joins. CPU is the sum over
the processes of a role, less what they use when nothing happens; bytes are what the control plane's client ports sent.
Figures of one machine compare only with figures of the same hour; give two binaries to the same machine one after the other.
"""

import argparse, glob, json, os, shutil, subprocess, sys, tempfile, time, urllib.request

TICK = os.sysconf("SC_CLK_TCK")


class Federation:
    def __init__(self, meshctl, clusters, services, base):
        self.meshctl, self.services, self.base = os.path.abspath(meshctl), services, base
        self.names = [f"c{i}" for i in range(clusters)]
        self.dir = tempfile.mkdtemp(prefix="scale-")
        self.state = os.path.join(self.dir, "state")
        self.extra = []

    def mesh(self, *args, check=True):
        done = subprocess.run([self.meshctl, "--state", self.state, *args], capture_output=True, text=True)
        if check and done.returncode:
            sys.exit(f"meshctl {' '.join(args)}: {done.returncode}: {done.stderr}")
        return done.stdout

    def up(self):
        topology = os.path.join(self.dir, "scale.yaml")
        service = "{ name: demo, namespace: shop, protocol: http, versions: [v1], instances: 2, port: 80 }"
        with open(topology, "w") as out:
            out.write("apiVersion: archipelago.dev/v1alpha1\nkind: Topology\nmetadata: { name: scale }\nspec:\n")
            out.write("  trustDomain: mesh.example\n  controlPlane: { nodes: 3 }\n  clusters:\n")
            for name in self.names:
                out.write(f"    - {{ name: {name}, region: eu, gateways: 1, services: [ {service} ] }}\n")
        self.mesh("up", topology, "--detach", "--base-port", str(self.base))
        status = json.loads(self.mesh("status", "-o", "json"))
        self.http = {c["name"]: c["gateways"][0]["http"] for c in status["clusters"]}
        self.backends = {}
        for name in self.names:
            text = open(glob.glob(f"{self.state}/clusters/{name}/services/*")[0]).read()
            self.backends[name] = [w for w in text.replace('"', " ").split() if w.startswith("127.0.0.1:")]

    def service(self, name, address):
        return (
            f"---\napiVersion: archipelago.dev/v1alpha1\nkind: Service\nmetadata: {{ name: {name}, namespace: scale }}\nspec:\n"
            f"  port: 80\n  protocol: http\n  endpoints: [{{ address: '{address}', version: v1 }}]\n  healthCheck: none\n"
            f"---\napiVersion: archipelago.dev/v1alpha1\nkind: ServiceExport\nmetadata: {{ name: {name}, namespace: scale }}\n"
        )

    def write(self, cluster, file, text):
        path = f"{self.state}/clusters/{cluster}/services/{file}"
        with open(path + ".tmp", "w") as out:
            out.write(text)
        os.rename(path + ".tmp", path)

    def pids(self):
        roles = {"control plane": [], "gateways": [], "agents": []}
        words = {"control-plane": "control plane", "gateway": "gateways", "agent": "agents"}
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                argv = open(path, "rb").read().decode(errors="replace").split("\0")
            except OSError:
                continue
            if len(argv) > 2 and argv[1] == "role" and any(self.dir in arg for arg in argv) and argv[2] in words:
                roles[words[argv[2]]].append(int(path.split("/")[2]))
        return roles

    def cpu(self):
        total = {}
        for role, pids in self.pids().items():
            ticks = 0
            for pid in pids:
                try:
                    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
                    ticks += int(fields[11]) + int(fields[12])
                except OSError:
                    pass
            total[role] = ticks / TICK
        return total

    def rss(self):
        peak = {}
        for role, pids in self.pids().items():
            sizes = []
            for pid in pids:
                for line in open(f"/proc/{pid}/status"):
                    if line.startswith("VmRSS"):
                        sizes.append(int(line.split()[1]) // 1024)
            peak[role] = max(sizes, default=0)
        return peak

    def sent(self):
        ports = " or ".join(f"sport = :{self.base + i}" for i in range(3))
        text = subprocess.run(["ss", "-tinHO", ports], capture_output=True, text=True).stdout
        return sum(int(word.split(":")[1]) for word in text.split() if word.startswith("bytes_sent:"))

    def listed(self):
        """How many services `meshctl services` names, or what it says instead of an answer."""
        text = self.mesh("services", "-o", "json", check=False)
        return len(json.loads(text)) if text.strip().startswith("[") else "no answer"

    def quiet(self, limit=0.25, patience=300):
        """Waits until the processes use less than `limit` cores for three seconds; the last busy moment."""
        end, calm = time.time() + patience, 0
        last, busy = self.cpu(), time.time()
        while calm < 3 and time.time() < end:
            time.sleep(1)
            now = self.cpu()
            if sum(now.values()) - sum(last.values()) < limit:
                calm += 1
            else:
                calm, busy = 0, time.time()
            last = now
        return busy

    def change(self, name, act, seconds=8):
        idle0 = self.cpu(); time.sleep(5); idle1 = self.cpu()
        idle = {role: (idle1[role] - idle0[role]) / 5 for role in idle0}
        before, bytes0, begun = self.cpu(), self.sent(), time.time()
        took = act()
        time.sleep(max(0, seconds - (time.time() - begun)))
        span, after, bytes1 = time.time() - begun, self.cpu(), self.sent()
        cost = {role: round((after[role] - before[role] - idle[role] * span) * 1000) for role in before}
        print(json.dumps({"change": name, "seconds": round(took, 3), "cpu_ms": cost, "control_plane_bytes": bytes1 - bytes0}), flush=True)

    def answer(self, cluster, host):
        request = urllib.request.Request(self.http[cluster], headers={"Host": host})
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.read().decode(errors="replace") + str(response.headers)

    def until(self, cluster, host, wanted, patience=60):
        begun = time.time()
        while time.time() - begun < patience:
            try:
                if wanted(self.answer(cluster, host)):
                    return time.time() - begun
            except OSError:
                pass
            time.sleep(0.005)
        sys.exit(f"{host} in {cluster} never changed")


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("meshctl")
    flags.add_argument("--services", type=int, default=2000)
    flags.add_argument("--clusters", type=int, default=10)
    flags.add_argument("--base-port", type=int, default=37400)
    args = flags.parse_args()
    fed = Federation(args.meshctl, args.clusters, args.services, args.base_port)
    try:
        fed.up()
        begun = time.time()
        for cluster in fed.names:
            first = fed.backends[cluster][0]
            fed.write(cluster, "scale.yaml", "".join(fed.service(f"s{i}", first) for i in range(args.services)))
            fed.write(cluster, "flap.yaml", fed.service("flap", first))
        for cluster in fed.names:
            fed.until(cluster, f"s{args.services - 1}.scale", lambda text: True, patience=300)
        busy = fed.quiet(limit=0.4, patience=600)
        print(json.dumps({"loaded": f"{args.services} services in {args.clusters} clusters", "seconds": round(busy - begun, 1),
                          "rss_mib": fed.rss(), "cpu_s": {k: round(v, 1) for k, v in fed.cpu().items()}}), flush=True)
        for _ in range(3):
            begun = time.time()
            listed = fed.listed()
            print(json.dumps({"services": listed, "seconds": round(time.time() - begun, 3)}), flush=True)
        home, old, new = fed.names[0], *fed.backends[fed.names[0]][:2]
        for round_ in range(3):
            old, new = new, old
            before = fed.answer(home, "flap.scale")
            marker = lambda text: [line for line in text.lower().split() if "demo-v1" in line][:1]
            was = marker(before)
            def flap():
                fed.write(home, "flap.yaml", fed.service("flap", old))
                return fed.until(home, "flap.scale", lambda text: marker(text) != was) if round_ else (time.sleep(2) or 0)
            fed.change("endpoint moves", flap)
        for share in (90, 50):
            def split():
                begun = time.time()
                fed.mesh("split", "set", "scale/s1", f"c0={share}", f"c1={100 - share}")
                return time.time() - begun
            fed.change("split set", split)
        def join():
            begun = time.time()
            token = fed.mesh("token", "create", "--cluster", "c0", "--role", "gateway", "--name", "gw-9").strip().splitlines()[-1]
            path, port = os.path.join(fed.dir, "gw-9.token"), fed.base + 9000
            with open(path, "w") as out:
                out.write(token)
            members = ",".join(f"127.0.0.1:{fed.base + i}" for i in range(3))
            ports = {name: f"127.0.0.1:{port + i}" for i, name in enumerate(["http", "tunnel", "dns", "health", "metrics"])}
            argv = [fed.meshctl, "role", "gateway", "--cluster", "c0", "--name", "gw-9", "--state-dir", os.path.join(fed.dir, "gw-9"),
                    "--control-plane", members, "--token-file", path, "--agent", f"127.0.0.1:{fed.base + 100}", "--workers", "1",
                    "--tcp-base", f"127.0.0.1:{port + 100}", "--admin-socket", os.path.join(fed.dir, "gw-9.sock"), "--access-log", "off"]
            for name, address in ports.items():
                argv += [f"--{name}", address]
            fed.extra.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=open(os.path.join(fed.dir, "gw-9.log"), "w")))
            fed.http["gw-9"] = f"http://127.0.0.1:{port}"
            fed.until("gw-9", "s1.scale", lambda text: True)
            return time.time() - begun
        fed.change("gateway joins", join, seconds=12)
    finally:
        for process in fed.extra:
            process.kill()
        subprocess.run([fed.meshctl, "--state", fed.state, "down"], capture_output=True)
        shutil.rmtree(fed.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
