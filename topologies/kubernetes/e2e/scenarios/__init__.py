"""Scenarios, in the order they run. Each leaves the federation as it found it, so that the next one can begin."""

ALL = []


def scenario(title, clusters=2, always=False, alone=False, seconds=None):
    """Registers a function as a scenario named after it.

    `clusters`: how many the run must have. `always`: later ones are senseless without it. `alone`: it needs clusters
    of its own, without a federation in them, and is run after the others are gone. `seconds`: more than the usual limit.
    """

    def register(function):
        function.title, function.clusters, function.always, function.alone = title, clusters, always, alone
        function.seconds = seconds
        ALL.append(function)
        return function

    return register


from . import joining, policies, faults, upgrades, kinds, refusals, figures, conformance, leaving, inside, skew  # noqa: E402, F401
