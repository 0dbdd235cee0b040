"""What goes wrong: the faults of a scenario, as frozen records.

Owns the records; `simulator.faults` makes events of them. Times are seconds.
"""

from math import inf
from typing import Annotated, Literal

from msgspec import Meta

from simulator.values import NotNegative, Positive, Record


class NodeFault(Record, frozen=True, kw_only=True, tag_field="kind"):
    """What all faults of nodes have in common."""

    nodes: tuple[str, ...] | str
    """Names, groups, or patterns."""
    at_s: NotNegative = 0.0
    """When it begins."""


class CrashFault(NodeFault, frozen=True, kw_only=True, tag_field="kind", tag="crash"):
    """Ends nodes as kill -9 would."""

    back_after_s: Positive = inf
    """They return after this time, with a new epoch and nothing in memory."""


class PauseFault(NodeFault, frozen=True, kw_only=True, tag_field="kind", tag="pause"):
    """Makes nodes silent, as SIGSTOP would."""

    for_s: Positive
    """How long."""


class SlowFault(NodeFault, frozen=True, kw_only=True, tag_field="kind", tag="slow"):
    """Makes nodes slower without their saying so."""

    factor: Positive
    """On service times."""
    for_s: Positive = inf
    """How long; to the end by default."""


class DriftFault(NodeFault, frozen=True, kw_only=True, tag_field="kind", tag="drift"):
    """Makes the clock of nodes run at another rate."""

    rate: Annotated[float, Meta(ge=0.5, le=2)]
    """Seconds on their clock per second."""


class LiarFault(NodeFault, frozen=True, kw_only=True, tag_field="kind", tag="liar"):
    """Makes nodes tell that they are idle, and serve badly."""

    does: Literal["delay", "drop", "honest_work"] = "delay"
    """Answers late; never answers; or only its records lie."""
    delay_s: NotNegative = 2.0
    """Added to every answer of one that delays."""
    for_s: Positive = inf
    """How long; to the end by default."""


class ChurnFault(NodeFault, frozen=True, kw_only=True, tag_field="kind", tag="churn"):
    """Ends nodes and brings them back, again and again."""

    up_s: Positive = 300.0
    """Mean time up, exponential."""
    down_s: Positive = 30.0
    """Mean time down, exponential."""
    for_s: Positive = inf
    """How long; to the end by default."""


class PartitionFault(Record, frozen=True, kw_only=True, tag_field="kind", tag="partition"):
    """Lets nothing pass between groups of nodes."""

    groups: Annotated[tuple[tuple[str, ...] | str, ...], Meta(min_length=2)]
    """Names, groups or patterns of each part; nodes in none of them reach all."""
    at_s: NotNegative = 0.0
    """When it begins."""
    for_s: Positive = inf
    """How long; to the end by default."""


Fault = CrashFault | PauseFault | SlowFault | DriftFault | LiarFault | ChurnFault | PartitionFault
