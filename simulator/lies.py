"""What a lying node tells, and how badly it serves: the node's own core is honest, its mouth is not.

A liar says with every record, answer and refusal that it is idle, warm and quick. It may serve late (and report the
times it promised, so that the link seems slow), or swallow what peers send without a word. Its own clients are served
as they would be.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

from scheduler.actions import Action
from scheduler.types import ModelDigest, PeerState
from simulator.answers import Answer

Manner = Literal["delay", "drop", "honest_work"]
Hand = Callable[[Action, object], object]


class Lie(msgspec.Struct, frozen=True, kw_only=True):
    """How a node lies."""

    does: Manner = "delay"
    """Answers peers late; takes their jobs and says nothing; or only its records lie."""
    delay_s: float = 2.0
    """Of answers to peers."""

    def told(self, state: PeerState) -> PeerState:
        """Return what is told in place of a record: an idle node."""
        return replace(state, backlog_s=0.0, running_until_s=0.0, slow_down=1.0)

    def disguised(self, action: Action) -> Action:
        """Return an action with a lying record, where it has one."""
        state = getattr(action, "state", None)
        return replace(action, state=self.told(state)) if isinstance(state, PeerState) else action

    def answered(self, answer: Answer, means_s: Mapping[ModelDigest, float]) -> tuple[float, Answer]:
        """Return how late an answer to a peer leaves, in seconds, and what it says: no wait, and the mean time."""
        late_s = self.delay_s if self.does == "delay" else 0.0
        return late_s, replace(answer, waiting_s=0.0, service_s=means_s[answer.model])

    def wrap(self, hand: Hand) -> Hand:
        """Return a hand of the node that carries out the disguised action."""
        return lambda action, attachment: hand(self.disguised(action), attachment)
