#!/usr/bin/env python3
"""An OCI image archive with one layer made of files of this machine, for `ctr images import`.

    image.py NAME:TAG OUT.tar [--entrypoint WORD…] [--file SRC=/path…] [--program PATH…] [--link /path=target…]

`--program` takes a dynamically linked program along with every shared library that it needs.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile


def layer(files, links):
    """The one layer: a minimal tree, `files` as {path in image: path here}, `links` as {path: target}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "var", "proc", "sys", "dev", "run"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        passwd = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        tar.addfile(entry, io.BytesIO(passwd))
        for inside, source in sorted(files.items()):
            entry = tarfile.TarInfo(inside.lstrip("/"))
            entry.size, entry.mode = os.path.getsize(source), 0o755
            with open(source, "rb") as content:
                tar.addfile(entry, content)
        for inside, target in sorted(links.items()):
            entry = tarfile.TarInfo(inside.lstrip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return out.getvalue()


def program(path):
    """A program and the shared libraries it needs, each under the path that the loader will ask for."""
    path = os.path.realpath(path)
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    files = {path: path}
    for word in listed.stdout.split():
        if word.startswith("/"):
            files[word] = os.path.realpath(word)
    return files


def write(name, out, entrypoint, files, links, command=()):
    """Writes the archive of an image called `name` to `out`, replacing it in one step.

    A pod's `args` stand in for `command` and follow `entrypoint`.
    """
    content = layer(files, links)

    def digest(data):
        return "sha256:" + hashlib.sha256(data).hexdigest()

    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": list(entrypoint), "Cmd": list(command), "Env": ["PATH=/bin:/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(content)]},
        }
    ).encode()

    def part(kind, data):
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(data), "size": len(data)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": part("config.v1+json", config),
            "layers": [part("layer.v1.tar", content)],
        }
    ).encode()
    described = part("manifest.v1+json", manifest)
    described["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(":", 1)[-1],
    }
    described["platform"] = {"architecture": "amd64", "os": "linux"}
    index = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    partial = f"{out}.partial"
    with tarfile.open(partial, "w") as tar:
        members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
        members |= {"blobs/sha256/" + digest(data)[7:]: data for data in (config, manifest, content)}
        for path, data in members.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    os.replace(partial, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("out")
    parser.add_argument("--entrypoint", nargs="+", default=["/bin/sh"])
    parser.add_argument("--file", action="append", default=[], metavar="SRC=/PATH")
    parser.add_argument("--program", action="append", default=[], metavar="PATH")
    parser.add_argument("--link", action="append", default=[], metavar="/PATH=TARGET")
    options = parser.parse_args()
    files = {}
    for path in options.program:
        files |= program(path)
    for pair in options.file:
        source, inside = pair.split("=", 1)
        files[inside] = source
    write(options.name, options.out, options.entrypoint, files, dict(pair.split("=", 1) for pair in options.link))


if __name__ == "__main__":
    sys.exit(main())
