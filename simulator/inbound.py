"""What peers begin with a node: jobs, offers, steals, questions how it stands. The twin of gridnode.inbound.

Keeps the questions that the core has not ruled on yet.
"""

from typing import TYPE_CHECKING

from scheduler.actions import Accept, GrantLease, NackOffer, Steal
from scheduler.events import StealRequested
from scheduler.types import CapabilityTable, Job, PeerState
from simulator import messages
from simulator.connection import Connection
from simulator.conversation import Conversation
from simulator.errands import ProbeErrand, SendErrand, StealErrand, TableErrand
from simulator.membership import Asker
from simulator.serving import Grant, OfferQuestion

if TYPE_CHECKING:
    from simulator.node import SimNode


class Inbound:
    """Takes what comes from peers.

    Parameters
    ----------
    node : SimNode
        Whom it is for.
    """

    def __init__(self, node: "SimNode") -> None:
        self._node = node
        self._asked = 0
        self._offers: dict[int, OfferQuestion] = {}
        self._steals: dict[int, tuple[Connection, StealErrand]] = {}

    def on_job(
        self, connection: Connection, errand: SendErrand, job: Job, budget_s: float, body_bytes: int, estimate_s: float
    ) -> None:
        """Take a job that a peer sent."""
        talk = Conversation(self._node, connection.asker.name, connection.answer, errand)
        connection.served = talk
        talk.admit(job, budget_s, body_bytes, estimate_s=estimate_s)

    def on_offer(
        self,
        connection: Connection,
        errand: SendErrand,
        job: Job,
        budget_s: float,
        body_bytes: int,
        estimate_s: float,
        state: PeerState,
    ) -> None:
        """Ask the core about an offer."""
        self._asked += 1
        question = self._offers[self._asked] = OfferQuestion(
            self._node,
            connection,
            errand,
            number=self._asked,
            job=job,
            budget_s=budget_s,
            body_bytes=body_bytes,
            estimate_s=estimate_s,
        )
        self._node.post(question.event(state))

    def on_payload(self, connection: Connection) -> None:
        """Take the payload of an accepted offer."""
        if isinstance(connection.served, OfferQuestion):
            connection.served.take_payload()

    def on_cancel(self, connection: Connection, key: bytes) -> None:
        """Stop a peer's job, unless its outcome crossed the cancel."""
        if isinstance(connection.served, Conversation):
            connection.served.cancel(key)

    def on_steal(self, connection: Connection, errand: StealErrand, action: Steal) -> None:
        """Ask the core what a thief may have."""
        self._asked += 1
        self._steals[self._asked] = connection, errand
        self._node.post(
            StealRequested(
                request=self._asked,
                peer=connection.asker.name,
                state=action.state,
                models=action.models,
                room=action.room,
            )
        )

    def on_table_request(self, connection: Connection, errand: TableErrand) -> None:
        """Send the capability table."""
        machine = self._node.machine
        table = CapabilityTable(node_id=self._node.name, digest=machine.table_digest, entries=machine.capabilities)
        size = messages.table(self._node.name, table.digest, table.entries) if connection.is_limited else 0
        connection.answer(size, errand.hear_table, table)

    def on_ping(self, connection: Connection, errand: ProbeErrand, nonce: int) -> None:
        """Tell how this node stands."""
        state = self._node.own_state()
        connection.answer(messages.pong(nonce, state) if connection.is_limited else 0, errand.hear_pong, state)

    def on_health_probe(self, connection: Connection, asker: Asker, subject: str | None) -> None:
        """Say that this node lives, or whether another does."""
        if self._node.watch is not None:
            self._node.watch.answer(connection, asker, subject)

    # What the core rules.

    def rule(self, action: Accept | NackOffer) -> None:
        """Tell a peer whether its offer is taken."""
        self._offers.pop(action.offer).rule(action)

    def grant(self, action: GrantLease) -> None:
        """Give a thief what it may have."""
        connection, errand = self._steals.pop(action.request)
        Grant(self._node, connection, errand, action)
