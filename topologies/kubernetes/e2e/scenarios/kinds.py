"""Kinds of a newer version are there already."""

import copy
import json

import apps
from load import summary
from world import Failed, wait_until

from . import scenario
from .policies import held, serve_everywhere, shares, without_split

OURS = ("trafficsplits.archipelago.dev", "failoverpolicies.archipelago.dev")
MCS = ("serviceimports.multicluster.x-k8s.io", "serviceexports.multicluster.x-k8s.io")
POLICY = "archipelago-kinds-never-older"
# A version and a field that are not there yet.
LATER, FIELD = "v9", "fromLater"


@scenario("kinds of a newer version are not replaced by an installation, it says so, and everything works")
def newer_kinds(world, report):
    serve_everywhere(world)
    before = {name: world.get("paris", "customresourcedefinition", name) for name in (*OURS, *MCS)}
    try:
        with world.load("paris", "client-1", rate=100) as load:
            apply_as(world, "archipelago", *(newer(before[name]) for name in OURS))
            # These come from somebody else, and no policy of ours was there when they did.
            world.kubectl("paris", "delete", "validatingadmissionpolicybinding", POLICY)
            apply_as(world, "somebody-else", *(newer(before[name]) for name in MCS))
            world.kubectl("paris", "apply", "--server-side", "--field-manager=archipelago", "-f", "-", stdin=binding(world))
            wait_until("the policy to be in force", lambda: "is not replaced by" in refusal(world, before[OURS[0]]))
            said = installed_again(world)
            for name in OURS:
                report.check(f"kind {name} is here in version" in said, f"{name}: the installation says that it is older")
            conflicts = said.count("Apply failed with") == len(MCS) and 'with "somebody-else"' in said
            report.check(conflicts, f"{' and '.join(MCS)}: it says that they are somebody else's")
            for name in (*OURS, *MCS):
                now = world.get("paris", "customresourcedefinition", name)
                report.check(has_later(now), f"{name} is as it was: {LATER} is served, with its fields")
            works(world, report)
            result = load.stop()
        report.check(result["failed"] == 0, summary(result))
    finally:
        without_split(world)
        world.kubectl("paris", "delete", "validatingadmissionpolicybinding", POLICY, "--ignore-not-found")
        wait_until("the policy to be gone", lambda: restored(world, before))
        world.kubectl("paris", "apply", "--server-side", "--field-manager=archipelago", "-f", "-", stdin=binding(world))


def works(world, report):
    """What an agent of today does with kinds of tomorrow."""
    split = apps.split({"tokyo": 1}) | {"apiVersion": f"archipelago.dev/{LATER}"}
    world.apply("paris", split)
    programmed = wait_until("Programmed", lambda: held(world, "Programmed"))
    report.check(True, f"an object of {LATER} is Programmed: {programmed['message']}")
    wait_until("tokyo alone", lambda: shares(world, 10) == {"tokyo": 10}, every=0.5)
    report.check(True, "and traffic follows it")
    split["spec"][FIELD] = "what only a later version knows"
    world.apply("paris", split)
    refused = wait_until("a refusal", lambda: not_accepted(world))
    report.check(FIELD in refused["message"], f"a field that the federation does not know is named: {refused['message']}")
    kept = world.get("paris", OURS[0], "checkout", "-n", apps.SHOP)
    report.check(FIELD in kept["spec"], "and stays in the object")


def not_accepted(world):
    """The condition that says why the object is not taken."""
    found = world.condition("paris", OURS[0], apps.SHOP, "checkout", "Accepted")
    return found if found and found["status"] == "False" else None


def newer(definition):
    """The definition as a later version may have it: one more version that is served, one more field everywhere."""
    later = bare(definition)
    labels = later["metadata"]["labels"]
    for label, version in (("archipelago.dev/crd-revision", "999"), ("multicluster.x-k8s.io/release-version", "v9.0.0")):
        if label in labels:
            labels[label] = version
    versions = later["spec"]["versions"]
    for version in versions:
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        spec["properties"][FIELD] = {"type": "string"}
    versions.append(copy.deepcopy(versions[0]) | {"name": LATER, "storage": False})
    return later


def bare(definition):
    """A definition without what the API server wrote into it."""
    metadata = {key: copy.deepcopy(definition["metadata"].get(key, {})) for key in ("name", "labels", "annotations")}
    metadata["annotations"].pop("kubectl.kubernetes.io/last-applied-configuration", None)
    return {
        "apiVersion": definition["apiVersion"],
        "kind": definition["kind"],
        "metadata": metadata,
        "spec": copy.deepcopy(definition["spec"]),
    }


def has_later(definition):
    """Whether the later version is served, with its field."""
    found = [version for version in definition["spec"]["versions"] if version["name"] == LATER and version["served"]]
    return bool(found) and FIELD in found[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]


def apply_as(world, manager, *definitions):
    """Server-side apply under somebody's name, by force."""
    for each in definitions:
        words = ("apply", "--server-side", "--force-conflicts", f"--field-manager={manager}", "-f", "-")
        world.kubectl("paris", *words, stdin=json.dumps(each))


def refusal(world, definition):
    """What the API server says to an older definition that nothing would be done with."""
    words = ("apply", "--server-side", "--force-conflicts", "--field-manager=archipelago", "--dry-run=server", "-f", "-")
    try:
        world.kubectl("paris", *words, stdin=json.dumps(bare(definition)))
    except Failed as error:
        return str(error)
    return ""


def installed_again(world):
    """What the documented installation says, which must not end well and must do everything else."""
    try:
        world.blocks.run("join-paris")
    except Failed as error:
        return str(error)
    raise Failed("an installation replaced kinds of a newer version, or did not say that it kept them")


def restored(world, before):
    """Puts the definitions back; False as long as the policy still refuses it."""
    try:
        apply_as(world, "archipelago", *(bare(definition) for definition in before.values()))
    except Failed:
        return False
    return True


def binding(world):
    """The policy's binding, as every installation has it."""
    documents = world.meshctl("install", "--crds").split("---\n")
    return next(text for text in documents if "kind: ValidatingAdmissionPolicyBinding" in text)
