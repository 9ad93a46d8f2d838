"""Two versions in one federation, as during every upgrade: an earlier one, out of its own image, beside today's."""

import json

import apps
from load import summary
from older import NAME, TAG, Older
from report import Skipped
from world import DNS_ADDRESS, SYSTEM, wait_until

from . import scenario
from .joining import URL, caller, tunnel_checks
from .policies import held, shares, without_split


@scenario("an older agent and gateways under a newer control plane: all works, and they are upgraded under load", alone=True)
def older_cluster(world, report):
    older = earlier(world)
    found(world)
    join(world, "paris")
    join(world, "tokyo", older)
    serve(world)
    versions(world, report, {"paris": world.image_name, "tokyo": NAME})
    works(world, report)
    tokyo_serves(world)
    with world.load("paris", "client-1", rate=100) as load:
        join(world, "tokyo")
        tokyo_serves(world)
        result = load.stop()
    report.check(result["failed"] == 0, f"tokyo is upgraded: {summary(result)}")
    versions(world, report, {"paris": world.image_name, "tokyo": world.image_name})
    works(world, report)


@scenario("newer agents and gateways under an older control plane: all works, and it is upgraded under load", alone=True)
def older_control_plane(world, report):
    older = earlier(world)
    found(world, older)
    join(world, "paris")
    join(world, "tokyo", older)
    serve(world)
    versions(world, report, {"paris": world.image_name, "tokyo": NAME})
    works(world, report)
    works(world, report, older.environment)
    tokyo_serves(world)
    with world.load("paris", "client-1", rate=100) as load:
        world.end("control-plane")
        world.start("control-plane", *world.blocks.command("control-plane"))
        wait_until("the newer control plane", lambda: ready_gateways(world) == 3)
        works(world, report)
        result = load.stop()
    report.check(result["failed"] == 0, f"the control plane is upgraded on its data: {summary(result)}")


def earlier(world):
    """The earlier version, on every node."""
    if not world.older_image:
        raise Skipped("it needs an earlier version: --older REVISION builds one, --older-image ARCHIVE names its image")
    older = Older(world.older_image, world.folder)
    for cluster in world.clusters.values():
        cluster.load(older.image)
    return older


def found(world, version=None):
    """A federation whose control plane is of some version."""
    environment = version.environment if version else {}
    world.blocks.run("found", environment=environment)
    world.start("control-plane", *world.blocks.command("control-plane"), environment=environment)
    wait_until("the control plane", lambda: world.meshctl("status", check=False, environment=environment))


def join(world, cluster, version=None):
    """Installs agent and gateways by the manifests of their own version, or replaces those that are there."""
    words = ("--region", f"region-{cluster}", "--policies", "--set", f"dns.clusterIP={DNS_ADDRESS}", "--set", "coredns.manage=true")
    environment = {}
    if version:
        words, environment = (*words, "--set", f"image.tag={TAG}"), version.environment
    text = world.meshctl("cluster", "join", cluster, *words, environment=environment)
    world.kubectl(cluster, "apply", "--server-side", "--field-manager=archipelago", "-f", "-", stdin=text)
    world.rollout(cluster, "deployment/archipelago-agent", SYSTEM)
    world.rollout(cluster, "daemonset/archipelago-gateway", SYSTEM)


def serve(world):
    """checkout in both clusters, and somebody who calls it."""
    for name in world.clusters:
        world.apply(name, apps.namespace(apps.SHOP), apps.namespace(apps.WEB))
        world.apply(name, apps.client(world[name].node_name(1), "client-1"))
        world.apply(name, apps.backend(world.image_name, name), apps.export())
    for name in world.clusters:
        world.rollout(name, "deployment/checkout", apps.SHOP)
    wait_until("both clusters to offer checkout", lambda: world.ready_endpoints("shop/checkout") == {"paris": 2, "tokyo": 2}, every=0.5)
    for name in world.clusters:
        world.answered(name, "client-1", URL)


def versions(world, report, wanted):
    """What runs is what is meant to."""
    for cluster, image in wanted.items():
        pods = world.get(cluster, "pods", "-n", SYSTEM)["items"]
        running = {container["image"] for pod in pods if "deletionTimestamp" not in pod["metadata"] for container in pod["spec"]["containers"]}
        short = {name.removeprefix("docker.io/library/") for name in running}
        report.check(short == {image.removeprefix("docker.io/library/")}, f"agents and gateways of {cluster} run {', '.join(sorted(short))}")


def tokyo_serves(world):
    """Every request goes to tokyo, as long as it answers."""
    world.meshctl("switch", "shop/checkout", "--to", "tokyo")
    wait_until("tokyo alone", lambda: shares(world, 10) == {"tokyo": 10}, every=0.5)


def works(world, report, environment=None):
    """What a federation is for: both ways, with identities, policies of a cluster and of an operator, and a status that names all."""
    for source, target in (("paris", "tokyo"), ("tokyo", "paris")):
        world.meshctl("switch", "shop/checkout", "--to", target, environment=environment)
        wait_until(f"{target} alone", lambda: shares(world, 10, source) == {target: 10}, every=0.5)
        body = world.answered(source, "client-1", URL, lambda body: body.get("caller"))
        report.check(body["caller"] == caller(source), f"{source} is answered by {body['cluster']}, which knows {body['caller']}")
    with world.load("paris", "client-1", rate=100) as load:
        for target in ("tokyo", "paris", "tokyo"):
            world.meshctl("switch", "shop/checkout", "--to", target, environment=environment)
            wait_until(f"{target} alone", lambda: shares(world, 10) == {target: 10}, every=0.5)
        result = load.stop()
    world.meshctl("split", "clear", "shop/checkout", environment=environment)
    report.check(result["failed"] == 0, f"switched to and fro: {summary(result)}")
    try:
        world.apply("paris", apps.split({"tokyo": 1}))
        programmed = wait_until("Programmed", lambda: held(world, "Programmed"))
        report.check(True, f"a TrafficSplit of paris is Programmed: {programmed['message']}")
        wait_until("tokyo alone", lambda: shares(world, 10) == {"tokyo": 10}, every=0.5)
    finally:
        without_split(world)
    for each in tunnel_checks(world):
        # A version that cannot be asked to send requests is named, and answers those of others.
        report.check(each["result"] != "error", " ".join([each["description"], each.get("error", "")]).strip())
    wait_until("every gateway to be ready", lambda: ready_gateways(world, environment) == 3)
    report.check(True, "meshctl status names 3 gateways that run the current revision")


def ready_gateways(world, environment=None):
    """How many gateways run the current revision and have no complaint."""
    status = json.loads(world.meshctl("status", "-o", "json", check=False, environment=environment) or '{"clusters": []}')
    gateways = [gateway for cluster in status["clusters"] for gateway in cluster["gateways"]]
    fine = [each for each in gateways if each["state"] == "synced" and each["revision"] == status["revision"] and not each.get("problems")]
    return len(fine)
