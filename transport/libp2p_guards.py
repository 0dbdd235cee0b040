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
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service.api import InternalManagerAPI

from transport.intake import TokenBuckets
from transport.wire import GOSSIP_MAX_BYTES

STREAMS_PER_PEER: Final = 8
"""Inbound streams of one peer at once; gossip takes one per connection, pings one each."""
RPC_MAX_BYTES: Final = 64 * 1024
"""Largest gossip RPC: sixteen of the largest messages. Parsing it takes about 3 ms at worst."""
SUBSCRIPTIONS_MAX: Final = 8
"""Topics a peer may follow; there are five."""
FORWARDER_RATE_HZ: Final = 200.0
"""New messages per second through one neighbour; each costs a signature check of 0.1-0.3 ms."""
FORWARDER_BURST: Final = 400.0
FORWARDERS_MAX: Final = 256
ID_MAX_BYTES: Final = 64
"""Longest origin, key or signature in a message; Ed25519 takes 38, 36 and 64."""
SEQUENCE_BYTES: Final = 8
HEARTBEAT_FAULTS_MAX: Final = 10
"""Heartbeats that may fail, one a second, before gossip counts as broken and the node ends."""
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


def _fence(manager: InternalManagerAPI, faults: Faults) -> InternalManagerAPI:
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
        return _fence(self._manager, self._faults)

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
            await _reset(net_stream)
            return
        self._inbound[peer] += 1
        try:
            await super()._swarm_stream_handler(net_stream)
        except Exception as error:
            self._faults.note("stream", error)
            await _reset(net_stream)
        finally:
            self._inbound[peer] -= 1
            if not self._inbound[peer]:
                del self._inbound[peer]


async def _reset(stream: INetStream) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_UP_S):
        try:
            await stream.reset()
        except Exception:  # the connection is gone: so is the stream
            return


class GuardedGossipSub(GossipSub):
    """Outlives a failing heartbeat, and does not tell addresses with every message."""

    def __init__(self, faults: Faults, *args: Any, **options: Any) -> None:  # noqa: ANN401 - stock signature
        super().__init__(*args, **options)
        self._faults = faults

    @property
    def manager(self) -> InternalManagerAPI:
        """Manager of this service, fenced."""
        return _fence(self._manager, self._faults)

    async def heartbeat(self) -> None:
        """Run the heartbeat; begin anew after an exception, up to a bound."""
        for _ in range(HEARTBEAT_FAULTS_MAX):
            try:
                await super().heartbeat()
            except Exception as error:
                self._faults.note("heartbeat", error)
                await trio.sleep(self.heartbeat_interval)
        await super().heartbeat()

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        """Send without the signed record of our addresses: it costs the receiver a signature check each time."""
        if rpc.HasField("senderRecord"):
            rpc.ClearField("senderRecord")
        super().send_rpc(peer_id, rpc, priority)


class GuardedPubsub(Pubsub):
    """Checks form and rate of a message before its signature, and fences what a peer can trigger."""

    def __init__(self, faults: Faults, *args: Any, **options: Any) -> None:  # noqa: ANN401 - stock signature
        super().__init__(*args, **options)
        self._faults = faults
        self._forwarders = TokenBuckets(rate_hz=FORWARDER_RATE_HZ, burst=FORWARDER_BURST, names_max=FORWARDERS_MAX)
        self._registering: dict[ID, trio.Lock] = {}
        self.ill_formed = 0
        self.limited = 0

    @property
    def manager(self) -> InternalManagerAPI:
        """Manager of this service, fenced."""
        return _fence(self._manager, self._faults)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        # Stock looks whether the peer has a stream, opens one, then enters it. Two connections made at once (each side
        # dialled) would enter two, and the queue of the first would have nobody to close it: a stream and two tasks
        # left per reconnection, and no new neighbour at all after a thousand.
        lock = self._registering.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                await super()._handle_new_peer(peer_id)
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._registering.pop(peer_id, None)

    def get_hello_packet(self) -> rpc_pb2.RPC:
        """Return the subscriptions, without a record of our addresses."""
        packet = super().get_hello_packet()
        packet.ClearField("senderRecord")
        return packet

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Take a message from a neighbour, or an own one."""
        if msg_forwarder != self.my_id and not self._may_enter(msg_forwarder, msg):
            return
        await super().push_msg(msg_forwarder, msg)

    def _may_enter(self, forwarder: ID, msg: rpc_pb2.Message) -> bool:
        parts = (msg.from_id, msg.key, msg.signature)
        if (
            len(msg.topicIDs) != 1
            or len(msg.data) > GOSSIP_MAX_BYTES
            or len(msg.seqno) != SEQUENCE_BYTES
            or any(len(part) > ID_MAX_BYTES for part in parts)
        ):
            self.ill_formed += 1
            return False
        if self._is_msg_seen(msg):
            return False
        # By forwarder, whose name is proved; the origin's is not before the signature is checked.
        if not self._forwarders.take(forwarder.to_base58(), trio.current_time()):
            self.limited += 1
            return False
        return True

    def _handle_dead_peer(self, peer_id: ID) -> None:
        # Stock would forget the subscriptions too, which a peer that reconnected in the meantime does not repeat:
        # it would never be sent a message again.
        if self._peer_is_connected(peer_id):
            self._renew_stream(peer_id)
        else:
            super()._handle_dead_peer(peer_id)

    async def handle_dead_peer_queue(self) -> None:
        """Take note of closed connections; a peer with another connection gets a new stream if it needs one."""
        async with self.dead_peer_receive_channel:
            self.event_handle_dead_peer_queue_started.set()
            async for peer_id in self.dead_peer_receive_channel:
                if not self._peer_is_connected(peer_id):
                    self._handle_dead_peer(peer_id)
                elif peer_id in self.peers and self.peers[peer_id].muxed_conn.is_closed:
                    # Stock keeps a stream whose connection is gone while another lives, and takes no new one.
                    self._renew_stream(peer_id)

    def _renew_stream(self, peer_id: ID) -> None:
        if self.peers.pop(peer_id, None) is not None:
            queue = self.peer_queues.pop(peer_id, None)
            if queue is not None:
                queue.close()
            self.router.remove_peer(peer_id)
        self._schedule_peer_stream_retry(peer_id)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Do nothing: the validator delivers, see transport.libp2p_host."""


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
