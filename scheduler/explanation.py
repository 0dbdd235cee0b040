"""Placements put into words and records, for logs and for `explain`."""

from scheduler.jobs import JobRecord
from scheduler.peer import Peer
from scheduler.policy import Choice
from scheduler.records import Candidate, Decision
from scheduler.types import ModelDigest, NodeId, Reason

_SHORT = 8
"""Last characters of a node's id that go into a reason: the first ones are the same in all of them."""


def compare(choice: Choice) -> str:
    """Tell a choice and what it was compared with in one line, times in seconds."""
    rest = [f"{_name(peer)} {finish_s:.3f}" for peer, finish_s in choice.looked if peer is not choice.peer]
    against = f" against {', '.join(rest)}" if rest else ""
    return f"{_name(choice.peer)} {choice.finish_s:.3f} s{against}"


def tell_choice(
    record: JobRecord, choice: Choice, model: ModelDigest, reason: str, *, now_s: float, here: NodeId
) -> Decision:
    """Make the record of a placement."""
    return Decision(
        at_s=now_s,
        key=record.job.key,
        handle=record.handle,
        model=model,
        chosen=here if choice.peer is None else choice.peer.node_id,
        candidates=tuple(
            [
                Candidate(here if peer is None else peer.node_id, finish_s, _verdict(peer, finish_s, choice))
                for peer, finish_s in choice.looked
            ]
        ),
        reason=reason,
    )


def tell_refusal(record: JobRecord, best: Choice | None, why: Reason, *, now_s: float, here: NodeId) -> Decision:
    """Make the record of a refusal; `best` is the least finish that was still too late."""
    looked = [] if best is None else best.looked
    return Decision(
        at_s=now_s,
        key=record.job.key,
        handle=record.handle,
        model=None,
        chosen=None,
        candidates=tuple(
            [Candidate(here if peer is None else peer.node_id, finish_s, "too late") for peer, finish_s in looked]
        ),
        reason=why.value,
    )


def _name(peer: Peer | None) -> str:
    return "here" if peer is None else peer.node_id[-_SHORT:]


def _verdict(peer: Peer | None, finish_s: float, choice: Choice) -> str:
    if peer is choice.peer:
        return "chosen"
    return "later" if finish_s >= choice.finish_s else "gain too small"
