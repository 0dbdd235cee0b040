"""Lets in what peers ask over the data plane, by the roles of their certificates, and counts what is being served.

Owns the decision whether a peer may ask, and nothing of the answer: about jobs gridnode.inbound knows, about the rest
gridnode.services.
"""

import trio

from gridnode.inbound import Inbound
from gridnode.logs import EventLog, short
from gridnode.membership import Membership
from gridnode.services import Services
from transport.base import Exchange
from transport.certificates import SERVE, SUBMIT, PeerCertificate
from transport.wire import DataMessage, JobOffer, JobSend, LaneRun, Refused, StealRequest

log = EventLog("node")


class Exchanges:
    """Serves the exchanges that peers begin."""

    def __init__(self, inbound: Inbound, services: Services, membership: Membership) -> None:
        self._inbound = inbound
        self._services = services
        self._membership = membership
        self._open = 0
        """Of those not about jobs, the ones that are being served."""
        self._silent = trio.Event()

    async def serve(self, exchange: Exchange, message: DataMessage, payload: memoryview) -> None:
        """Serve one question of a peer, if its roles allow it."""
        refusal = self._refusal(exchange, message)
        if refusal:
            log.warning("peer_refused", peer=short(exchange.peer), reason=refusal)
            await exchange.send(Refused(reason=refusal))
            return
        if await self._inbound.handle(exchange, message, payload):
            return
        self._open += 1
        try:
            await self._services.handle(exchange, message, payload)
        finally:
            self._open -= 1
            if not self._open:
                self._silent.set()

    async def wait_silent(self) -> None:
        """Wait until nothing is being served, and all answers have left."""
        await self._inbound.wait_silent()
        if self._open:
            self._silent = trio.Event()
            await self._silent.wait()

    def _refusal(self, exchange: Exchange, message: DataMessage) -> str:
        if isinstance(message, JobSend | JobOffer | LaneRun):
            return "" if self._has_role(exchange, SUBMIT) else "jobs need role 'submit'"
        if isinstance(message, StealRequest):
            return "" if self._has_role(exchange, SERVE) else "stealing needs role 'serve'"
        return ""

    def _has_role(self, exchange: Exchange, role: str) -> bool:
        """Say whether the asker has a role, by the certificate of the connection: its card may still be on its way."""
        certificate: PeerCertificate | None = getattr(exchange, "certificate", None)
        if certificate is not None:
            return role in certificate.roles
        return self._membership.has_role(exchange.peer, role)  # a network in memory knows no certificates
