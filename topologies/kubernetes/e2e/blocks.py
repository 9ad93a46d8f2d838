"""The shell blocks of docs/kubernetes.md, which are run here exactly as a reader would run them.

Each is fenced as ```sh and has a comment `<!-- run: NAME -->` on the line before, or `<!-- start: NAME -->` if it does not
end by itself. One without fails the run, so that none goes untested.
"""

import pathlib
import re
import subprocess

from report import Failed

DOCUMENT = pathlib.Path(__file__).resolve().parents[3] / "docs/kubernetes.md"


class Blocks:
    """All blocks by name; remembers which were run."""

    def __init__(self, environment, directory):
        self.environment, self.directory = environment, directory
        self.commands = read(DOCUMENT.read_text())
        self.done = []

    def run(self, name, timeout=600, environment=None):
        """Runs a block with `bash -euo pipefail`, and returns what it printed."""
        if name not in self.commands:
            raise Failed(f"{DOCUMENT.name} has no block `run: {name}`")
        self.done.append(name)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.commands[name]],
            cwd=self.directory,
            env=self.environment | (environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise Failed(f"block {name} of {DOCUMENT.name} ended with {done.returncode}: {done.stderr.strip()[-4000:]}")
        return done.stdout

    def command(self, name):
        """A block as a command, for who starts it and does not wait for its end."""
        self.done.append(name)
        return ["bash", "-euo", "pipefail", "-c", f"exec {self.commands[name]}"]

    def count(self, *names):
        """Commands in some blocks: lines that are neither empty, comments, nor the rest of another line."""
        text = "\n".join(self.commands[name] for name in names)
        whole = re.sub(r"\\\n", " ", re.sub(r"<<'?(\w+)'?\n.*?\n\1$", "", text, flags=re.S | re.M))
        return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in whole.splitlines())


def read(text):
    """Blocks of a document by name."""
    blocks, lines = {}, text.splitlines()
    for number, line in enumerate(lines):
        if line != "```sh":
            continue
        before = lines[number - 1] if number else ""
        marked = re.fullmatch(r"<!-- (?:run|start): (\S+) -->", before)
        if not marked:
            raise Failed(f"{DOCUMENT.name}:{number + 1}: a shell block without `<!-- run: NAME -->` before it")
        end = lines.index("```", number)
        if marked[1] in blocks:
            raise Failed(f"{DOCUMENT.name}:{number + 1}: a second block is called {marked[1]}")
        blocks[marked[1]] = "\n".join(lines[number + 1 : end])
    return blocks
