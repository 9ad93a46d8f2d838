"""Replacing what runs, under load."""

import json

import apps
from load import summary
from world import SYSTEM, wait_until

from . import scenario
from .faults import forget, prefer
from .joining import URL
from .policies import serve_everywhere


@scenario("rolling upgrade of every gateway under load: no request fails, also at the caller's own node")
def rolling_upgrade(world, report):
    serve_everywhere(world)
    with world.load("paris", "client-1", rate=100) as load:
        for name in world.clusters:
            before = pods(world, name, "gateway")
            world.kubectl(name, "-n", SYSTEM, "rollout", "restart", "daemonset/archipelago-gateway")
            world.rollout(name, "daemonset/archipelago-gateway", SYSTEM)
            report.check(not before & pods(world, name, "gateway"), f"every gateway of {name} is a new one")
        before = pods(world, "tokyo", "gateway")
        world.blocks.run("upgrade")
        report.check(not before & pods(world, "tokyo", "gateway"), "and so is every one after the documented upgrade")
        result = load.stop()
    report.check(result["failed"] == 0, summary(result))


@scenario("agents are replaced under load: nobody notices")
def agents_replaced(world, report):
    serve_everywhere(world)
    with world.load("paris", "client-1", rate=100) as load:
        for name in world.clusters:
            world.kubectl(name, "-n", SYSTEM, "rollout", "restart", "deployment/archipelago-agent")
        for name in world.clusters:
            world.rollout(name, "deployment/archipelago-agent", SYSTEM)
        result = load.stop()
    report.check(result["failed"] == 0, summary(result))


@scenario("a Service changes its selector, port and type under load: no request fails")
def service_changes(world, report):
    serve_everywhere(world)
    world.apply("tokyo", apps.backend(world.image_name, "tokyo", version="v2", service=False))
    world.rollout("tokyo", "deployment/checkout-v2", apps.SHOP)
    try:
        with world.load("paris", "client-1", rate=100) as load:
            prefer(world, "tokyo", "paris")
            for change in (
                {"selector": {"app": "checkout", "app.kubernetes.io/version": "v2"}},
                {"type": "NodePort"},
                {"selector": {"app": "checkout", "app.kubernetes.io/version": "v1"}, "type": "ClusterIP"},
            ):
                patch = json.dumps({"spec": change})
                world.kubectl("tokyo", "-n", apps.SHOP, "patch", "service", "checkout", "--type=merge", "-p", patch)
                wanted = change.get("selector", {}).get("app.kubernetes.io/version")
                if wanted:
                    wait_until(f"{wanted} alone", lambda: versions(world) == {wanted}, every=0.5)
            result = load.stop()
        report.check(result["failed"] == 0, summary(result))
    finally:
        forget(world)
        remove = '[{"op": "remove", "path": "/spec/selector/app.kubernetes.io~1version"}]'
        world.kubectl("tokyo", "-n", apps.SHOP, "patch", "service", "checkout", "--type=json", "-p", remove, check=False)
        world.kubectl("tokyo", "-n", apps.SHOP, "delete", "deployment", "checkout-v2", "--ignore-not-found")


def versions(world):
    """Versions that answer ten requests."""
    script = f"for i in $(seq 10); do curl -sS -m 30 {URL}; echo; done"
    out = world.kubectl("paris", "exec", "-n", apps.WEB, "client-1", "--", "sh", "-c", script, check=False)
    return {json.loads(line).get("version") for line in out.splitlines() if line.startswith("{")}


def pods(world, cluster, component):
    """Names of the pods of one of our components."""
    selector = f"app.kubernetes.io/component={component}"
    listed = world.get(cluster, "pods", "-n", SYSTEM, "-l", selector)["items"]
    return {pod["metadata"]["name"] for pod in listed if "deletionTimestamp" not in pod["metadata"]}
