"""Measured, never asserted: how fast a change is seen, and what a large cluster costs."""

import json
import statistics
import time

import apps
from world import SYSTEM, wait_until

from . import scenario
from .joining import URL


@scenario("figures: pod readiness change until the remote gateway uses it")
def readiness(world, report):
    """One pod with a readiness gate; its condition is patched, and a caller in another cluster asks until it sees it."""
    world.apply("tokyo", gated(world))
    world.apply("tokyo", apps.export("gate"))
    pod = wait_until("the pod", lambda: running(world))
    address = world.import_address("paris", "shop/gate")
    pid = world["paris"].pod_process(apps.WEB, "client-1")
    seen = []
    try:
        for turn in range(2 * world.rounds):
            ready = turn % 2 == 0
            began = time.monotonic()
            set_ready(world, pod, ready)
            patched = time.monotonic()
            wait_until("the change", lambda: answers(world, pid, address) == ready, every=0)
            seen.append((time.monotonic() - patched, time.monotonic() - began))
        after = sorted(each[0] * 1000 for each in seen)
        report.figure("readiness condition written until a remote caller sees it, p50", round(statistics.median(after)), "ms")
        report.figure("…, p99", round(after[min(len(after) - 1, int(len(after) * 0.99))]), "ms")
        report.figure("…, changes measured", len(after), "changes")
    finally:
        for kind in ("deployment", "service", "serviceexports.multicluster.x-k8s.io"):
            world.kubectl("tokyo", "delete", kind, "gate", "-n", apps.SHOP, "--ignore-not-found")


def gated(world):
    """A backend whose readiness is ours to say."""
    objects = apps.backend(world.image_name, "tokyo", name="gate", replicas=1)
    objects["items"][0]["spec"]["template"]["spec"]["readinessGates"] = [{"conditionType": "lab.test/gate"}]
    return objects


def running(world):
    """The one pod, once it runs."""
    pods = (world.get("tokyo", "pods", "-n", apps.SHOP, "-l", "app=gate") or {"items": []})["items"]
    return next((pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") == "Running"), None)


def set_ready(world, pod, ready):
    """Writes the gate's condition; the kubelet derives the pod's readiness from it."""
    status = f'{{"status":{{"conditions":[{{"type":"lab.test/gate","status":"{ready}"}}]}}}}'
    world.kubectl("tokyo", "-n", apps.SHOP, "patch", "pod", pod, "--subresource=status", "-p", status)


def answers(world, pid, address):
    """Whether a request from the client's network is answered with 200."""
    host = "Host: gate.shop.svc.clusterset.local"
    ask = ["curl", "-s", "-o", "/dev/null", "-m", "2", "-w", "%{http_code}", "-H", host, f"http://{address}/"]
    return world.run("nsenter", f"--net=/proc/{pid}/ns/net", *ask, check=False).strip() == "200"


@scenario("figures: 2,000 exported services with 20,000 endpoints in one cluster", seconds=3600)
def large(world, report):
    """Objects on the real API server, endpoints by hand: what counts is what agent and gateway hold of them."""
    before = memory(world)
    count, spaces = world.large_services, [f"large-{number}" for number in range(10)]
    try:
        world.apply("tokyo", apps.text(*map(apps.namespace, spaces)))
        began = time.monotonic()
        for number, space in enumerate(spaces):
            items = [each for index in range(number, count, 10) for each in service_with_endpoints(space, index)]
            world.kubectl("tokyo", "create", "-f", "-", stdin=apps.text(*items), timeout=900)
        report.figure(f"{3 * count} objects written by kubectl", round(time.monotonic() - began, 1), "s")
        wait_until("the agents to know them", lambda: known(world) >= count, 900, 1)
        report.figure("of the first one until the agent holds all of them", round(time.monotonic() - began, 1), "s")
        wait_until("the federation to know them", lambda: offered(world) >= count, 900, 5)
        report.figure("of the first one until the control plane offers all of them", round(time.monotonic() - began, 1), "s")
        after = memory(world)
        for component in after:
            report.figure(f"memory of the largest {component} in tokyo before", round(before[component]), "MB")
            report.figure(f"memory of the largest {component} in tokyo with {count} services × 10 endpoints", round(after[component]), "MB")
        status, _ = world.curl("paris", "client-1", URL)
        report.check(status == 200, "traffic goes on")
    finally:
        world.kubectl("tokyo", "delete", "namespace", *spaces, "--wait=false", "--ignore-not-found")
        wait_until("the federation to forget them", lambda: 0 <= offered(world) < 10, 1800, 5)


def offered(world):
    """Services of the many that the control plane knows; -1 when it does not answer."""
    listed = world.meshctl("services", "-o", "json", check=False)
    return sum(each["name"].startswith("large-") for each in json.loads(listed)) if listed else -1


def service_with_endpoints(namespace, index):
    """An exported Service without a selector and a slice with ten addresses that nobody has."""
    name = f"service-{index}"
    labels = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "lab.test"}
    addresses = [f"10.250.{(index * 10 + n) // 250}.{(index * 10 + n) % 250 + 1}" for n in range(10)]
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }
    yield {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-a", "namespace": namespace, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }
    yield apps.export(name, namespace)


def memory(world, cluster="tokyo"):
    """Resident megabytes of the largest agent and the largest gateway of a cluster."""
    largest = {}
    for component in ("agent", "gateway"):
        selector = f"app.kubernetes.io/component={component}"
        for pod in world.get(cluster, "pods", "-n", SYSTEM, "-l", selector)["items"]:
            pid = world[cluster].pod_process(SYSTEM, pod["metadata"]["name"], f"archipelago-{component}")
            status = open(f"/proc/{pid}/status", encoding="utf-8").read()
            kilobytes = int(status.split("VmRSS:")[1].split()[0])
            largest[component] = max(largest.get(component, 0), kilobytes / 1000)
    return largest


def known(world, cluster="tokyo"):
    """Services that the leading agent holds, by its metrics."""
    most = 0
    for pod in world.get(cluster, "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=agent")["items"]:
        name = pod["metadata"]["name"]
        text = world.kubectl(cluster, "get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{name}:7491/proxy/metrics", check=False)
        for line in text.splitlines():
            if line.startswith("mesh_agent_services"):
                most = max(most, int(float(line.split()[-1])))
    return most
