"""libp2p 0.8.1 with a fence around each place where a peer's input, or a bug, would end the whole host.

In the stock classes an exception that escapes any stream handler, validator or background task cancels the swarm's
nursery and with it the process. Here it costs the peer its stream or the message, and is counted as a fault; only
what our own validators raise is a bug, which GossipIntake tells the supervisor. The subclasses rely on the insides
of exactly this version of libp2p; requirements pin it and tests/loopback/test_transport_libp2p_host.py holds it.
"""

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING_PROTOCOL
from libp2p.host.ping import PingService
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.tools.anyio_service.api import InternalManagerAPI

STREAMS_PER_PEER: Final = 8
"""Inbound streams of one peer at once; gossip takes one per connection, pings one each."""
CLEAN_UP_S: Final = 1.0
"""How long resetting a peer's stream may take."""


class Faults:
    """Exceptions that came out of libp2p, by where they came up."""

    def __init__(self) -> None:
        self.counts: Final[Counter[str]] = Counter()
        self.last = ""

    def note(self, where: str, error: Exception) -> None:
        """Count a fault; the last one's text is kept for status."""
        self.counts[where] += 1
        self.last = f"{where}: {type(error).__name__}: {error}"


class _Fence:
    """Stands in for a service's manager: its tasks note their exceptions instead of ending the service."""

    def __init__(self, manager: InternalManagerAPI, faults: Faults) -> None:
        self._manager = manager
        self._faults = faults

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - passes the manager's members through
        return getattr(self._manager, name)

    def run_task(self, async_fn: Callable[..., Awaitable[Any]], *args: object, **options: Any) -> None:  # noqa: ANN401
        """Run a task in the background, fenced."""

        async def fenced() -> None:
            try:
                await async_fn(*args)
            except Exception as error:
                self._faults.note(getattr(async_fn, "__qualname__", "task"), error)

        self._manager.run_task(fenced, **options)


def fence(manager: InternalManagerAPI, faults: Faults) -> InternalManagerAPI:
    """Return a manager whose tasks note their exceptions instead of ending the service."""
    return cast(InternalManagerAPI, _Fence(manager, faults))


class _NoAutoConnector(AutoConnector):
    """transport.discovery decides whom to dial, nobody else."""

    async def maybe_connect(self) -> None:
        await trio.lowlevel.checkpoint()


class GuardedSwarm(Swarm):
    """Dials only when told, by address."""

    def __init__(self, faults: Faults, *args: Any, **options: Any) -> None:  # noqa: ANN401 - stock signature
        super().__init__(*args, **options)
        self._faults = faults
        self.auto_connector = _NoAutoConnector(self)

    @property
    def manager(self) -> InternalManagerAPI:
        """Manager of this service, fenced."""
        return fence(self._manager, self._faults)

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """Refuse: opening a stream must not dial addresses that a peer has told."""
        await trio.lowlevel.checkpoint()
        raise SwarmException(f"no connection to {peer_id}; only the mesh planner dials")


class GuardedHost(BasicHost):
    """Limits and fences inbound streams; speaks gossip and ping only, unless identify is asked for.

    Parameters
    ----------
    identify : bool
        Whether to speak the identify protocol, which other libp2p implementations need.
    """

    def __init__(self, network: GuardedSwarm, faults: Faults, *, identify: bool) -> None:
        self._faults = faults
        self._identify = identify
        self._inbound: Counter[ID] = Counter()
        super().__init__(
            network,
            default_protocols=None if identify else OrderedDict({PING_PROTOCOL: PingService(self).handle_ping}),
            announce_addrs=None if identify else (),
            disable_identify_address_discovery=True,
        )

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        if self._identify:
            super()._schedule_identify(peer_id, reason=reason)

    async def _push_identify_to_all_peers(self) -> None:
        if self._identify:
            await super()._push_identify_to_all_peers()

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        peer = net_stream.muxed_conn.peer_id
        if self._inbound[peer] >= STREAMS_PER_PEER:
            await reset(net_stream)
            return
        self._inbound[peer] += 1
        try:
            await super()._swarm_stream_handler(net_stream)
        except Exception as error:
            self._faults.note("stream", error)
            await reset(net_stream)
        finally:
            self._inbound[peer] -= 1
            if not self._inbound[peer]:
                del self._inbound[peer]


async def reset(stream: INetStream) -> None:
    """Cut a stream off, whatever state it is in."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_UP_S):
        try:
            await stream.reset()
        except Exception:  # the connection is gone: so is the stream
            return


def connection_config(*, connections_max: int, upgrade_timeout_s: float) -> ConnectionConfig:
    """Return limits for a small grid: no minimum that the auto-connector would fill, no pruning of its own."""
    return ConnectionConfig(
        max_connections=connections_max,
        min_connections=0,
        low_watermark=0,
        high_watermark=connections_max,
        inbound_upgrade_timeout=upgrade_timeout_s,
        outbound_upgrade_timeout=upgrade_timeout_s,
        inbound_stream_protocol_negotiation_timeout=upgrade_timeout_s,
        outbound_stream_protocol_negotiation_timeout=upgrade_timeout_s,
    )


def no_retries() -> RetryConfig:
    """Return the retry settings of a dial: transport.discovery has a backoff of its own."""
    return RetryConfig(max_retries=0)
