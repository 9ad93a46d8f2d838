"""Real Kubernetes clusters on one machine, each node in a network namespace of its own.

Node 1 of a cluster runs etcd, kube-apiserver, kube-controller-manager and kube-scheduler; every node runs containerd, kubelet
and kube-proxy. Nodes of all clusters share one bridge, as machines share a network; pods reach other nodes under their
node's address, so clusters may have the same pod and service ranges, and pods of different clusters do not reach each other.
"""

import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import time

import image
import node

HERE = pathlib.Path(__file__).resolve().parent
BRIDGE, HOST_ADDRESS = "lab0", "10.99.0.254"

# Programs that the lab runs as they are, and the Debian packages that bring them.
TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "runc": "runc",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "busybox": "busybox-static",
    "curl": "curl",
    "dash": "dash",
    "dig": "bind9-dnsutils",
    "nc": "netcat-openbsd",
    "socat": "socat",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}


# How long anything is waited for. Reached only when it does not come at all: a starved machine takes minutes for what takes seconds.
PATIENCE_SECONDS = 240


class LabError(Exception):
    """Something that whoever runs the lab can act on."""


def cache_folder():
    """Where built programs and images are kept between runs."""
    given = os.environ.get("ARCHIPELAGO_LAB_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(given or os.path.join(home, "archipelago-lab"))


def scratch_folder():
    """Where running clusters have their state, logs and kubeconfigs."""
    return pathlib.Path(os.environ.get("ARCHIPELAGO_LAB_DIR", "/tmp/archipelago-lab"))


def cannot_run():
    """Why this machine cannot run the lab, or None."""
    if os.geteuid() != 0:
        return "not root: network namespaces and containers need it"
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]
    if missing:
        return "missing tools: apt-get install " + " ".join(sorted(missing))
    if not (cache_folder() / "bin/kubelet").exists() and not shutil.which("go"):
        return "no Go toolchain: Kubernetes is built from its Go modules (Go 1.26 or later)"
    return None


def run(*command, check=True, **options):
    """Runs a command to its end; its output is in the error when it fails, or does not end."""
    options = {"capture_output": True, "text": True, "timeout": PATIENCE_SECONDS} | options
    try:
        done = subprocess.run([str(word) for word in command], check=False, **options)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(map(str, command))}: not over after {error.timeout:.0f} s") from None
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout or '').strip()}")
    return done


def wait_until(what, condition, seconds=PATIENCE_SECONDS, every=0.1):
    """Waits for `condition()` to be true, and returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise LabError(f"gave up after {seconds} s waiting for {what}")
        time.sleep(every)


class Cluster:
    """One cluster. `index` (1 to 99) numbers its addresses: node n is 10.99.INDEX.n."""

    def __init__(self, name):
        if not name.isalnum() or len(name) > 9:
            raise LabError(f"cluster name {name!r}: at most 9 letters and digits, as they become interface names")
        self.name = name
        self.home = scratch_folder() / name
        self.kubeconfig = self.home / "kubeconfig"
        record = self.home / "cluster.json"
        self.facts = json.loads(record.read_text()) if record.exists() else {"processes": {}}

    # What is where.

    @property
    def nodes(self):
        return range(1, self.facts["nodes"] + 1)

    def address(self, number):
        return f"10.99.{self.facts['index']}.{number}"

    def node_name(self, number):
        return f"{self.name}-{number}"

    def pod_range(self, number):
        """The pods of one node: one /24 of the cluster's /16."""
        first, second = self.facts["pods"].split(".")[:2]
        return f"{first}.{second}.{number}.0/24"

    def service_address(self, last):
        return self.facts["services"].split("/")[0].rsplit(".", 1)[0] + f".{last}"

    # Life.

    def up(self, index, nodes=1, pods="10.100.0.0/16", services="10.200.0.0/16", dns=True):
        """Starts the cluster and returns when every node is ready."""
        if self.facts.get("index"):
            raise LabError(f"cluster {self.name} is there already: `lab down {self.name}` first")
        self.home.mkdir(parents=True)
        self.facts |= {"index": index, "nodes": nodes, "pods": pods, "services": services}
        self._record()
        base_images()
        self._network()
        self._control_plane()
        for number in self.nodes:
            self._start_node(number)
        wait_until("every node to be Ready", lambda: self.ready_nodes() == nodes)
        if dns:
            manifest = (HERE / "dns.yaml").read_text().replace("CLUSTER_IP", self.service_address(10))
            self.kubectl("apply", "-f", "-", input=manifest)

    def down(self):
        """Ends every process of the cluster and removes what it left in the system."""
        for name in list(self.facts["processes"]):
            self.stop(name)
        pods = set()
        for number in self.nodes if self.facts.get("nodes") else ():
            pods |= self._kill_pods(number)
            # Its namespace goes when the last process in it is really gone; the name must be free at once.
            run("ip", "link", "del", f"v-{self.name}-{number}", check=False)
        mounts = [line.split()[1] for line in open("/proc/mounts", encoding="utf-8")]
        for mount in sorted((m for m in mounts if m.startswith(f"{self.home}/")), reverse=True):
            run("umount", "-l", mount, check=False)
        for space in pathlib.Path("/run/netns").glob("*"):
            if space.name.startswith(f"k-{self.name}-") or space.stat().st_ino in pods:
                run("ip", "netns", "del", space.name, check=False)
        shutil.rmtree(self.home, ignore_errors=True)

    # Faults.

    def stop(self, name):
        """Kills one process (`1-apiserver`, `2-kubelet`, …) at once, as a crash would."""
        pid = self.facts["processes"].get(name, {}).get("pid")
        if pid and self._is_mine(pid):
            os.kill(pid, signal.SIGKILL)
            wait_until(f"{name} to end", lambda: not self._is_mine(pid))

    def start(self, name):
        """Starts again what `stop` killed."""
        known = self.facts["processes"].get(name)
        if not known:
            raise LabError(f"no process {name} in {self.name}: one of {', '.join(self.facts['processes'])}")
        if not self._is_mine(known["pid"]):
            self._start(int(name.split("-")[0]), name.split("-", 1)[1], known["argv"])

    def kill_node(self, number):
        """Power loss: the node's link goes first, so that nobody hears a farewell; then every process of it dies."""
        run("ip", "link", "set", f"v-{self.name}-{number}", "down")
        for name in [name for name in self.facts["processes"] if name.startswith(f"{number}-")]:
            self.stop(name)
        self._kill_pods(number)

    def start_node(self, number):
        """Power is back: the link, and the node's processes in their order."""
        run("ip", "link", "set", f"v-{self.name}-{number}", "up")
        for name in [name for name in self.facts["processes"] if name.startswith(f"{number}-")]:
            self.start(name)

    def cut(self, number, addresses):
        """Packets between a node and `addresses` are lost in both directions, silently."""
        hosts = ", ".join(addresses)
        rules = (
            "table inet lab_cut { "
            f"chain in {{ type filter hook prerouting priority -300; ip saddr {{ {hosts} }} drop; }}; "
            f"chain out {{ type filter hook postrouting priority 300; ip daddr {{ {hosts} }} drop; }}; }}"
        )
        self.heal(number)
        self.at(number, "nft", rules)

    def heal(self, number):
        """The link of a node that was cut carries again."""
        self.at(number, "nft", "delete table inet lab_cut", check=False)

    # Use.

    def at(self, number, *command, **options):
        """Runs a command in the network of a node."""
        return run("nsenter", f"--net=/run/netns/{self._space(number)}", *command, **options)

    def kubectl(self, *words, **options):
        """`kubectl` with this cluster's kubeconfig, as its administrator. The bridge makes API servers reachable from here."""
        return run(cache_folder() / "bin/kubectl", f"--kubeconfig={self.kubeconfig}", *words, **options).stdout

    def load(self, archive, number=None):
        """Imports an image archive on one node, or on all."""
        for each in [number] if number else self.nodes:
            self.ctr(each, "images", "import", archive)

    def ctr(self, number, *words, **options):
        """containerd's own client on one node."""
        socket = self.home / f"node-{number}/containerd.sock"
        return run(cache_folder() / "bin/ctr", "-a", socket, "-n", "k8s.io", *words, **options)

    def pod_process(self, namespace, pod, program=""):
        """The id of a process of a pod, as seen from here; its network namespace is the pod's. `program` says which one."""
        for number in self.nodes:
            tasks = {line.split()[0]: line.split()[1] for line in self.ctr(number, "tasks", "list").stdout.splitlines()[1:]}
            wanted = f'labels."io.kubernetes.pod.namespace"=={namespace},labels."io.kubernetes.pod.name"=={pod}'
            for container in self.ctr(number, "containers", "list", "-q", wanted).stdout.split():
                comm = pathlib.Path(f"/proc/{tasks.get(container, '0')}/comm")
                # One that has just ended is still listed.
                if comm.exists() and comm.read_text().startswith(program[:15]):
                    return int(comm.parent.name)
        raise LabError(f"no running pod {namespace}/{pod} in {self.name}")

    def kill_pod(self, namespace, pod):
        """Kills the processes of a pod at once, behind the back of kubelet and API server; the pod must have its own network."""
        space = os.stat(f"/proc/{self.pod_process(namespace, pod)}/ns/net").st_ino
        if any(path.stat().st_ino == space for path in pathlib.Path("/run/netns").glob("k-*")):
            raise LabError(f"{namespace}/{pod} is on its node's network: its processes cannot be told from the node's")
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.stat(entry / "ns/net").st_ino == space:
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                # Ended meanwhile, or not even root may look.
                continue

    # How it comes up.

    def _network(self):
        if run("ip", "link", "show", BRIDGE, check=False).returncode != 0:
            run("ip", "link", "add", BRIDGE, "type", "bridge")
            run("ip", "address", "add", f"{HOST_ADDRESS}/16", "dev", BRIDGE)
            run("ip", "link", "set", BRIDGE, "up")
        for number in self.nodes:
            space, veth = self._space(number), f"v-{self.name}-{number}"
            run("ip", "netns", "add", space)
            run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "link", "set", veth, "master", BRIDGE, "up")
            self.at(number, "ip", "address", "add", f"{self.address(number)}/16", "dev", "eth0")
            self.at(number, "ip", "link", "set", "eth0", "up")
            self.at(number, "ip", "link", "set", "lo", "up")
            self.at(number, "ip", "route", "add", "default", "via", HOST_ADDRESS)
            self.at(number, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            for other in self.nodes:
                if other != number:
                    self.at(number, "ip", "route", "add", self.pod_range(other), "via", self.address(other))
            # What leaves the cluster's pod range carries the node's address, as with most network plugins.
            self.at(
                number,
                "nft",
                "table ip lab { chain postrouting { type nat hook postrouting priority 110; "
                f"ip saddr {self.pod_range(number)} ip daddr != {self.facts['pods']} oifname eth0 masquerade; }}; }}",
            )

    def _control_plane(self):
        home, address = self.home, self.address(1)
        run("openssl", "genrsa", "-out", home / "sa.key", "2048")
        run("openssl", "rsa", "-in", home / "sa.key", "-pubout", "-out", home / "sa.pub")
        token = secrets.token_hex(16)
        (home / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
        self.kubeconfig.write_text(node.kubeconfig(self.name, address, token))
        self.kubeconfig.chmod(0o600)
        for name, argv in node.control_plane(home, address, self.facts["services"], self.kubeconfig).items():
            self._start(1, name, argv)
            if name == "apiserver":
                self.wait_for_api()

    def wait_for_api(self):
        """Waits until the API server answers."""
        ready = ("get", "--raw", "/readyz", "--request-timeout=10s")
        wait_until("the API server", lambda: self.kubectl(*ready, check=False) == "ok")

    def _start_node(self, number):
        folder = self.home / f"node-{number}"
        (folder / "cni").mkdir(parents=True)
        (folder / "logs").mkdir()
        for name, text in node.files(folder, self.pod_range(number), self.service_address(10)).items():
            (folder / name).write_text(text)
        self._start(number, "containerd", ["containerd", "-c", str(folder / "containerd.toml")])
        for archive in sorted((cache_folder() / "images").glob("*.tar")):
            self.load(archive, number)
        names = (self.node_name(number), self.address(number))
        self._start(number, "kubelet", node.kubelet(folder, self.kubeconfig, *names))
        self._start(number, "kube-proxy", node.kube_proxy(self.kubeconfig, self.facts["pods"], names[0]))

    def ready_nodes(self):
        """How many nodes are Ready; -1 when the API server does not answer."""
        text = self.kubectl("get", "nodes", "-o", "json", "--request-timeout=10s", check=False)
        if not text:
            return -1
        listed = json.loads(text)
        conditions = [c for item in listed["items"] for c in item["status"].get("conditions", [])]
        return sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    # Processes.

    def _start(self, number, name, argv):
        log, pid_file = self.home / f"{number}-{name}.log", self.home / f"{number}-{name}.pid"
        path = f"{cache_folder() / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        # `nsenter --net`, not `ip netns exec`: that would mount a new /sys, without the cgroups that the kubelet needs.
        # The shell's process becomes the program's, so the file holds its id; forked off, it outlives whoever started it.
        script = f'echo $$ >"{pid_file}.new"; mv "{pid_file}.new" "{pid_file}"; exec "$@" >>"{log}" 2>&1 </dev/null'
        pid_file.unlink(missing_ok=True)
        enter = ["nsenter", f"--net=/run/netns/{self._space(number)}", "env", f"PATH={path}", *argv]
        run("setsid", "--fork", "bash", "-c", script, "bash", *enter, capture_output=False)
        pid = int(wait_until(f"{name} to start", lambda: pid_file.exists() and pid_file.read_text().strip()))
        self.facts["processes"][f"{number}-{name}"] = {"argv": list(map(str, argv)), "pid": pid}
        self._record()
        if name == "containerd":
            # A kubelet that finds no container runtime ends.
            wait_until("containerd", lambda: self.ctr(number, "version", check=False).returncode == 0)

    def _is_mine(self, pid):
        """Whether a process of that id runs in one of this cluster's networks: ids are reused."""
        try:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
            space = os.stat(f"/proc/{pid}/ns/net").st_ino
        except OSError:
            return False
        mine = (os.stat(path).st_ino for path in pathlib.Path("/run/netns").glob(f"k-{self.name}-*"))
        return stat.rsplit(")", 1)[1].split()[0] != "Z" and space in mine

    def _kill_pods(self, number):
        """Kills the node's container shims and everything below them; returns the network namespaces these were in."""
        children, shims = {}, []
        marker = f"{self.home}/node-{number}/containerd.sock"
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
            if "containerd-shim" in words[0] and marker in words:
                shims.append(int(entry.name))
        doomed = list(shims)
        for pid in doomed:
            doomed.extend(children.get(pid, []))
        spaces = set()
        for pid in doomed:
            try:
                spaces.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
                os.kill(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass
        return spaces - {os.stat("/proc/self/ns/net").st_ino}

    def _space(self, number):
        return f"k-{self.name}-{number}"

    def _record(self):
        partial = self.home / "cluster.json.new"
        partial.write_text(json.dumps(self.facts, indent=1))
        partial.replace(self.home / "cluster.json")


def base_images():
    """Writes the images that every node has, unless they are there: the sandbox, CoreDNS, and a shell with network tools."""
    folder, bin_folder = cache_folder() / "images", cache_folder() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    busybox = {"/bin/busybox": shutil.which("busybox")}
    if not (folder / "pause.tar").exists():
        image.write("lab.test/pause:1", folder / "pause.tar", ["/bin/sleep", "1000000"], busybox, {"/bin/sleep": "busybox"})
    coredns = bin_folder / "coredns"
    if coredns.exists() and not (folder / "coredns.tar").exists():
        image.write("lab.test/coredns:1", folder / "coredns.tar", ["/coredns"], {"/coredns": coredns}, {})
    if not (folder / "tools.tar").exists():
        tools_image("lab.test/tools:1", folder / "tools.tar")


def tools_image(name, out):
    """Writes an image with a shell and network tools, under a name of one's choice."""
    files = {"/bin/busybox": shutil.which("busybox")}
    links = {f"/bin/{name}": "busybox" for name in BUSYBOX_NAMES}
    # dash, since busybox's own shell would run busybox's own nc and nslookup rather than these.
    for tool in ("sh", "curl", "dig", "nslookup", "nc", "socat"):
        program = os.path.realpath(shutil.which("dash" if tool == "sh" else tool))
        files |= image.program(program)
        if program != f"/bin/{tool}":
            links[f"/bin/{tool}"] = program
    image.write(name, out, [], files, links, ["/bin/sleep", "1000000"])


BUSYBOX_NAMES = ["sleep", "cat", "echo", "grep", "awk", "tr", "wget", "head", "tail", "ls", "ip", "env", "seq", "date"]
