"""The clusters under test, what runs in them, and how a test reaches them."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent / "lab"))

import cluster as lab  # noqa: E402
from cluster import LabError, wait_until  # noqa: E402

import blocks  # noqa: E402
from load import Load  # noqa: E402
from report import Failed  # noqa: E402

SYSTEM = "archipelago-system"
# Address of the DNS Service in every cluster, from the range that all of them share.
DNS_ADDRESS = "10.200.0.53"
CONTROL_PLANE = f"{lab.HOST_ADDRESS}:7400"


class World:
    """Everything a scenario touches. Clusters have the same pod and service ranges on purpose."""

    def __init__(self, clusters, folder, programs, image, image_name, report):
        self.clusters = {name: lab.Cluster(name) for name in clusters}
        self.sizes = clusters
        self.folder, self.programs, self.report = folder, programs, report
        self.image, self.image_name = image, image_name
        self.processes = {}
        # How long API servers stay away when they do: minutes in a full run.
        self.api_away_seconds = 20
        self.rounds, self.large_services = 10, 2000
        self.mcs_suite = None
        # An image of an earlier version, if the run has one.
        self.older_image = None
        environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "KUBECONFIG": str(folder / "kubeconfig"),
            "ARCHIPELAGO_STATE": str(folder / "federation"),
            "CONTROL_PLANE": CONTROL_PLANE,
            "CHART": str(ROOT / "topologies/kubernetes/chart"),
            "DNS_ADDRESS": DNS_ADDRESS,
        }
        self.environment = {name: value for name, value in environment.items() if name != "HELM_NAMESPACE"}
        self.blocks = blocks.Blocks(self.environment, folder)

    def __getitem__(self, name):
        return self.clusters[name]

    # Life.

    def up(self):
        """Starts the clusters, with the image on every node and nothing of ours running."""
        # An earlier run may have been told to keep its own.
        self.down()
        self.clusters = {name: lab.Cluster(name) for name in self.clusters}
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "bin").mkdir(parents=True)
        # Copies: what is built meanwhile is for the next run.
        for name in ("meshctl", "archipelago-control-plane", "chaos"):
            shutil.copy2(self.programs / name, self.folder / "bin" / name)
        tools = pathlib.Path(self.run(HERE.parent / "tools").strip())
        for name, source in (("kubectl", lab.cache_folder() / "bin/kubectl"), ("helm", tools / "helm")):
            (self.folder / "bin" / name).symlink_to(source)
        for name, (index, nodes) in self.sizes.items():
            began = time.monotonic()
            self[name].up(index, nodes)
            self[name].load(self.image)
            self.report.note(f"cluster {name}: {nodes} nodes after {time.monotonic() - began:.0f} s")
        configs = ":".join(str(cluster.kubeconfig) for cluster in self.clusters.values())
        merged = self.run("kubectl", "config", "view", "--flatten", environment={"KUBECONFIG": configs})
        (self.folder / "kubeconfig").write_text(merged)
        (self.folder / "kubeconfig").chmod(0o600)

    def down(self):
        """Ends everything that `up` and the scenarios started."""
        self.end_processes()
        for name, cluster in self.clusters.items():
            try:
                cluster.down()
            except (LabError, OSError) as error:
                # The others must go all the same.
                self.report.note(f"cluster {name} is not all gone: {error}")

    def installed(self):
        """Whether every cluster has gateways, from an earlier run."""
        return all(self.get(name, "daemonset", "archipelago-gateway", "-n", SYSTEM) for name in self.clusters)

    def start(self, name, *command, environment=None):
        """A process of ours outside the clusters; its log is NAME.log in the folder of the run."""
        log = open(self.folder / f"{name}.log", "ab")
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=self.folder,
            env=self.environment | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.processes[name] = process
        (self.folder / f"{name}.pid").write_text(f"{process.pid}\n")

    def end(self, name):
        """Ends a process of ours as a supervisor would, and waits for it."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait(lab.PATIENCE_SECONDS)

    def end_processes(self):
        """Ends the processes outside the clusters, also those of an earlier run that was told to keep them."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.processes = {}
        for file in self.folder.glob("*.pid"):
            pid = int(file.read_text())
            where = pathlib.Path(f"/proc/{pid}/cwd")
            if where.exists() and where.resolve() == self.folder:
                os.kill(pid, signal.SIGKILL)
            file.unlink()

    def storage(self, cluster, count):
        """Volumes on the nodes' disks, since a lab cluster provisions none."""
        for number in range(count):
            path = self[cluster].home / f"volume-{number}"
            path.mkdir(exist_ok=True)
            os.chown(path, 65532, 65532)
            spec = {
                "capacity": {"storage": "4Gi"},
                "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": str(path), "type": "Directory"},
            }
            self.apply(cluster, {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"volume-{number}"}, "spec": spec})

    # Commands.

    def run(self, *command, check=True, environment=None, stdin=None, timeout=300):
        """Runs a command with the run's PATH and kubeconfig, and returns its standard output."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env=self.environment | (environment or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def kubectl(self, cluster, *words, **options):
        """kubectl in one cluster."""
        return self.run("kubectl", "--context", cluster, *words, **options)

    def get(self, cluster, *words):
        """An object or a list as parsed JSON; None when it is not there, or when the API server does not answer."""
        text = self.kubectl(cluster, "get", *words, "-o", "json", "--ignore-not-found", "--request-timeout=30s", check=False)
        return json.loads(text) if text.strip() else None

    def apply(self, cluster, *objects):
        """Server-side apply of objects, given as dictionaries or YAML text."""
        for each in objects:
            text = each if isinstance(each, str) else json.dumps(each)
            self.kubectl(cluster, "apply", "--server-side", "-f", "-", stdin=text)

    def meshctl(self, *words, **options):
        """meshctl as the operator."""
        return self.run("meshctl", *words, **options)

    def rollout(self, cluster, what, namespace, seconds=300):
        """Waits until every pod of a Deployment or DaemonSet is the current one, and ready."""
        self.kubectl(cluster, "-n", namespace, "rollout", "status", what, f"--timeout={seconds}s", timeout=seconds + 60)

    # Traffic.

    def curl(self, cluster, pod, url, *options, namespace="web"):
        """One request from a pod: (status, parsed body or text). Status 0: no answer, the text says why."""
        words = ["exec", "-n", namespace, pod, "--", "curl", "-sS", "-m", "30", "-w", "\n%{http_code}", *options, url]
        done = subprocess.run(
            ["kubectl", "--context", cluster, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        body, _, status = done.stdout.rpartition("\n")
        if not status.isdigit() or status == "000":
            return 0, done.stderr.strip()
        try:
            return int(status), json.loads(body)
        except ValueError:
            return int(status), body

    def answered(self, cluster, pod, url, condition=lambda body: True, options=()):
        """Waits until a request is answered with 200 and a body that meets the condition; returns the body."""
        last = []

        def ask():
            last[:] = [self.curl(cluster, pod, url, *options)]
            status, body = last[0]
            return body if status == 200 and condition(body) else None

        try:
            return wait_until(f"an answer from {url}", ask, every=0.2)
        except LabError as error:
            raise Failed(f"{error}; last: {last}") from None

    def load(self, cluster, pod, service="shop/checkout", **options):
        """Open-loop load on an imported service, at its address in that cluster."""
        address = self.import_address(cluster, service)
        namespace, name = service.split("/")
        host = f"{name}.{namespace}.svc.clusterset.local"
        return Load(self.folder / "bin/chaos", self[cluster], pod, f"http://{address}/", host=host, **options)

    def import_address(self, cluster, service):
        """The address that a ServiceImport has in a cluster, once it has one."""
        namespace, name = service.split("/")

        def address():
            found = self.get(cluster, "serviceimports.multicluster.x-k8s.io", name, "-n", namespace)
            return next(iter((found or {}).get("spec", {}).get("ips") or []), None)

        return wait_until(f"an address of {service} in {cluster}", address)

    # Conditions.

    def condition(self, cluster, kind, namespace, name, wanted):
        """A status condition of an object, or None."""
        found = self.get(cluster, kind, name, "-n", namespace) or {}
        conditions = found.get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == wanted), None)

    def ready_endpoints(self, service):
        """Ready endpoints of a service by cluster, as the control plane knows them."""
        services = json.loads(self.meshctl("services", "-o", "json", check=False) or "[]")
        found = [each for each in services if each["name"] == service]
        return {cluster["name"]: cluster["ready"] for cluster in found[0]["clusters"]} if found else {}

    def diagnose(self):
        """What helps to understand a failure: logs and objects are kept in the folder of the run; the last of them is returned."""
        told = []
        for name in self.clusters:
            pods = (self.get(name, "pods", "-n", SYSTEM) or {"items": []})["items"]
            for pod in (item["metadata"]["name"] for item in pods):
                words = ("-n", SYSTEM, "logs", pod, "--all-containers", "--tail=2000", *SHORT)
                text = self.kubectl(name, *words, check=False, timeout=20)
                (self.folder / f"{name}-{pod}.log").write_text(text)
                told.append(tail(f"{name}/{pod}", complaints(text)))
            kinds = "pods,services,endpointslices,serviceimports.multicluster.x-k8s.io,serviceexports.multicluster.x-k8s.io"
            text = self.kubectl(name, "get", kinds, "-A", "-o", "wide", *SHORT, check=False, timeout=20)
            events = self.kubectl(name, "get", "events", "-A", "--sort-by=.lastTimestamp", *SHORT, check=False, timeout=20)
            (self.folder / f"{name}-objects.txt").write_text(text + events)
            told.append(tail(f"{name}: pods", self.kubectl(name, "get", "pods", "-A", "-o", "wide", *SHORT, check=False, timeout=20), 40))
            told.append(tail(f"{name}: events", events, 15))
        for log in sorted(self.folder.glob("*.log")):
            if log.stem in self.processes:
                told.append(tail(log.stem, complaints(log.read_text(errors="replace"))))
        return "\n".join(told)


SHORT = ("--request-timeout=5s",)


def complaints(text):
    """Lines of a log that warn, and the last ones whatever they say."""
    lines = text.splitlines()
    return "\n".join([line for line in lines[:-3] if "WARN" in line or "ERROR" in line] + lines[-3:])


def tail(title, text, lines=8):
    """The end of a text under a title; long lines are cut."""
    return "\n".join([f"   -- {title}", *(f"      {line[:400]}" for line in text.splitlines()[-lines:])])
