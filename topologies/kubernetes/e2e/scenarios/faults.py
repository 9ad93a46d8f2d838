"""Things break under load. Every request is idempotent; none may fail."""

import os
import signal
import time

import apps
from load import summary
from world import SYSTEM, LabError, wait_until

from . import scenario
from .policies import serve_everywhere, shares


def gateway_pods(world, cluster):
    """Gateway pods of a cluster by node."""
    selector = "app.kubernetes.io/component=gateway"
    pods = world.get(cluster, "pods", "-n", SYSTEM, "-l", selector)["items"]
    return {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in pods}


def prefer(world, *order):
    """checkout is served by these clusters, in this order, for every caller."""
    tiers = "\n".join(f"    - {{ clusters: [{cluster}] }}" for cluster in order)
    policy = f"""\
apiVersion: archipelago.dev/v1alpha1
kind: FailoverPolicy
metadata: {{ name: checkout, namespace: shop }}
spec:
  service: checkout
  order:
{tiers}
  failback: {{ after: 2s, mode: auto }}
"""
    world.meshctl("apply", "-f", "-", stdin=policy)
    wait_until(f"{order[0]} to serve", lambda: shares(world, 5) == {order[0]: 5}, every=0.5)


def forget(world):
    """No preference any more."""
    world.meshctl("delete", "FailoverPolicy", "checkout", "-n", apps.SHOP, check=False)


def until_answered_by(world, cluster):
    """Waits until requests are answered by a cluster again."""
    wait_until(f"{cluster} to serve", lambda: shares(world, 5) == {cluster: 5}, every=0.5)


@scenario("the serving gateway crashes, and its pod is deleted, under load: no request fails")
def gateway_killed(world, report):
    serve_everywhere(world)
    prefer(world, "tokyo", "paris")
    with world.load("paris", "client-1", rate=100) as load:
        for pod in gateway_pods(world, "tokyo").values():
            crash(world, "tokyo", pod)
        until_answered_by(world, "tokyo")
        for pod in gateway_pods(world, "tokyo").values():
            world.kubectl("tokyo", "-n", SYSTEM, "delete", "pod", pod, "--grace-period=0", "--force")
        world.rollout("tokyo", "daemonset/archipelago-gateway", SYSTEM)
        until_answered_by(world, "tokyo")
        result = load.stop()
    forget(world)
    report.check(result["failed"] == 0, summary(result))


def crash(world, cluster, pod):
    """kill -9 of a gateway's process; returns once its kubelet has started it again."""

    def process():
        try:
            return world[cluster].pod_process(SYSTEM, pod, "archipelago-gateway")
        except LabError:
            return None

    before = process()
    os.kill(before, signal.SIGKILL)
    wait_until("the gateway to start again", lambda: process() not in (before, None))


@scenario("kubelet and containerd of a serving node die: no request fails")
def runtime_killed(world, report):
    serve_everywhere(world)
    prefer(world, "tokyo", "paris")
    tokyo = world["tokyo"]
    with world.load("paris", "client-1", rate=100) as load:
        try:
            for process in ("1-kubelet", "1-containerd"):
                tokyo.stop(process)
            report.check(shares(world, 20).get("nobody", 0) == 0, "requests are answered without them")
            wait_until("the node to be NotReady", lambda: 0 <= tokyo.ready_nodes() < len(tokyo.nodes), every=0.5)
            report.check(shares(world, 20).get("nobody", 0) == 0, "and once the cluster gave the node up")
        finally:
            for process in ("1-containerd", "1-kubelet"):
                tokyo.start(process)
        wait_until("the node to be Ready", lambda: tokyo.ready_nodes() == len(tokyo.nodes), every=0.5)
        until_answered_by(world, "tokyo")
        result = load.stop()
    forget(world)
    report.check(result["failed"] == 0, summary(result))


@scenario("a whole cluster loses its power: no request fails, and it comes back")
def cluster_killed(world, report):
    serve_everywhere(world)
    prefer(world, "tokyo", "paris")
    tokyo = world["tokyo"]
    with world.load("paris", "client-1", rate=100) as load:
        try:
            for number in tokyo.nodes:
                tokyo.kill_node(number)
            until_answered_by(world, "paris")
            report.check(True, "another cluster answers")
        finally:
            for number in tokyo.nodes:
                tokyo.start_node(number)
        began = time.monotonic()
        tokyo.wait_for_api()
        wait_until("nodes of tokyo", lambda: tokyo.ready_nodes() == len(tokyo.nodes))
        world.rollout("tokyo", "daemonset/archipelago-gateway", SYSTEM)
        until_answered_by(world, "tokyo")
        report.figure("power back until the cluster serves again", round(time.monotonic() - began, 1), "s")
        result = load.stop()
    forget(world)
    report.check(result["failed"] == 0, summary(result))


@scenario("links between clusters are cut by nftables: no request fails, and they heal")
def links_cut(world, report):
    serve_everywhere(world)
    prefer(world, "tokyo", "paris")
    paris, tokyo = world["paris"], world["tokyo"]
    with world.load("paris", "client-1", rate=100) as load:
        try:
            for number in paris.nodes:
                paris.cut(number, [tokyo.address(other) for other in tokyo.nodes])
            until_answered_by(world, "paris")
            report.check(True, "the own cluster answers while the other cannot be reached")
        finally:
            for number in paris.nodes:
                paris.heal(number)
        until_answered_by(world, "tokyo")
        result = load.stop()
    forget(world)
    report.check(result["failed"] == 0, summary(result))


@scenario("the API server is away: traffic and failover go on, and everything converges afterwards")
def api_server_away(world, report):
    serve_everywhere(world)
    prefer(world, "tokyo", "paris")
    paris, tokyo = world["paris"], world["tokyo"]
    address = world.import_address("paris", "shop/checkout")
    pods = world.get("tokyo", "pods", "-n", apps.SHOP, "-l", "app=checkout")["items"]
    with world.load("paris", "client-1", rate=100) as load:
        began = time.monotonic()
        try:
            for cluster in (paris, tokyo):
                cluster.stop("1-apiserver")
            # Meanwhile what serves goes away, and nobody's API server can say so.
            for pod in pods:
                tokyo.kill_pod(apps.SHOP, pod["metadata"]["name"])
            pid = paris.pod_process(apps.WEB, "client-1")
            ask = f"curl -sS -m 30 -H 'Host: checkout.shop.svc.clusterset.local' http://{address}/"
            answer = world.run("nsenter", f"--net=/proc/{pid}/ns/net", "sh", "-c", ask)
            report.check('"cluster"' in answer, f"requests are answered with both API servers gone: {answer.strip()}")
            wait_until("a while without API servers", lambda: time.monotonic() - began > world.api_away_seconds, every=1)
        finally:
            for cluster in (paris, tokyo):
                cluster.start("1-apiserver")
        for cluster in (paris, tokyo):
            cluster.wait_for_api()
        report.note(f"API servers were away for {time.monotonic() - began:.0f} s")
        until_answered_by(world, "tokyo")
        world.kubectl("paris", "scale", "deployment/checkout", "-n", apps.SHOP, "--replicas=1")
        wait_until("the change to be seen", lambda: ready(world, "paris") == 1, every=0.5)
        report.check(True, "a change made afterwards arrives")
        world.kubectl("paris", "scale", "deployment/checkout", "-n", apps.SHOP, "--replicas=2")
        result = load.stop()
    forget(world)
    report.check(result["failed"] == 0, summary(result))


@scenario("a namespace is deleted under load: its import goes, others serve on")
def namespace_deleted(world, report):
    serve_everywhere(world)
    prefer(world, "tokyo", "paris")
    with world.load("paris", "client-1", rate=100) as load:
        world.kubectl("tokyo", "delete", "namespace", apps.SHOP, "--wait=true", timeout=180)
        until_answered_by(world, "paris")
        world.apply("tokyo", apps.namespace(apps.SHOP))
        world.apply("tokyo", apps.backend(world.image_name, "tokyo"), apps.export())
        until_answered_by(world, "tokyo")
        result = load.stop()
    forget(world)
    report.check(result["failed"] == 0, summary(result))


@scenario("the leading agent is deleted: its successor goes on, and traffic never noticed")
def agent_failover(world, report):
    serve_everywhere(world)
    with world.load("paris", "client-1", rate=100) as load:
        leader = holder(world)
        world.kubectl("paris", "-n", SYSTEM, "delete", "pod", leader.split("_")[0], "--grace-period=0", "--force")
        began = time.monotonic()
        wait_until("another leader", lambda: holder(world) not in (leader, ""), every=0.2)
        report.figure("leading agent gone until another leads", round(time.monotonic() - began, 1), "s")
        world.kubectl("paris", "scale", "deployment/checkout", "-n", apps.SHOP, "--replicas=1")
        wait_until("the change to be seen", lambda: ready(world, "paris") == 1, every=0.5)
        world.kubectl("paris", "scale", "deployment/checkout", "-n", apps.SHOP, "--replicas=2")
        report.check(True, "the successor reports what changes")
        world.rollout("paris", "deployment/archipelago-agent", SYSTEM)
        result = load.stop()
    report.check(result["failed"] == 0, summary(result))


def holder(world, cluster="paris"):
    """The replica that holds the agents' Lease."""
    return (world.get(cluster, "lease", "archipelago-agent", "-n", SYSTEM) or {}).get("spec", {}).get("holderIdentity", "")


def ready(world, cluster):
    """Ready endpoints of checkout in a cluster, as the control plane knows them."""
    return world.ready_endpoints("shop/checkout").get(cluster)
