"""What a run does when time runs out. Run by `topologies/kubernetes/check`; no cluster is needed."""

import contextlib
import io
import os
import signal
import sys
import threading
import unittest

sys.dont_write_bytecode = True

import runner  # noqa: E402
from budget import END_SECONDS, START_SECONDS, WORTH_SECONDS, Budget, CutOff, limit, run_within  # noqa: E402
from report import Failed, Report, Skipped  # noqa: E402


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class World:
    """Clusters that cost time to start and nothing else."""

    def __init__(self, clock, up_seconds=20, diagnosis="the last events"):
        self.clock, self.up_seconds, self.diagnosis, self.downs = clock, up_seconds, diagnosis, 0

    def up(self):
        self.clock.now += self.up_seconds

    def down(self):
        self.downs += 1

    def installed(self):
        return True

    def diagnose(self):
        return self.diagnosis


def scenario(name, clock, seconds=0, error=None, always=False, own_limit=None):
    """A scenario that takes some seconds of the clock, and then fails, or does not."""

    def function(*_):
        clock.now += seconds
        if error:
            raise error

    function.__name__, function.title, function.always, function.seconds = name, name, always, own_limit
    return function


class Runs(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.world = World(self.clock)
        self.report = Report()
        self.said = io.StringIO()

    def run_all(self, budget_seconds, *scenarios, **options):
        budget = Budget(budget_seconds, self.clock)
        with contextlib.redirect_stderr(self.said):
            return runner.run_group(self.world, list(scenarios), self.report, budget, **options)

    def outcomes(self):
        return {each["name"]: each["outcome"] for each in self.report.scenarios}

    def test_everything_runs_without_a_budget(self):
        slow = [scenario(f"s{n}", self.clock, 800) for n in range(9)]
        self.assertIsNone(self.run_all(None, *slow))
        self.assertEqual(set(self.outcomes().values()), {"passed"})
        self.assertEqual(len(self.report.scenarios), 9)
        self.assertEqual(self.report.skipped(), "")
        self.assertEqual(self.world.downs, 1)

    def test_stops_between_scenarios_when_little_is_left_and_says_so(self):
        scenarios = [scenario(f"s{n}", self.clock, 100) for n in range(6)]
        self.run_all(START_SECONDS + END_SECONDS + WORTH_SECONDS + 10, *scenarios)
        # 370 s: 20 for the clusters, then three of 100 until fewer than 60 beside the 60 for the end are left.
        self.assertEqual(list(self.outcomes()), ["s0", "s1", "s2"])
        said = self.report.table()
        self.assertIn("SKIPPED: 3 of 6 scenarios, because ", said)
        self.assertIn("s3, s4, s5", said)
        self.assertFalse(self.report.failed)
        self.assertEqual(self.world.downs, 1)

    def test_starts_no_cluster_when_there_is_no_time_for_one(self):
        self.run_all(START_SECONDS + END_SECONDS + WORTH_SECONDS - 1, scenario("s", self.clock))
        self.assertEqual(self.outcomes(), {})
        self.assertIn("SKIPPED: 1 of 1 scenarios", self.report.skipped())
        self.assertEqual(self.world.downs, 0)

    def test_a_failure_is_one_also_when_the_rest_is_skipped(self):
        broken = scenario("broken", self.clock, 280, Failed("3 of 100 requests failed"))
        self.run_all(400, broken, scenario("later", self.clock))
        self.assertEqual(self.outcomes(), {"broken": "failed"})
        self.assertEqual(list(self.report.left_out), ["later"])
        self.assertEqual(len(self.report.failed), 1)
        self.assertIn("the last events", self.said.getvalue())

    def test_what_the_budget_cuts_off_is_skipped_whatever_it_breaks_on_its_way_out(self):
        for error in (CutOff(), Failed("the link could not be healed")):
            self.report, self.world.downs = Report(), 0
            self.run_all(400, scenario("cut", self.clock, 1000, error))
            self.assertEqual(self.outcomes(), {"cut": "skipped"})
            self.assertIn("cut off", self.report.skipped())
            self.assertEqual(self.world.downs, 1)

    def test_what_outlasts_its_own_limit_has_failed(self):
        self.run_all(None, scenario("hangs", self.clock, 0, CutOff()), scenario("next", self.clock))
        self.assertEqual(self.outcomes(), {"hangs": "failed", "next": "passed"})

    def test_a_scenario_that_hangs_is_interrupted_and_the_next_one_runs(self):
        def hangs(*_):
            threading.Event().wait(600)

        hangs.title, hangs.always, hangs.seconds = "hangs", False, 0.05
        self.run_all(None, hangs, scenario("next", self.clock))
        self.assertEqual(self.outcomes(), {"hangs": "failed", "next": "passed"})
        self.assertIn("still not over", self.report.table())

    def test_clusters_are_taken_down_when_somebody_ends_the_run(self):
        with self.assertRaises(SystemExit):
            self.run_all(None, scenario("ended", self.clock, 1, SystemExit(143)))
        self.assertEqual(self.world.downs, 1)

    def test_clusters_that_do_not_start_are_the_machines_fault(self):
        def up():
            raise Failed("kubelet ended")

        self.world.up = up
        self.assertEqual(self.run_all(None, scenario("s", self.clock)), "no cluster starts here: kubelet ended")
        self.assertEqual(self.world.downs, 1)

    def test_what_all_stand_on_is_not_run_over_and_the_rest_is_named(self):
        base = scenario("base", self.clock, 1, Failed("not joined"), always=True)
        self.run_all(None, base, scenario("later", self.clock))
        self.assertEqual(self.outcomes(), {"base": "failed"})
        self.assertIn("they stand on base", self.report.skipped())

    def test_a_scenario_that_skips_itself_is_counted(self):
        self.run_all(None, scenario("suite", self.clock, 0, Skipped("no checkout")), scenario("other", self.clock))
        self.assertIn("SKIPPED: 1 of 2 scenarios, because no checkout: suite", self.report.table())

    def test_a_diagnosis_that_breaks_hides_nothing(self):
        def diagnose():
            raise OSError("disk full")

        self.world.diagnose = diagnose
        self.run_all(None, scenario("broken", self.clock, 1, Failed("lost")), scenario("next", self.clock))
        self.assertEqual(self.outcomes(), {"broken": "failed", "next": "passed"})


class Limits(unittest.TestCase):
    def test_a_part_gets_what_is_left_beside_the_reserve(self):
        clock = Clock()
        budget = Budget(1000, clock)
        clock.now += 300
        self.assertEqual(budget.left(), 700)
        self.assertEqual(budget.left(600), 100)
        self.assertIsNone(budget.too_short(600))
        self.assertIsNone(budget.too_short(700 - WORTH_SECONDS))
        self.assertIn("641 s kept for what follows", budget.too_short(700 - WORTH_SECONDS + 1))
        self.assertIsNone(Budget(None, clock).left(600))
        self.assertIsNone(Budget(None, clock).too_short(600))

    def test_a_scenario_gets_its_own_limit_or_what_is_left(self):
        self.assertEqual(Budget(None).for_scenario(900), (900, True))
        seconds, own = Budget(500, Clock()).for_scenario(900)
        self.assertFalse(own)
        self.assertLess(seconds, 500 - END_SECONDS)

    def test_what_undoes_a_scenario_is_interrupted_too(self):
        undone = []
        with self.assertRaises(CutOff):
            with limit(0.05, undo=0.05):
                try:
                    threading.Event().wait(600)
                finally:
                    undone.append(True)
                    threading.Event().wait(600)
        self.assertEqual(undone, [True])
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))

    def test_a_build_that_outlasts_its_time_is_ended_with_its_children(self):
        reading, writing = os.pipe()
        self.assertIsNone(run_within(0.5, "sh", "-c", "sleep 600 & wait", stdout=writing))
        os.close(writing)
        with open(reading, encoding="utf-8") as out:
            # Ends only when nobody holds the other end any more: the child is gone as well.
            self.assertEqual(out.read(), "")

    def test_the_exit_code_of_a_build_is_returned(self):
        self.assertEqual(run_within(None, "sh", "-c", "exit 7"), 7)
        self.assertEqual(run_within(60, "true"), 0)


if __name__ == "__main__":
    unittest.main()
