"""First contacts: exchanging cards and revocations with peers, and trying those again whose data port did not answer.

Knows nothing of gossip. What is learned goes to a Register (gridnode.membership), which judges it.
"""

from collections.abc import Callable
from typing import Final, Protocol

import trio

from gridnode.logs import EventLog, short
from transport.base import DataPlane, ask
from transport.wire import (
    CARDS_PER_MESSAGE_MAX,
    CardRequest,
    Cards,
    Document,
    PeerUnreachableError,
    RemoteProtocolError,
    RevocationRequest,
    TransportError,
)

log = EventLog("membership")

INTRODUCTION_TIMEOUT_S: Final = 10.0
INTRODUCTIONS_MAX: Final = 4
"""Introductions at once: each may open a connection and verify a page of cards."""
RETRY_S: Final = (1.0, 60.0)
"""First and longest pause before a peer whose data port did not answer is tried again."""
COMPARE_EVERY_S: Final = 30.0
"""Least time between two comparisons of revocation lists with one peer, however many connections it opens."""


class Register(Protocol):
    """Keeps cards and revocations."""

    @property
    def own_card(self) -> bytes:
        """Card of this node; empty before its ports are bound."""
        ...

    @property
    def revocation_version(self) -> int:
        """Version of the revocation list held."""
        ...

    def knows(self, node: str) -> bool:
        """Say whether a node's card is held."""
        ...

    def learn(self, encoded: bytes) -> str | None:
        """Take in a card; returns its node, or None where it is no good."""
        ...

    def take_revocations(self, document: bytes) -> bool:
        """Take in a revocation list; raises TransportError."""
        ...


class Introductions:
    """Meets peers over the data plane.

    Parameters
    ----------
    on_meeting : callable
        Told each peer that was met.
    on_reachable : callable
        Told (node, whether its data port answers) when that changed.
    """

    def __init__(
        self,
        register: Register,
        *,
        data: DataPlane,
        on_meeting: Callable[[str], None],
        on_reachable: Callable[[str, bool], None],
    ) -> None:
        self._register = register
        self._data = data
        self._on_meeting = on_meeting
        self._on_reachable = on_reachable
        self._nursery: trio.Nursery | None = None
        self._under_way: set[str] = set()
        self._unreachable: dict[str, float] = {}
        """Node to next pause, for peers whose data port did not answer."""
        self._compared_s: dict[str, float] = {}
        self._limit = trio.CapacityLimiter(INTRODUCTIONS_MAX)

    def begin(self, nursery: trio.Nursery) -> None:
        """Work in a nursery from now on: the one of membership's life."""
        self._nursery = nursery

    def is_reachable(self, node: str) -> bool:
        """Say whether the node's data port answered when it was last tried."""
        return node not in self._unreachable

    def introduce(self, node: str, *, wanted: str | None = None) -> None:
        """Exchange cards with a peer whose card is held, unless that is under way.

        Parameters
        ----------
        node : str
            Whom to ask.
        wanted : str, optional
            The one node whose card is wanted; all that the peer holds where none is given.
        """
        if self._nursery is None or node in self._under_way or not self._register.knows(node):
            return
        self._under_way.add(node)
        self._nursery.start_soon(self._meet, node, wanted)

    def compare_revocations(self, node: str) -> None:
        """Compare revocation lists with a peer that opened a connection, unless that was done just now."""
        now_s = trio.current_time()
        if self._nursery is None or now_s < self._compared_s.get(node, -COMPARE_EVERY_S) + COMPARE_EVERY_S:
            return
        self._compared_s[node] = now_s
        self._nursery.start_soon(self._compare, node)

    def doubt(self, node: str) -> None:
        """Take note that a node's data port did not answer a job; it is tried again in a while."""
        if node in self._unreachable or self._nursery is None:
            return
        self._unreachable[node] = RETRY_S[0]
        self._on_reachable(node, False)
        self._nursery.start_soon(self._retry, node)

    def forget(self, node: str) -> None:
        """Stop trying a node that is gone."""
        self._unreachable.pop(node, None)
        self._compared_s.pop(node, None)

    async def _meet(self, node: str, wanted: str | None) -> None:
        reached = False
        try:
            async with self._limit:
                with trio.move_on_after(INTRODUCTION_TIMEOUT_S):
                    await self._pull_cards(node, wanted)
                    await self._pull_revocations(node)
                    reached = True
        except PeerUnreachableError as error:
            log.debug("introduction_failed", peer=short(node), error=error)
        except TransportError as error:
            log.warning("introduction_refused", peer=short(node), error=error)
        finally:
            self._under_way.discard(node)
        if not reached:
            self.doubt(node)
            return
        self._on_meeting(node)
        if self._unreachable.pop(node, None) is not None:
            self._on_reachable(node, True)

    async def _compare(self, node: str) -> None:
        try:
            with trio.move_on_after(INTRODUCTION_TIMEOUT_S):
                await self._pull_revocations(node)
        except TransportError as error:
            log.debug("revocations_not_compared", peer=short(node), error=error)

    async def _pull_cards(self, node: str, wanted: str | None) -> None:
        """Give our card and get the peer's: one, or page by page all."""
        named = (wanted,) if wanted is not None else ()
        after = ""
        while True:
            async with self._data.exchange(node) as exchange:
                await exchange.send(CardRequest(nodes=named, after=after, own=self._register.own_card or None))
                answer, _ = await exchange.receive()
                if not isinstance(answer, Cards):
                    raise RemoteProtocolError(f"peer answered a card request with {type(answer).__name__}")
                exchange.finish()
            last = ""
            for encoded in answer.cards:
                last = max(last, self._register.learn(encoded) or "")
                await trio.lowlevel.checkpoint()
            if named or len(answer.cards) < CARDS_PER_MESSAGE_MAX or last <= after:
                return
            after = last

    async def _pull_revocations(self, node: str) -> None:
        self._compared_s[node] = trio.current_time()
        answer, payload = await ask(self._data, node, RevocationRequest(version=self._register.revocation_version))
        if isinstance(answer, Document) and answer.found:
            self._register.take_revocations(bytes(payload))

    async def _retry(self, node: str) -> None:
        """Try a data port again until it answers or the node is forgotten."""
        while (pause_s := self._unreachable.get(node)) is not None:
            await trio.sleep(pause_s)
            if node not in self._unreachable:
                return
            self._unreachable[node] = min(pause_s * 2, RETRY_S[1])
            if node not in self._under_way:
                self._under_way.add(node)
                await self._meet(node, None)
