"""From nothing to the first answer from another cluster, by the commands of docs/kubernetes.md."""

import json
import time

import apps
from world import wait_until

from . import scenario

URL = "http://checkout.shop.svc.clusterset.local/"
TRUST_DOMAIN = "mesh.example"


def caller(cluster, account="frontend"):
    """The identity of the client pods."""
    return f"spiffe://{TRUST_DOMAIN}/cluster/{cluster}/ns/{apps.WEB}/sa/{account}"


@scenario("install, join and export as documented; a pod calls another cluster by name", always=True)
def first_answer(world, report):
    began = time.monotonic()
    report.note(world.blocks.run("found").strip().replace("\n", "; ") or "founded")
    world.start("control-plane", *world.blocks.command("control-plane"))
    wait_until("the control plane", lambda: world.meshctl("status", check=False))
    for name in world.clusters:
        began_cluster = time.monotonic()
        world.blocks.run(f"join-{name}" if name in ("paris", "tokyo") else "join-more", environment={"CLUSTER": name})
        world.blocks.run("wait", environment={"CLUSTER": name})
        report.note(f"{name} joined after {time.monotonic() - began_cluster:.1f} s")
    joined = time.monotonic()
    for name in world.clusters:
        world.apply(name, apps.namespace(apps.SHOP), apps.namespace(apps.WEB))
        world.apply(name, *(apps.client(world[name].node_name(n), pod_name(n)) for n in world[name].nodes))
    world.apply("tokyo", apps.backend(world.image_name, "tokyo"))
    world.blocks.run("export")
    body = world.answered("paris", "client-1", URL)
    report.figure("install to first cross-cluster answer", round(time.monotonic() - began, 1), "s")
    world.blocks.run("call")
    report.figure("of these, after all clusters had joined", round(time.monotonic() - joined, 1), "s")
    commands = world.blocks.count("join-tokyo", "wait")
    report.figure("commands per cluster", commands, "commands")
    report.check(commands <= 5, f"a cluster joins with at most five commands ({commands})")
    report.check(body["cluster"] == "tokyo", f"a pod of paris is answered by {body['instance']} in {body['cluster']}")
    body = world.answered("paris", "client-1", URL, lambda body: body.get("caller"))
    report.check(body["caller"] == caller("paris"), f"the answer names its caller: {body['caller']}")


@scenario("every node's pods have a gateway of their own, and names resolve as specified")
def names(world, report):
    for number in world["paris"].nodes:
        body = world.answered("paris", pod_name(number), URL)
        report.check(body["cluster"] == "tokyo", f"a pod on {world['paris'].node_name(number)} is answered")
    ip = world.import_address("paris", "shop/checkout")

    def dig(*words):
        return world.kubectl("paris", "exec", "-n", apps.WEB, "client-1", "--", "dig", "+short", "+time=10", *words).split("\n")

    name = "checkout.shop.svc.clusterset.local"
    report.check(ip in dig(name), f"{name} is the import's address {ip}")
    records = [line for line in dig(f"_http._tcp.{name}", "SRV") if line]
    report.check(len(records) == 1 and records[0].endswith(f" 80 {name}."), f"its SRV record is {records}")
    report.check('"1.0.0"' in dig("dns-version.clusterset.local", "TXT"), "dns-version.clusterset.local is 1.0.0")
    report.check(not any(dig(f"tokyo.{name}")), f"tokyo.{name} does not exist, as the specification demands")
    own = dig("kube-dns.kube-system.svc.cluster.local")
    report.check(world["paris"].service_address(10) in own, "names of the own cluster resolve as before")
    derived = world.get("paris", "services", "-n", apps.SHOP, "-l", "multicluster.kubernetes.io/service-name=checkout")
    derived = derived["items"][0]["metadata"]["name"]
    status, body = world.curl("paris", "client-1", f"http://{derived}.shop.svc.cluster.local/")
    report.check(status == 200, f"{derived}.shop.svc.cluster.local, the Service behind the import, answers too ({body})")


@scenario("identity: a hostNetwork pod is nobody, another ServiceAccount is another caller, a lie is removed")
def callers(world, report):
    node = world["paris"].node_name(1)
    world.apply("paris", apps.client(node, "other", "batch"), apps.client(node, "on-host", host_network=True))
    body = world.answered("paris", "other", URL, lambda body: body.get("caller"))
    report.check(body["caller"] == caller("paris", "batch"), f"another ServiceAccount: {body['caller']}")
    lie = f"x-forwarded-client-cert: URI={caller('paris', 'admin')}"
    body = world.answered("paris", "other", URL, options=["-H", lie])
    report.check(body["caller"] == caller("paris", "batch"), f"who claims to be somebody else is called {body['caller']}")
    body = world.answered("paris", "on-host", URL)
    report.check(body["caller"] is None, f"a pod on the host's network is nobody ({body['caller']})")
    world.kubectl("paris", "delete", "pod", "-n", apps.WEB, "other", "on-host", "--wait=true")


@scenario("meshctl check: every gateway's own requests come back through each of its tunnels")
def checked(world, report):
    def fine():
        found = tunnel_checks(world)
        return found if all(each["result"] == "success" for each in found) else None

    # A busy machine may need longer for one than a gateway waits.
    found = wait_until("nothing to be wrong with tunnels", fine, every=1)
    for source in world.clusters:
        for target in (name for name in world.clusters if name != source):
            answered = [each for each in found if each["description"].startswith(f"requests of {source} are answered by {target}")]
            report.check(len(answered) == 1, answered[0]["description"] if answered else f"nothing is said of requests from {source} to {target}")


def tunnel_checks(world, environment=None):
    """What `meshctl check` says of tunnels, once nothing is broken."""
    words = ("check", "--wait", "4m", "-o", "json")
    categories = json.loads(world.meshctl(*words, environment=environment))["categories"]
    return next(each["checks"] for each in categories if each["categoryName"] == "tunnels")


def pod_name(number):
    """The client pod on a node."""
    return f"client-{number}"

