"""Uninstalling, which ends every run."""

import apps
from world import SYSTEM, wait_until

from . import scenario
from .policies import serve_everywhere

# Kinds whose objects of ours must be gone: by label, since their names are partly derived.
KINDS = (
    "deployments,daemonsets,statefulsets,services,endpointslices,configmaps,secrets,serviceaccounts,roles,rolebindings,"
    "leases,networkpolicies,poddisruptionbudgets"
)
CLUSTER_KINDS = "clusterroles,clusterrolebindings"
OURS = ("app.kubernetes.io/name=archipelago", "app.kubernetes.io/managed-by=archipelago")


@scenario("uninstall leaves no object behind, and the others go on")
def uninstall(world, report):
    serve_everywhere(world)
    last = list(world.clusters)[-1]
    world.blocks.run("leave", environment={"CLUSTER": last})
    wait_until(f"nothing of ours in {last}", lambda: not left_behind(world, last), every=1)
    report.check(True, f"no object of ours is left in {last}")
    imports = world.get(last, "serviceimports.multicluster.x-k8s.io", "-A")
    report.check(not (imports or {}).get("items"), "and no ServiceImport")
    report.check(world.get(last, "service", "checkout", "-n", apps.SHOP) is not None, "what is not ours is still there")
    body = world.answered("paris", "client-1", "http://checkout.shop.svc.clusterset.local/")
    report.check(body["cluster"] != last, f"paris is answered by {body['cluster']}")
    of_kinds = ("get", "customresourcedefinitions,validatingadmissionpolicies,validatingadmissionpolicybindings", "-o", "name")
    kinds = world.kubectl(last, *of_kinds)
    report.check("archipelago.dev" in kinds and "multicluster.x-k8s.io" in kinds, "the kinds are kept, as nobody said otherwise")
    world.blocks.run("remove-crds", environment={"CLUSTER": last})
    kinds = world.kubectl(last, *of_kinds)
    report.check("archipelago" not in kinds, "with the kinds removed, none of ours is left either, nor the policy about them")


def left_behind(world, cluster):
    """Objects of ours that are still in a cluster."""
    found = []
    for label in OURS:
        for kinds, where in ((KINDS, ["-A"]), (CLUSTER_KINDS, [])):
            found += world.kubectl(cluster, "get", kinds, *where, "-l", label, "-o", "name", check=False).split()
    if world.get(cluster, "namespace", SYSTEM):
        found.append(f"namespace/{SYSTEM}")
    return found
