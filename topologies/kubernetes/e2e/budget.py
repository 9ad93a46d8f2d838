"""How long things may take: a whole run, its parts, one scenario, and the way back from one that was cut off.

A run that shares an hour with other steps gets a budget. What is cut off by it is skipped, and said to be; what outlasts a limit of its
own has failed. Times come from a clock that tests replace; only `limit` arms a real alarm.
"""

import contextlib
import os
import signal
import subprocess
import time

# Taking clusters down and printing the report, which a run does whatever happened before.
END_SECONDS = 60
# Starting clusters and installing, before the first scenario says anything.
START_SECONDS = 240
# Linking the static programs of the image: 250 s on two cores.
IMAGE_SECONDS = 300
# With less than this left it is not worth beginning a scenario or a build.
WORTH_SECONDS = 60
# Undoing what a scenario did, once it was cut off.
UNDO_SECONDS = 30
# No scenario takes a tenth of this on an idle machine, the long set aside: one that does hangs.
SCENARIO_SECONDS = 900


class CutOff(BaseException):
    """Time is over. Not an Exception, so that nothing on the way takes it for an answer that did not come."""


class Budget:
    """Seconds that a run has, counted from now; without a number it has as long as it takes."""

    def __init__(self, seconds=None, clock=time.monotonic):
        self.seconds, self.clock, self.began = seconds, clock, clock()

    def left(self, reserve=0):
        """What is left beside a reserve, or None without a budget."""
        return None if self.seconds is None else self.seconds - (self.clock() - self.began) - reserve

    def too_short(self, reserve=0):
        """Why nothing more should be begun that leaves `reserve`, or None."""
        left = self.left(reserve)
        if left is None or left >= WORTH_SECONDS:
            return None
        beside = f" beside the {reserve} s kept for what follows" if reserve else ""
        return f"{max(0, left):.0f} of the run's {self.seconds} s are left{beside}, and {WORTH_SECONDS} s are the least that is worth beginning with"

    def for_scenario(self, own=SCENARIO_SECONDS):
        """Seconds that a scenario may take, and whether that is its own limit rather than the end of the budget."""
        left = self.left(END_SECONDS + UNDO_SECONDS)
        return (own, True) if left is None or own <= left else (max(1, left), False)


@contextlib.contextmanager
def limit(seconds, undo=UNDO_SECONDS):
    """Raises CutOff in what runs inside once `seconds` are over, and again if it has not come back `undo` seconds later."""

    def over(*_):
        signal.setitimer(signal.ITIMER_REAL, undo)
        raise CutOff

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            # Once more, should the alarm have come at the very end: it has set itself again.
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def run_within(seconds, *command, **options):
    """Runs a command to its end and returns its exit code; None if it and all its children had to be ended after `seconds`."""
    process = subprocess.Popen([str(word) for word in command], start_new_session=True, **options)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        end_session(process)
        return None
    except BaseException:
        # We are told to end: what a build has started must not go on by itself.
        end_session(process)
        raise


def end_session(process, seconds=10):
    """Ends a process that leads a session, with everything in it: first it may clean up, then it is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
