"""What a run found out: a line per assertion as it happens, a table and a JSON file at the end."""

import json
import sys
import time


class Failed(Exception):
    """An assertion did not hold; the rest of its scenario makes no sense."""


class Skipped(Exception):
    """What the scenario needs is not here; the message says what."""


class Report:
    """Results of all scenarios, in the order they ran."""

    def __init__(self):
        self.scenarios = []
        # What was not begun, and why not.
        self.left_out = {}
        self.figures = {}
        self.began = time.monotonic()

    def begin(self, name, title):
        """The next scenario; assertions until the next `begin` belong to it."""
        self.scenarios.append({"name": name, "title": title, "checks": [], "outcome": "failed", "seconds": 0.0})
        self._say(f"== {name}: {title}")

    def end(self, outcome, seconds, why=""):
        """How the scenario ended: passed, failed or skipped."""
        current = self.scenarios[-1]
        current |= {"outcome": outcome, "seconds": round(seconds, 1)} | ({"why": why} if why else {})
        self._say(f"   {outcome} after {current['seconds']} s{': ' + why if why else ''}")

    def check(self, holds, what):
        """One assertion, said in words either way."""
        self.scenarios[-1]["checks"].append({"what": what, "holds": bool(holds)})
        self._say(f"   {'ok ' if holds else 'NOT'} {what}")
        if not holds:
            raise Failed(what)

    def figure(self, name, value, unit):
        """A measured value. Figures are never assertions: the machine is whatever it is."""
        self.figures[name] = {"value": value, "unit": unit}
        self._say(f"    .  {name}: {value} {unit}")

    def note(self, text):
        """What happens now, for whoever watches."""
        self._say(f"    .  {text}")

    def print(self, text):
        """Whole lines from elsewhere, as they are."""
        print(text, file=sys.stderr, flush=True)

    def not_run(self, scenarios, reason):
        """Scenarios that are not begun."""
        self.left_out |= {each.__name__: reason for each in scenarios}

    @property
    def failed(self):
        return [scenario for scenario in self.scenarios if scenario["outcome"] == "failed"]

    def skipped(self):
        """What nothing was found out about, loudly; empty when everything ran."""
        why = self.left_out | {each["name"]: each.get("why", "") for each in self.scenarios if each["outcome"] == "skipped"}
        by_reason = {}
        for name, reason in why.items():
            by_reason.setdefault(reason, []).append(name)
        total = len(self.left_out) + len(self.scenarios)
        return "\n".join(
            f"SKIPPED: {len(names)} of {total} scenarios, because {reason}: {', '.join(names)}" for reason, names in by_reason.items()
        )

    def table(self):
        """Everything at a glance, and the line by which runs are counted."""
        lines = ["", f"{'scenario':<22} {'outcome':<8} {'seconds':>7}  checks"]
        for scenario in self.scenarios:
            checks = scenario["checks"]
            held = f"{sum(c['holds'] for c in checks)} of {len(checks)}"
            lines.append(f"{scenario['name']:<22} {scenario['outcome']:<8} {scenario['seconds']:>7}  {held}")
            if scenario["outcome"] != "passed":
                lines.append(f"    {scenario.get('why', '')}")
        if self.figures:
            lines += ["", "figures"]
            lines += [f"  {name}: {f['value']} {f['unit']}" for name, f in self.figures.items()]
        count = {outcome: sum(s["outcome"] == outcome for s in self.scenarios) for outcome in ("passed", "failed", "skipped")}
        lines += ["", f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped, {len(self.left_out)} not begun"]
        skipped = self.skipped()
        if skipped:
            lines.append(skipped)
        return "\n".join(lines)

    def write(self, path):
        """The same as JSON."""
        seconds = round(time.monotonic() - self.began, 1)
        content = {"seconds": seconds, "scenarios": self.scenarios, "notBegun": self.left_out, "figures": self.figures}
        path.write_text(json.dumps(content, indent=1) + "\n")

    def _say(self, line):
        print(f"{time.monotonic() - self.began:7.1f}  {line}", file=sys.stderr, flush=True)
