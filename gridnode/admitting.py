"""What a node with role admit does for others, and what every node does for its own certificate.

Admit nodes make invites, run the join door and renew certificates. Every node renews its own at 2/3 of its life: from
its own intermediate, from an admit peer, or, when it was away too long, at a join door.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from gridnode.addresses import own_addresses
from gridnode.config import NetworkConfig
from gridnode.credentials import Credentials
from gridnode.errors import GridError, StateDirectoryError
from gridnode.logs import EventLog, short
from gridnode.signedstate import PeerSource
from transport.base import DataPlane, ask
from transport.cards import Address, NodeCard
from transport.certificates import DAY_S, ROLES
from transport.door import Door, DoorConfig
from transport.doorwire import CARDS_MAX, Bundle
from transport.files import StateFileError
from transport.issuing import Issuer, make_csr
from transport.joining import renew_at_door
from transport.tokens import Invites, TokenError
from transport.wire import RemoteProtocolError, Signed, SignRequest, TransportError

log = EventLog("admit")

ROOT_FILE: Final = "1.root.json"
"""Name, in a bundle of the join door, of the root that the grid's id is the hash of."""
RENEWAL_LOOK_S: Final = 60.0
"""How often the certificate's age is looked at, and an admit node looks for a new intermediate: clocks jump, and a
machine that slept for a month wakes up late."""
RENEWAL_RETRY_S: Final = (3.0, 60.0)
"""First and longest pause after a renewal that failed, unless a peer is met before."""
RENEWAL_PAUSE_S: Final = 1.0
"""Least time between two tries, however many peers are met."""
FIRST_MEETING_S: Final = 3.0
"""Time for peers to be found after the start, before a renewal that is due is tried and its failure told."""
RENEWAL_TIMEOUT_S: Final = 10.0
INTERMEDIATE_WARNING_S: Final = 30 * DAY_S
"""An admit node's intermediate with less life left is warned of: when it ends, nothing in the grid can be renewed. As
long as a leaf lives, so that none has been cut short yet."""
WARN_EVERY_S: Final = DAY_S


class AdmissionError(GridError):
    """The node cannot admit others, or the request for an invite makes no sense."""


class Admitting:
    """Invites, door and renewal of one node.

    Parameters
    ----------
    root : callable
        Returns the grid's first root, for new nodes. Quick.
    cards : callable
        Returns node cards for new nodes, this node's first.
    on_renewed : callable
        Told when this node has a new certificate.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        network: NetworkConfig,
        invites_path: Path,
        data: DataPlane,
        peers: PeerSource,
        rng: random.Random,
        root: Callable[[], bytes],
        cards: Callable[[], Sequence[bytes]],
        on_renewed: Callable[[], None],
    ) -> None:
        self._credentials = credentials
        self._network = network
        self._data = data
        self._peers = peers
        self._rng = rng
        self._on_renewed = on_renewed
        self._wake = trio.Event()
        self._warn_s = float("-inf")
        """When the operator may next be told that the intermediate ends."""
        self._door: Door | None = None
        self._door_port = 0
        self._invites: Invites | None = None
        if credentials.is_admit and credentials.issuer is not None:
            self._invites = Invites.load(invites_path)
            self._door = Door(
                credentials.key,
                credentials.chain_pem,
                trust=credentials.trust,
                issuer=credentials.issuer,
                invites=self._invites,
                bundle=lambda: Bundle(files={ROOT_FILE: root()}, cards=tuple(cards())[:CARDS_MAX]),
                config=DoorConfig(host=network.door.host, port=network.door.port),
                on_joined=lambda node, name: log.info("node_joined", peer=short(node), name=name),
            )

    def invite(self, *, roles: Sequence[str], life_s: float) -> str:
        """Make a join token and open the door. Blocks on fsync.

        Raises
        ------
        AdmissionError
            This node has no role admit, or the roles or the life make no sense.
        """
        if self._invites is None or self._door is None or not self._door_port:
            raise AdmissionError("this node cannot invite: it has no role 'admit'; ask on the node that made the grid")
        unknown = set(roles) - set(ROLES)
        if unknown or not roles:
            raise AdmissionError(f"unknown roles {', '.join(sorted(unknown)) or '(none)'}; known: {', '.join(ROLES)}")
        hosts = own_addresses(self._network.advertise, bound=self._network.door.host)
        try:
            token = self._invites.create(
                grid_id=self._credentials.grid_id,
                ca_pem=self._credentials.ca_pem,
                issuer=self._credentials.node,
                addresses=[Address(host, self._door_port) for host in hosts],
                roles=tuple(roles),
                now_s=self._credentials.grid_time.now_s(),
                life_s=life_s,
            )
        except (TokenError, StateFileError, ValueError) as error:
            raise AdmissionError(f"no invite was made: {error}") from error
        self._door.refresh()
        return token.text

    async def wait_door_open(self) -> None:
        """Wait until the door answers; only after an invite was made."""
        if self._door is not None:
            await self._door.wait_open()

    def renew(self, csr: bytes, *, peer: NodeCard) -> bytes:
        """Sign a peer's certificate anew, with the roles it has; about 1 ms of CPU.

        Raises
        ------
        TransportError
            This node cannot, or the request is not for the peer's own key.
        """
        issuer = self._credentials.issuer
        if issuer is None or not self._credentials.is_admit:
            raise RemoteProtocolError("this node cannot sign certificates: it has no role 'admit'")
        return issuer.renew(csr, peer.certificate, now_s=self._credentials.grid_time.now_s())

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._door is not None:
                _, self._door_port = await nursery.start(self._door.serve)
            nursery.start_soon(self._keep_certificate)
            task_status.started()

    def look(self) -> None:
        """Look soon: a peer was met that may renew what is due, or the owner renewed this node's intermediate."""
        self._wake.set()

    async def _keep_certificate(self) -> None:
        credentials = self._credentials
        if credentials.issuer is None:
            await self._pause(FIRST_MEETING_S)
        retry_s = RENEWAL_RETRY_S[0]
        while True:
            self._wake = trio.Event()
            if credentials.issuer is not None:
                await self._keep_intermediate(credentials.issuer)
            left_s = credentials.renewal_due_s() - credentials.grid_time.now_s()
            if left_s > 0 or await self._renew_own():
                retry_s = RENEWAL_RETRY_S[0]
                left_s = max(credentials.renewal_due_s() - credentials.grid_time.now_s(), 0.0)
                await self._pause(min(left_s, RENEWAL_LOOK_S * self._rng.uniform(0.5, 1.0)))
            else:
                log.warning("certificate_not_renewed", expires_s=credentials.certificate.not_after_s)
                await self._pause(retry_s * self._rng.uniform(0.5, 1.0))
                retry_s = min(2 * retry_s, RENEWAL_RETRY_S[1])
            await trio.sleep(RENEWAL_PAUSE_S)

    async def _pause(self, limit_s: float) -> None:
        with trio.move_on_after(limit_s):
            await self._wake.wait()

    async def _keep_intermediate(self, issuer: Issuer) -> None:
        """Take up a new intermediate of the owner's, and warn in time where there is none."""
        if await trio.to_thread.run_sync(self._credentials.reload_issuer):
            assert self._credentials.issuer is not None
            log.info("intermediate_renewed", expires_s=self._credentials.issuer.not_after_s)
            if self._door is not None:
                self._door.renew(self._credentials.chain_pem, self._credentials.issuer)
            return
        left_s = issuer.not_after_s - self._credentials.grid_time.now_s()
        if left_s < INTERMEDIATE_WARNING_S and trio.current_time() >= self._warn_s:
            self._warn_s = trio.current_time() + WARN_EVERY_S
            remedy = "call 'gridnode grid renew' on this machine with the owner's keys"
            log.error("intermediate_ends", days_left=round(left_s / DAY_S, 1), remedy=remedy)

    async def _renew_own(self) -> bool:
        chain = await self._sign_own()
        if chain is None:
            return False
        try:
            await trio.to_thread.run_sync(self._credentials.replace_chain, chain)
        except StateDirectoryError as error:
            log.error("certificate_refused", error=error)
            return False
        log.info("certificate_renewed", expires_s=self._credentials.certificate.not_after_s)
        if self._door is not None:
            self._door.renew(chain)
        self._on_renewed()
        return True

    async def _sign_own(self) -> bytes | None:
        """Get a new chain from our own intermediate or from the first admit peer that gives one."""
        credentials = self._credentials
        if credentials.issuer is not None and credentials.is_admit:
            try:
                roles = credentials.certificate.roles
                now_s = credentials.grid_time.now_s()
                return credentials.issuer.issue(credentials.key.private.public_key(), roles, now_s=now_s)
            except TransportError as error:
                log.error("intermediate_unusable", error=error)
        request = SignRequest(csr=make_csr(credentials.key))
        for node in self._peers.admit_peers():
            try:
                with trio.move_on_after(RENEWAL_TIMEOUT_S):
                    answer, _ = await ask(self._data, node, request)
                    if isinstance(answer, Signed) and answer.chain is not None:
                        return answer.chain
                    log.warning("renewal_refused", peer=short(node), reason=getattr(answer, "reason", ""))
            except TransportError as error:
                log.debug("renewal_failed", peer=short(node), error=error)
        return await self._ask_at_doors()

    async def _ask_at_doors(self) -> bytes | None:
        """Renew at a join door: no peer talks to a node whose certificate expired, whatever its own clock says."""
        credentials = self._credentials
        if not credentials.grid.doors:
            return None
        parts = (text.rpartition(":") for text in credentials.grid.doors)
        doors = [Address(host, int(port)) for host, _, port in parts if host and port.isdigit()]
        try:
            grant = await renew_at_door(doors, credentials.key, credentials.chain_pem, credentials.trust)
        except TransportError as error:
            if credentials.grid_time.now_s() >= credentials.certificate.not_after_s:
                remedy = "make an invite on an admit node: its door opens then"
                log.error("door_did_not_renew", error=error, remedy=remedy)
            return None
        return grant.chain_pem
