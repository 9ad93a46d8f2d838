"""An earlier version of everything: its image for the nodes, and its programs for this machine, out of that image.

Built from a revision of this repository when asked to, with its own build script, beside what is checked out.
"""

import io
import json
import os
import pathlib
import subprocess
import tarfile

from world import ROOT

# The name under which nodes know it: its own would be that of today's version.
TAG = "older"
NAME = f"docker.io/library/archipelago:{TAG}"


class Older:
    """Programs and image of an earlier version."""

    def __init__(self, archive, folder):
        self.programs, self.image = folder / "older", folder / "older.tar"
        self.programs.mkdir(parents=True, exist_ok=True)
        blobs = unpack(archive, self.programs, ("meshctl", "archipelago-control-plane"))
        rename(blobs, self.image)

    @property
    def environment(self):
        """For commands that should find its programs before today's."""
        return {"PATH": f"{self.programs}:{self.programs.parent / 'bin'}:{os.environ['PATH']}"}


def build(revision, profile):
    """Builds the image of a revision, unless that was done, and returns its archive."""
    commit = git("rev-parse", f"{revision}^{{commit}}")
    archive = ROOT / f"target/image/archipelago-{commit[:12]}.tar"
    if archive.exists():
        return archive
    sources = ROOT / "target/older"
    git("worktree", "add", "--force", "--detach", sources, commit)
    try:
        # Its dependencies are mostly today's: what is compiled of them is shared.
        environment = os.environ | {"PROFILE": profile, "CARGO_TARGET_DIR": str(ROOT / "target/older-target")}
        partial = archive.with_suffix(".new")
        subprocess.run([sources / "topologies/kubernetes/image/build", partial], cwd=sources, check=True, env=environment)
        partial.rename(archive)
    finally:
        git("worktree", "remove", "--force", sources)
    return archive


def git(*words):
    done = subprocess.run(["git", "-C", ROOT, *map(str, words)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def unpack(archive, folder, programs):
    """Writes programs of an image to a folder, and returns the members of its archive."""
    with tarfile.open(archive) as tar:
        members = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}
    manifest = json.loads(blob(members, json.loads(members["index.json"])["manifests"][0]["digest"]))
    with tarfile.open(fileobj=io.BytesIO(blob(members, manifest["layers"][0]["digest"]))) as layer:
        for name in programs:
            path = pathlib.Path(folder) / name
            path.unlink(missing_ok=True)
            path.write_bytes(layer.extractfile(f"bin/{name}").read())
            path.chmod(0o755)
    return members


def blob(members, digest):
    return members[f"blobs/{digest.replace(':', '/')}"]


def rename(members, out):
    """The same image under another name."""
    index = json.loads(members["index.json"])
    names = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": TAG}
    index["manifests"][0]["annotations"] = names
    with tarfile.open(out, "w") as tar:
        for name, data in (members | {"index.json": json.dumps(index).encode()}).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
