"""The official conformance suite of the MCS API, on real nodes."""

import os
import pathlib
import subprocess

from report import Skipped
from world import lab

from . import scenario

# What the suite's manifests ask for, and the lab's tools stand in for: a shell, socat, nc, dig, nslookup.
IMAGES = ("docker.io/alpine/socat:1.7.4.4", "docker.io/nicolaka/netshoot:v0.15")


# Optional, and not implemented: docs/mcs-conformance.md says what and why.
NOT_IMPLEMENTED = "(DNS && Headless) || EndpointSlice"


@scenario("the MCS API's own conformance suite: all that is required, and every option that is implemented", seconds=3600)
def mcs_conformance(world, report):
    if not world.mcs_suite:
        raise Skipped("its module is not on the Go proxy: give a checkout of kubernetes-sigs/mcs-api with --mcs-suite")
    suite = world.folder / "mcs-conformance"
    build = ["go", "test", "-c", "-vet=off", "-o", suite, "."]
    subprocess.run(build, cwd=world.mcs_suite / "conformance", check=True, env=os.environ | {"CGO_ENABLED": "0"})
    for number, name in enumerate(IMAGES):
        archive = world.folder / f"mcs-image-{number}.tar"
        lab.tools_image(name, archive)
        for cluster in ("paris", "tokyo"):
            world[cluster].load(archive)
    command = [
        suite,
        f"-kubeconfig={world.folder / 'kubeconfig'}",
        "-contexts=paris,tokyo",
        "-organization=archipelago",
        "-project=archipelago",
        f"-version={world.image_name.rsplit(':', 1)[1]}",
        "-url=https://github.com/archipelago-mesh/archipelago",
        "-ginkgo.no-color",
        f"-ginkgo.label-filter=!({NOT_IMPLEMENTED})",
        "-test.timeout=50m",
        *os.environ.get("MCS_SUITE_FLAGS", "").split(),
    ]
    with open(world.folder / "mcs-conformance.log", "w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=world.folder, stdout=log, stderr=log, check=False, env=world.environment)
    text = pathlib.Path(log.name).read_text(encoding="utf-8")
    ran = next((line.strip() for line in reversed(text.splitlines()) if "Passed" in line and "Failed" in line), "no summary")
    report.check(done.returncode == 0, f"{ran}; report in {world.folder / 'report.yaml'}, log beside it")
