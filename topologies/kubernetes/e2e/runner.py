"""Runs scenarios one after the other, within the budget of the run; whatever happens, the clusters are taken down."""

import subprocess
import traceback

from budget import END_SECONDS, SCENARIO_SECONDS, START_SECONDS, CutOff, limit
from report import Failed, Skipped
from world import LabError

# Starting clusters takes 20 s; one that does not start says nothing about us.
UP_SECONDS = 600
DIAGNOSE_SECONDS = 60


def run_group(world, group, report, budget, reuse=False, keep=False):
    """Runs scenarios on clusters of their own; why this machine cannot start clusters, or None."""
    reason = budget.too_short(END_SECONDS + (0 if reuse else START_SECONDS))
    if reason:
        report.not_run(group, reason)
        return None
    try:
        if not reuse:
            reason = not_started(world, budget)
            if reason:
                return reason
        elif world.installed():
            group = [each for each in group if not each.always]
        for number, each in enumerate(group):
            reason = budget.too_short(END_SECONDS)
            if reason:
                report.not_run(group[number:], reason)
                break
            if not run_one(world, each, report, budget) and each.always:
                report.not_run(group[number + 1 :], f"they stand on {each.__name__}, which did not hold")
                break
    finally:
        if not keep:
            world.down()
    return None


def not_started(world, budget):
    """Starts the clusters; why that did not work, or None."""
    seconds = min(UP_SECONDS, budget.left(END_SECONDS) or UP_SECONDS)
    try:
        with limit(seconds):
            world.up()
    except CutOff:
        return f"no cluster starts here within {seconds:.0f} s"
    except (Failed, LabError, subprocess.SubprocessError, OSError) as error:
        # Only our own scenarios say anything about us: a kubelet that does not start is the machine's.
        return f"no cluster starts here: {error}"
    return None


def run_one(world, each, report, budget):
    """Runs one scenario; whether it held."""
    report.begin(each.__name__, each.title)
    began = budget.clock()
    seconds, own = budget.for_scenario(each.seconds or SCENARIO_SECONDS)
    outcome, why = "passed", ""
    try:
        with limit(seconds):
            each(world, report)
    except Skipped as reason:
        outcome, why = "skipped", str(reason)
    except CutOff:
        outcome, why = "failed", f"still not over after {seconds:.0f} s, the most that it may take"
    except Exception as error:  # Whatever it is, the other scenarios are still to be run.
        known = isinstance(error, (Failed, LabError))
        outcome, why = "failed", str(error) if known else traceback.format_exc(limit=-4).strip()
    if not own and outcome == "failed" and budget.clock() - began >= seconds:
        # Also when what was cut off broke something else on its way out.
        outcome, why = "skipped", f"cut off after {seconds:.0f} s, when the {budget.seconds} s of the run were over; it says nothing"
    report.end(outcome, budget.clock() - began, why)
    if outcome == "failed":
        diagnose(world, report, budget)
    return outcome == "passed"


def diagnose(world, report, budget):
    """Prints and keeps what helps to find the cause, as far as clusters still answer and there is time."""
    left = budget.left(END_SECONDS)
    try:
        with limit(DIAGNOSE_SECONDS if left is None else max(1, min(DIAGNOSE_SECONDS, left))):
            report.print(world.diagnose())
    except (CutOff, Exception) as error:  # It must not hide what it was to explain.
        report.note(f"no more diagnosis: {error or 'it took too long'}")
