"""Keeps this node's copy of the grid's signed state fresh, serves it, and runs the release desk where there is one.

The rules of trust are models.trust's and models.desk's, which block; here they run in threads and their questions hop
back to the data plane. News come by gossip (TrustNotice), and by asking a few peers now and then in case it was lost.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from gridnode.credentials import Credentials
from gridnode.logs import EventLog, short
from gridnode.statedir import StateDirectory
from models.desk import NotAuthorisedError, ReleaseDesk
from models.keys import load_key
from models.manifest import ModelError
from models.metadata import Fetch, SignatureError
from models.trust import Changes, TrustClient, TrustStatus
from transport.base import TRUST_TOPIC, ControlPlane, DataPlane, ask
from transport.wire import (
    Document,
    PublishRequest,
    TransportError,
    TrustNotice,
    TrustRequest,
    encode,
)

log = EventLog("trust")

REFRESH_S: Final = 60.0
"""Mean time between two looks without news: bounds how long a node that missed the gossip stays behind."""
SOURCES_MAX: Final = 3
"""Peers asked per look: one alone could hide news until its timestamp expires."""
FILE_TIMEOUT_S: Final = 10.0
GREETING_S: Final = 2.0
"""Pause before a new neighbour is told; gossip takes a heartbeat or two to include it."""
RETRY_S: Final = 2.0
"""Pause after a look that left files missing."""


class PeerSource(Protocol):
    """Knows whom to ask."""

    def reachable_peers(self) -> Sequence[str]:
        """Return the nodes whose data port is believed to answer, sorted."""
        ...

    def admit_peers(self) -> Sequence[str]:
        """Return those of them with a release desk, sorted."""
        ...


class SignedState:
    """The signed state of the grid on this node.

    Parameters
    ----------
    on_changed : callable
        Told after each refresh that brought something.
    """

    def __init__(
        self,
        state: StateDirectory,
        credentials: Credentials,
        *,
        control: ControlPlane,
        data: DataPlane,
        peers: PeerSource,
        rng: random.Random,
        on_changed: Callable[[], None],
    ) -> None:
        self._state = state
        self._credentials = credentials
        self._control = control
        self._data = data
        self._peers = peers
        self._rng = rng
        self._on_changed = on_changed
        self.client = TrustClient(state.trust, credentials.grid_id)
        self.desk: ReleaseDesk | None = None
        if state.desk_key.exists():
            self.desk = ReleaseDesk(state.desk, load_key(state.desk_key), credentials.grid_id)
        self._wake = trio.Event()
        self._greetings = trio.Event()
        self._hints: list[str] = []
        self._alarmed = False

    # ------------------------------------------------------------ what others ask

    def status(self) -> TrustStatus:
        """Return where the copy stands."""
        return self.client.status(self._credentials.grid_time.now_s())

    def signed_file(self, path: str) -> bytes | None:
        """Return a file of the signed state. May block on a file."""
        return self.client.file(path)

    def publish(self, publication: bytes) -> bool:
        """Take what an owner signed; False where this node is no desk or refuses it. Blocks; call in a thread."""
        if self.desk is None:
            return False
        try:
            news = self.desk.accept(publication, self._credentials.grid_time.now_s())
        except ModelError as error:
            log.warning("publication_refused", error=error)
            return False
        log.info("publication_taken", news=news)
        trio.from_thread.run_sync(self.look)
        return True

    def heard(self, notice: TrustNotice, node: str) -> None:
        """Take note of what a peer holds; look there if it is newer."""
        if (notice.root_version, notice.timestamp_version) > self.client.versions():
            self._hints.append(node)
            self.look()

    def met(self, node: str) -> None:
        """Take note of a peer that answers; ask it at once while this node has no whole state of its own."""
        if self.client.versions()[1] == 0:
            self._hints.append(node)
            self.look()

    def greet(self) -> None:
        """Tell a new neighbour soon which state this node holds: after a partition either may be behind."""
        self._greetings.set()

    def look(self) -> None:
        """Look for news soon."""
        self._wake.set()

    # ------------------------------------------------------------ life

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled. What is on disk is in force at once; peers are asked while others begin with it."""
        self._credentials.grid_time.observe(self.client.signed_time_s)
        self._raise_alarm()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._greet_neighbours)
            task_status.started()
            await self._round()
            await self._keep_fresh()

    async def _greet_neighbours(self) -> None:
        """Gossip the versions a moment after neighbours were gained, when the gossip mesh includes them."""
        while True:
            await self._greetings.wait()
            self._greetings = trio.Event()
            await trio.sleep(GREETING_S)
            await self.tell()

    async def _keep_fresh(self) -> None:
        while True:
            pause_s = REFRESH_S * self._rng.uniform(0.8, 1.2)
            with trio.move_on_after(pause_s):
                await self._wake.wait()
            self._wake = trio.Event()
            complete = await self._round()
            if not complete:
                await trio.sleep(RETRY_S)
                self._wake.set()

    async def tell(self) -> None:
        """Gossip which state this node holds."""
        root, timestamp = self.client.versions()
        if root:
            notice = TrustNotice(root_version=root, timestamp_version=timestamp)
            await self._control.publish(TRUST_TOPIC, encode(notice))

    async def hand_in(self, publication: bytes) -> bool:
        """Give a publication to this node's desk, or to the first admit peer that takes it."""
        if await trio.to_thread.run_sync(self.publish, publication):
            return True
        for node in self._peers.admit_peers():
            try:
                with trio.fail_after(FILE_TIMEOUT_S):
                    answer, _ = await ask(self._data, node, PublishRequest(), (publication,))
            except (TransportError, trio.TooSlowError) as error:
                log.warning("publication_not_delivered", peer=short(node), error=error)
                continue
            if isinstance(answer, Document) and answer.found:
                self.look()
                return True
        return False

    async def _round(self) -> bool:
        """Look once; False when files are missing."""
        sources = self._sources()
        try:
            changes = await trio.to_thread.run_sync(self._refresh, sources)
        except ModelError as error:
            log.error("trust_not_refreshed", error=error)
            return False
        finally:
            self._credentials.grid_time.observe(self.client.signed_time_s)
            self._raise_alarm()
        for fault in changes.faults:
            log.debug("trust_source_failed", kind=fault.kind, reason=fault.reason)
        if changes.advanced:
            log.info("trust_advanced", versions=self.client.versions(), changed=len(changes.changed))
            await self.tell()
        if changes.advanced or changes.changed:
            self._on_changed()
        return not changes.missing

    def _raise_alarm(self) -> None:
        """Tell once that the state's time is over, and once that it is fresh again."""
        status = self.status()
        expired = status.expired and status.expires_s > 0
        if expired and not self._alarmed:
            remedy = "let a node with role admit come back; if one is there, call 'gridnode grid renew' on it"
            log.error("trust_expired", consequence="nothing new is installed, what runs goes on", remedy=remedy)
        elif self._alarmed and not expired:
            log.info("trust_fresh", expires_s=status.expires_s)
            # What waited for this may be installed now.
            self._on_changed()
        self._alarmed = expired

    def _sources(self) -> list[Fetch]:
        """Return whom to ask: who had news first, then a few others."""
        known = list(self._peers.reachable_peers())
        hints = [node for node in dict.fromkeys(self._hints) if node in known]
        self._hints.clear()
        others = [node for node in known if node not in hints]
        chosen = hints + self._rng.sample(others, min(len(others), SOURCES_MAX))
        return [partial(self._ask_from_thread, node) for node in chosen[:SOURCES_MAX]]

    def _refresh(self, sources: Sequence[Fetch]) -> Changes:
        """Refresh desk and copy. Runs in a thread."""
        now_s = self._credentials.grid_time.now_s()
        own: list[Fetch] = []
        if self.desk is not None:
            self._run_desk(self.desk, sources, now_s)
            own.append(self.desk.file)
        return self.client.refresh([*own, *sources], now_s)

    def _run_desk(self, desk: ReleaseDesk, sources: Sequence[Fetch], now_s: float) -> None:
        for fetch in sources:
            try:
                desk.pull(fetch)
            except SignatureError as error:
                log.debug("desk_source_failed", error=error)
        try:
            if desk.refresh(now_s):
                log.info("state_signed", next_s=desk.next_refresh_s() - now_s)
        except NotAuthorisedError as error:
            log.warning("desk_not_authorised", error=error)

    def _ask_from_thread(self, node: str, path: str) -> bytes | None:
        return trio.from_thread.run(self._ask, node, path)

    async def _ask(self, node: str, path: str) -> bytes | None:
        """Ask a peer for a file; None where it does not answer or has none."""
        try:
            with trio.move_on_after(FILE_TIMEOUT_S):
                answer, payload = await ask(self._data, node, TrustRequest(path=path))
                return bytes(payload) if isinstance(answer, Document) and answer.found else None
        except TransportError as error:
            log.debug("trust_source_lost", peer=short(node), error=error)
        return None
