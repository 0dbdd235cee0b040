"""Placements put into words and records, for logs and for `explain`."""

from typing import NamedTuple

from scheduler.peer import Peer
from scheduler.policy import Choice
from scheduler.records import Candidate, Decision
from scheduler.types import ModelDigest, NodeId

_SHORT = 8
"""Last characters of a node's id that go into a reason: the first ones are the same in all of them."""


def compare(choice: Choice) -> str:
    """Tell a choice and what it was compared with in one line, times in seconds."""
    rest = [f"{_name(peer)} {finish_s:.3f}" for peer, finish_s in choice.looked if peer is not choice.peer]
    against = f" against {', '.join(rest)}" if rest else ""
    return f"{_name(choice.peer)} {choice.finish_s:.3f} s{against}"


class Verdict(NamedTuple):
    """What a placement came to, as it is kept: put into a record only if somebody asks.

    A choice tells of its peers as long as it lives, so bounds on verdicts kept are bounds on those, too.
    """

    at_s: float
    key: bytes
    handle: int
    model: ModelDigest | None
    """None for a refusal."""
    choice: Choice | None
    """Of a refusal, the least finish that was still too late, if any; None too for what needed no choice."""
    reason: str
    executor: NodeId | None = None
    """Peer that a job went to for which no choice was needed."""


def tell(verdict: Verdict, *, here: NodeId) -> Decision:
    """Make the record of a placement."""
    choice = verdict.choice
    return Decision(
        at_s=verdict.at_s,
        key=verdict.key,
        handle=verdict.handle,
        model=verdict.model,
        chosen=None
        if verdict.model is None
        else verdict.executor or _node(None if choice is None else choice.peer, here),
        candidates=()
        if choice is None
        else tuple([_candidate(peer, finish_s, choice, verdict, here) for peer, finish_s in choice.looked]),
        reason=verdict.reason,
    )


def _candidate(peer: Peer | None, finish_s: float, choice: Choice, verdict: Verdict, here: NodeId) -> Candidate:
    if verdict.model is None:
        why = "too late"
    elif peer is choice.peer:
        why = "chosen"
    else:
        why = "later" if finish_s >= choice.finish_s else "gain too small"
    return Candidate(_node(peer, here), finish_s, why)


def _node(peer: Peer | None, here: NodeId) -> NodeId:
    return here if peer is None else peer.node_id


def _name(peer: Peer | None) -> str:
    return "here" if peer is None else peer.node_id[-_SHORT:]
