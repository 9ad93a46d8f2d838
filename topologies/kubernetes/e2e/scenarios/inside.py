"""The control plane inside one of the clusters."""

import json

import apps
from world import wait_until

from . import scenario
from .joining import URL


@scenario("the control plane lives in one of the clusters", alone=True)
def inside(world, report):
    world.storage("paris", 2)
    environment = {"ARCHIPELAGO_STATE": str(world.folder / "inside"), "INSIDE": f"{world['paris'].address(1)}:30741"}
    world.blocks.run("found-inside", environment=environment)
    wait_until("the control plane", lambda: leads(world, environment))
    for name in ("paris", "tokyo"):
        world.blocks.run(f"join-{name}", environment=environment)
        world.blocks.run("wait", environment={"CLUSTER": name})
        world.apply(name, apps.namespace(apps.SHOP), apps.namespace(apps.WEB))
    world.apply("paris", apps.client(world["paris"].node_name(1), "client-1"))
    world.apply("tokyo", apps.backend(world.image_name, "tokyo"), apps.export())
    body = world.answered("paris", "client-1", URL)
    report.check(body["cluster"] == "tokyo", f"paris, where the control plane is, is answered by {body['cluster']}")


def leads(world, environment):
    """Whether a member leads."""
    answer = world.meshctl("status", "-o", "json", check=False, environment=environment)
    return "eader" in json.dumps(json.loads(answer or "{}"))
