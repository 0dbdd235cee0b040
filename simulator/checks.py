"""All checks of the simulator against theory, arithmetic and its own seed, as data. Run by `gridnode simulate theory`.

Three levels: `kernel` (plain queues on the engine: `checks_kernel`), `node` (real cores: `checks_node`) and
`arithmetic` (the network's flow model against values computed elsewhere). Each check names its expected value, what
came out with its interval, and whether that is in order (`judging`). Checks across processes are gridnode's to start,
since the simulator starts none: `trace_hash` is what they compare.
"""

from collections.abc import Iterator
from functools import partial

from simulator import checks_kernel, checks_node
from simulator.checks_node import trace_hash as trace_hash
from simulator.flowchecks import FLOW_CHECKS, FlowCheck
from simulator.judging import FAST, FULL, Case, Check, Effort, judge_exact

FLOW_WITHIN_S = 1e-6
"""How near a transfer time has to come, in seconds."""


def check_flows(given: FlowCheck, effort: Effort) -> list[Check]:
    """Check the transfer times of one case of concurrent flows."""
    times_s = given.times_s()
    several = len(times_s) > 1
    return [
        judge_exact(
            f"{given.name}{f', transfer {number}' if several else ''}",
            "arithmetic",
            expected=expected_s,
            got=got_s,
            within=FLOW_WITHIN_S,
            about=given.source,
        )
        for number, (expected_s, got_s) in enumerate(zip(given.expected_s, times_s, strict=True), start=1)
    ]


def cases(*, fast: bool = False, only: str = "") -> list[Case]:
    """Return all checks, or the fast subset, or those whose name contains a text."""
    flows = [Case(name=each.name, run=partial(check_flows, each), is_fast=True) for each in FLOW_CHECKS]
    every = [*flows, *checks_kernel.cases(), *checks_node.cases()]
    return [case for case in every if only.lower() in case.name.lower() and (case.is_fast or not fast)]


def run(*, fast: bool = False, only: str = "") -> Iterator[tuple[Case, list[Check]]]:
    """Run the checks one by one.

    Parameters
    ----------
    fast : bool, default False
        Whether the fast subset is run, with less effort per check.
    only : str, default ""
        Text that the name of a case has to contain.

    Yields
    ------
    tuple of Case and list of Check
        As each is done.
    """
    for case in cases(fast=fast, only=only):
        yield case, case.run(FAST if fast else FULL)
