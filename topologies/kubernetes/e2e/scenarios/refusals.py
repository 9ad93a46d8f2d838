"""Who may not, and what happens to those who try."""

import json

import apps
from world import CONTROL_PLANE, SYSTEM, wait_until

from . import scenario
from .policies import serve_everywhere

# Ports of a gateway on the network of its node that pods have no business with: metrics and health.
NODE_LOCAL = {"metrics": 15090, "health": 15021}


@scenario("a pod reaches the gateway of its own node, and of no other")
def other_node(world, report):
    serve_everywhere(world)
    paris = world["paris"]
    port = capture_port(world, "paris", "checkout")
    host = ["-H", "Host: checkout.shop.svc.clusterset.local"]
    status, body = world.curl("paris", "client-1", f"http://{paris.address(1)}:{port}/", *host)
    report.check(status == 200, f"the own node's gateway answers at its listen port {port} ({status} {body})")
    if len(paris.nodes) > 1:
        status, said = world.curl("paris", "client-1", f"http://{paris.address(2)}:{port}/", *host)
        report.check(status == 0, f"another node's gateway refuses: {said}")
    for name in (name for name in world.clusters if name != "paris"):
        elsewhere = capture_port(world, name, "checkout")
        status, said = world.curl("paris", "client-1", f"http://{world[name].address(1)}:{elsewhere}/", *host)
        report.check(status == 0, f"a gateway of {name} refuses: {said}")


@scenario("a pod that sends another pod's source address gets no answer")
def spoofed_source(world, report):
    world.apply("paris", apps.client(world["paris"].node_name(1), "victim", "admin"))
    victim = wait_until("the victim's address", lambda: pod_address(world, "victim"))
    address = world.import_address("paris", "shop/checkout")
    pid = world["paris"].pod_process(apps.WEB, "client-1")
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net"]
    # What no pod may do to itself without NET_ADMIN, and a compromised node network could.
    world.run(*inside, "ip", "address", "add", f"{victim}/32", "dev", "eth0")
    try:
        ask = ["curl", "-sS", "-m", "3", "--interface", victim, "-H", "Host: checkout.shop.svc.clusterset.local"]
        answer = world.run(*inside, *ask, f"http://{address}/", check=False)
        report.check(answer == "", f"no answer under the victim's address {victim} ({answer!r})")
    finally:
        world.run(*inside, "ip", "address", "del", f"{victim}/32", "dev", "eth0")
        world.kubectl("paris", "delete", "pod", "-n", apps.WEB, "victim", "--wait=true")


@scenario("metrics, health and admin of a gateway are not for pods")
def node_local_ports(world, report):
    node = world["paris"].address(1)
    for what, port in NODE_LOCAL.items():
        status, said = world.curl("paris", "client-1", f"http://{node}:{port}/metrics", "--connect-timeout", "3")
        report.check(status == 0, f"{what} at {port}: {said}")
    agent = world.kubectl("paris", "get", "service", "archipelago-agent", "-n", SYSTEM, "-o", "jsonpath={.spec.clusterIP}")
    grpc = ["-k", "--http2", "-X", "POST", "-H", "content-type: application/grpc", "-D", "-"]
    for what, url in {
        "the agent": f"https://{agent}:7410/archipelago.v1.LocalDiscovery/Follow",
        "the control plane": f"https://{CONTROL_PLANE}/archipelago.v1.Fleet/Status",
    }.items():
        status, said = world.curl("paris", "client-1", url, *grpc)
        refused = status == 0 or any(f"grpc-status: {code}" in str(said) for code in (7, 16))
        report.check(refused, f"{what} wants a certificate: {' '.join(str(said).split())[:160]}")


@scenario("what is not exported is not there for other clusters, not even by name of a cluster that does export it")
def not_exported(world, report):
    world.apply("tokyo", apps.backend(world.image_name, "tokyo", name="secret", replicas=1))
    world.rollout("tokyo", "deployment/secret", apps.SHOP)
    try:
        status, said = world.curl("paris", "client-1", "http://secret.shop.svc.clusterset.local/")
        report.check(status == 0 and "resolve" in said.lower(), f"no such name: {said}")
        address = world.import_address("paris", "shop/checkout")
        lie = ["-H", "Host: secret.shop.svc.clusterset.local"]
        status, body = world.curl("paris", "client-1", f"http://{address}/", *lie)
        named = body.get("service") if isinstance(body, dict) else body
        report.check(named == "shop/checkout", f"another Host at an import's address reaches that import only: {named}")
    finally:
        for kind in ("deployment", "service"):
            world.kubectl("tokyo", "delete", kind, "secret", "-n", apps.SHOP, "--ignore-not-found")


@scenario("a stolen ServiceAccount of the agent can do what docs/kubernetes.md says, and nothing else")
def stolen_account(world, report):
    account = f"system:serviceaccount:{SYSTEM}:archipelago-agent"

    def may(verb, resource, *more):
        words = ["auth", "can-i", verb, resource, f"--as={account}", *more]
        return world.kubectl("paris", *words, check=False).strip() == "yes"

    denied = [
        ("get", "secrets", "-n", apps.SHOP),
        ("list", "secrets", "-n", SYSTEM),
        ("get", "secrets/archipelago-join", "-n", SYSTEM),
        ("create", "secrets", "-n", SYSTEM),
        ("create", "pods", "-n", apps.SHOP),
        ("create", "pods/exec", "-n", apps.SHOP),
        ("patch", "deployments.apps", "-n", apps.SHOP),
        ("create", "serviceaccounts/token", "-n", apps.SHOP),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io",),
        ("impersonate", "users",),
        ("patch", "trafficsplits.archipelago.dev", "-n", apps.SHOP),
        ("patch", "serviceexports.multicluster.x-k8s.io", "-n", apps.SHOP),
    ]
    wrong = [" ".join(each) for each in denied if may(*each)]
    report.check(not wrong, f"{len(denied)} things it may not do are denied (allowed: {wrong})")
    allowed = [("list", "pods", "-A"), ("create", "tokenreviews.authentication.k8s.io"), ("patch", "services", "-n", apps.SHOP)]
    wrong = [" ".join(each) for each in allowed if not may(*each)]
    report.check(not wrong, f"and what the document says it can do, it can ({wrong})")
    account = f"system:serviceaccount:{SYSTEM}:archipelago-gateway"
    listed = world.kubectl("paris", "auth", "can-i", "list", "pods", "-A", f"--as={account}", check=False).strip()
    report.check(listed == "no", "a gateway's account may not even list pods")


@scenario("a join token works once, and a gateway's proof only in its own cluster")
def tokens(world, report):
    listed = json.loads(world.meshctl("token", "list", "-o", "json"))
    used = [token for token in listed if token.get("used")] if isinstance(listed, list) else []
    report.note(f"{len(used)} of {len(listed)} tokens were used")
    audience = "archipelago/mesh.example/paris"
    token = world.kubectl("tokyo", "-n", SYSTEM, "create", "token", "archipelago-gateway", f"--audience={audience}").strip()
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": [audience]}}
    answer = json.loads(world.kubectl("paris", "create", "-f", "-", "-o", "json", stdin=json.dumps(review)))
    report.check(not answer["status"].get("authenticated"), "a token of tokyo's API server is none to paris, whatever its audience")


def capture_port(world, cluster, name):
    """The listen port of an import at the gateways of a cluster, from the slices of its derived Service."""
    selector = f"multicluster.kubernetes.io/service-name={name}"
    service = world.get(cluster, "services", "-n", apps.SHOP, "-l", selector)["items"][0]["metadata"]["name"]
    slices = world.get(cluster, "endpointslices", "-n", apps.SHOP, "-l", f"kubernetes.io/service-name={service}")["items"]
    return slices[0]["ports"][0]["port"]


def pod_address(world, name):
    """The address of a running pod in the clients' namespace."""
    pod = world.get("paris", "pod", name, "-n", apps.WEB) or {"status": {}}
    return pod["status"].get("podIP") if pod["status"].get("phase") == "Running" else None


