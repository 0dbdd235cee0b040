"""The control plane over py-libp2p 0.8.1. The only module others import to reach libp2p.

All of libp2p is 1,250 modules; a process that wants only this calls transport.libp2p_imports.leave_out() first.

Owns the host: identity, security, limits, gossip topics, dials, and that it ends without a trace. The guards that
make libp2p safe to run lie beside it: transport.libp2p_tcp (sockets), transport.libp2p_security (certificates),
transport.libp2p_guards (exceptions, floods of streams), transport.libp2p_pubsub (the way of a message) and
transport.libp2p_gossipsub (the mesh). What a message means is the validators' business.

An exception inside libp2p costs a stream or a message and shows in statistics(); an exception of a validator is a
bug of ours and goes to on_bug, which should end the node; if libp2p's services themselves fail, serve() raises.
"""

import functools
import logging
import random
from collections.abc import Callable
from typing import Final

import msgspec
import trio
from libp2p.abc import IMuxedConn, INetConn, ISecureTransport
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.pubsub.pb import rpc_pb2
from libp2p.rcmgr import Direction
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.upgrader import TransportUpgrader

from transport.base import STATE_TOPIC, TOPICS, Dial, GossipMessage, Neighbour, Validator
from transport.certificates import GridTrust
from transport.identity import NodeKey
from transport.intake import GossipIntake, IntakeStatistics
from transport.libp2p_gossipsub import RPC_MAX_BYTES, GuardedGossipSub
from transport.libp2p_guards import Faults, GuardedHost, GuardedSwarm, connection_config, no_retries
from transport.libp2p_mux import MUX_PROTOCOL, GridMux
from transport.libp2p_pubsub import SUBSCRIPTIONS_MAX, GuardedPubsub
from transport.libp2p_security import PROTOCOL, GridSecurity, libp2p_keys
from transport.libp2p_tcp import GridTcp, multiaddr_of
from transport.wire import GOSSIP_MAX_BYTES, LocalProtocolError, PeerUnreachableError

GOSSIP_PROTOCOL: Final = TProtocol("/meshsub/1.1.0")
_MUXERS: Final[dict[str, type[IMuxedConn]]] = {MUX_PROTOCOL: GridMux, YAMUX_PROTOCOL: Yamux}
NAMES_MAX: Final = 2048
"""Names of origins kept as text: as many as transport.intake keeps rates of."""
EPOCH_BITS: Final = 40
"""Sequence numbers of gossip start at epoch << EPOCH_BITS: they never repeat over restarts, without a clock, and a
node would have to send a million messages per second for twelve days to reach its next epoch's."""


class Libp2pConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times and bounds of the control plane."""

    muxers: tuple[str, ...] = (MUX_PROTOCOL, YAMUX_PROTOCOL)
    """Protocols that share a connection among streams, the preferred first; yamux is what other libp2p's speak."""
    heartbeat_s: int = 1
    """Period of gossip's mesh upkeep (gossipsub's own default; py-libp2p's is 120 s)."""
    phase_s: float = 0.0
    """How long after the process's other timers the heartbeat comes. At once is cheapest; several hosts in one process
    need different phases, or they would all speak at one moment, which nodes never do."""
    degree: int = 3
    """Neighbours that a topic's messages are pushed to; the others are told by name. Each one more costs a copy of
    each message, half a copy of each state record."""
    degree_low: int = 2
    degree_high: int = 5
    spread_s: float = 0.1
    """How long a state record may wait at each node for others to go with it and for neighbours to say that they know
    it; then it goes with the next thing that happens, at the latest at the next heartbeat. News of health, cards,
    revocations and trust never wait. 0: neither does a record."""
    backoff_s: int = 10
    """How long a neighbour pruned from a topic's mesh is not grafted again; short, so that partitions heal."""
    topic_rate_hz: float = 1000.0
    """py-libp2p's own limit per forwarder and topic (its default of 10 throttles an honest neighbour); ours are in
    transport.intake and transport.libp2p_guards."""
    connections_max: int = 128
    """Control connections in all, both directions; transport.discovery keeps about eight."""
    upgrade_timeout_s: float = 3.0
    """From the TCP connection to the negotiated muxer; a handshake takes under 1 s on the slowest boards."""
    connect_timeout_s: float = 5.0
    """Longest dial, name resolution included."""
    close_s: float = 3.0
    """How long saying goodbye may take at the end; then sockets are closed as they are."""


class Libp2pStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the control plane has seen since start."""

    connections: int
    pending: int
    """Inbound connections that have not proved who they are."""
    evicted: int
    """Of those, closed because newer ones came."""
    ill_formed: int
    copies: int
    """Well-formed gossip messages that arrived, duplicates too."""
    limited: int
    """Messages above the rate of their forwarder."""
    dropped: int
    """Messages for neighbours that do not read: their queue was full."""
    intake: IntakeStatistics
    faults: dict[str, int]
    """Exceptions inside libp2p, by where they came up."""
    last_fault: str


class Libp2pHost:
    """Gossip and neighbourhood of one node; implements transport.base.ControlPlane.

    Parameters
    ----------
    key : NodeKey
        This node's key; its PeerID follows from it.
    grid_id : str
        64 hex digits; the first 16 prefix the topics.
    epoch : int
        Boot epoch of this node, counted on disk; sequence numbers of gossip start there.
    listen : tuple of str and int
        Host (an IP address) and port; port 0 for any.
    trust, chain_pem : GridTrust, bytes
        Judge of peers, and this node's certificate chain. None opens the grid to anyone who speaks noise: for
        tests with other libp2p implementations only.
    on_bug : callable
        Told of an exception that a validator raised; should end the node.
    """

    def __init__(
        self,
        key: NodeKey,
        *,
        grid_id: str,
        epoch: int,
        listen: tuple[str, int],
        trust: GridTrust | None,
        chain_pem: bytes | None,
        on_bug: Callable[[Exception], None],
        config: Libp2pConfig | None = None,
    ) -> None:
        _silence()
        self._key = key
        self._node = key.node
        self._epoch = epoch
        self._listen = listen
        self._config = config or Libp2pConfig()
        self._prefix = f"gridnode/{grid_id[:16]}/"
        self._faults = Faults()
        self._intake = GossipIntake(clock=trio.current_time, on_bug=on_bug)
        self._tcp = GridTcp(self._faults.note)
        self._security: GridSecurity | None = None
        if trust is not None and chain_pem is not None:
            self._security = GridSecurity(key, chain_pem, trust, self._establish)
        self._swarm = self._make_swarm()
        self._host = GuardedHost(self._swarm, self._faults, identify=self._security is None)
        self._gossip, self._pubsub = self._make_gossip()
        self._is_serving = False

    def _make_swarm(self) -> GuardedSwarm:
        keys = libp2p_keys(self._key)
        upgrader = TransportUpgrader(
            secure_transports_by_protocol=self._make_security(keys),
            muxer_transports_by_protocol={TProtocol(name): _MUXERS[name] for name in self._config.muxers},
        )
        peerstore = PeerStore()
        node = ID.from_pubkey(keys.public_key)
        peerstore.add_key_pair(node, keys)
        config = connection_config(
            connections_max=self._config.connections_max, upgrade_timeout_s=self._config.upgrade_timeout_s
        )
        return GuardedSwarm(
            self._faults,
            node,
            peerstore,
            upgrader,
            transports=[self._tcp],
            retry_config=no_retries(),
            connection_config=config,
        )

    def _make_security(self, keys: KeyPair) -> dict[TProtocol, ISecureTransport]:
        if self._security is not None:
            return {PROTOCOL: self._security}
        from transport.libp2p_open import open_security  # a private grid has no use for noise and its libraries

        return open_security(keys, self._establish)

    def _make_gossip(self) -> tuple[GuardedGossipSub, GuardedPubsub]:
        config = self._config
        gossip = GuardedGossipSub(
            self._faults,
            [GOSSIP_PROTOCOL],
            fleeting=[self._prefix + STATE_TOPIC],
            spread_s=config.spread_s,
            phase_s=config.phase_s,
            rng=random.Random(f"{self._node}/{self._epoch}"),
            degree=config.degree,
            degree_low=config.degree_low,
            degree_high=config.degree_high,
            heartbeat_interval=config.heartbeat_s,
            prune_back_off=config.backoff_s,
            max_messages_per_topic_per_second=config.topic_rate_hz,
            # Both would bend the degrees above by measures that mean nothing in a grid of few, certified nodes.
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
        )
        pubsub = GuardedPubsub(
            self._faults,
            self._host,
            gossip,
            strict_signing=True,
            max_subscriptions_per_rpc=SUBSCRIPTIONS_MAX,
            max_subscriptions_per_peer=SUBSCRIPTIONS_MAX,
            max_inbound_rpc_size=RPC_MAX_BYTES,
            allowed_topics={self._prefix + topic for topic in TOPICS},
        )
        pubsub.counter = self._epoch << EPOCH_BITS
        return gossip, pubsub

    def _establish(self, conn: RawConnection) -> None:
        self._tcp.establish(conn.stream)

    @property
    def node(self) -> str:
        """PeerID of this node."""
        return self._node

    def renew(self, chain_pem: bytes) -> None:
        """Use another certificate for connections from now on."""
        if self._security is None:
            raise LocalProtocolError("an open grid has no certificates to renew")
        self._security.renew(chain_pem)

    def statistics(self) -> Libp2pStatistics:
        """Return counters since start."""
        return Libp2pStatistics(
            connections=sum(not connection.is_closed for connection in self._swarm.get_connections()),
            pending=len(self._tcp.doorstep),
            evicted=self._tcp.doorstep.evicted,
            ill_formed=self._pubsub.ill_formed,
            copies=self._pubsub.copies,
            limited=self._pubsub.limited,
            dropped=self._gossip.dropped,
            intake=self._intake.statistics(),
            faults=dict(self._faults.counts),
            last_fault=self._faults.last,
        )

    # ------------------------------------------------------------ gossip

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip to all nodes.

        Raises
        ------
        LocalProtocolError
            The message is longer than gossip may be, or the host does not run.
        """
        await trio.lowlevel.checkpoint()  # cancelled while all ends: no complaint that the host does not run
        if len(data) > GOSSIP_MAX_BYTES:
            raise LocalProtocolError(f"a gossip message of {len(data)} bytes, at most {GOSSIP_MAX_BYTES} may be sent")
        if not self._is_serving:
            raise LocalProtocolError("the control plane does not run; publish after serve has started")
        try:
            await self._pubsub.publish(self._prefix + topic, bytes(data))
        except Exception as error:  # best effort: what goes wrong inside libp2p is counted, not raised
            self._faults.note("publish", error)

    def set_validator(self, topic: str, validator: Validator) -> None:
        """Set the check of a topic's messages; before serve."""
        self._intake.set_validator(topic, validator)

    def messages(self) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Return the bounded channel of received messages; when it is full the oldest are dropped and counted."""
        return self._intake.messages

    def consume(self, take: Callable[[GossipMessage], None] | None) -> None:
        """Give messages to a function; see transport.base.ControlPlane."""
        self._intake.consume(take)

    def _receive(self, forwarder: ID, msg: rpc_pb2.Message) -> bool:
        """Judge and deliver a message whose signature is good; libp2p forwards it when this says so."""
        origin = _name_of(msg.from_id)
        topic = msg.topicIDs[0].removeprefix(self._prefix)
        message = GossipMessage(topic=topic, origin=origin, forwarder=forwarder.to_base58(), data=bytes(msg.data))
        if not self._intake.admit(message):
            return False
        self._intake.deliver(message)
        return True

    # ------------------------------------------------------------ neighbourhood

    def neighbours(self) -> tuple[Neighbour, ...]:
        """Return the live control connections, sorted by node."""
        found = []
        for peer, connections in self._swarm.get_connections_map().items():
            live = [connection for connection in connections if not connection.is_closed]
            if live:
                address = live[0].muxed_conn.get_remote_address()  # type: ignore[attr-defined]
                outbound = any(getattr(c, "direction", None) is Direction.OUTBOUND for c in live)
                found.append(Neighbour(node=_name_of(peer.to_bytes()), address=_text(address), outbound=outbound))
        return tuple(sorted(found, key=lambda neighbour: neighbour.node))

    async def connect(self, dial: Dial) -> None:
        """Open a control connection, unless there is one.

        Raises
        ------
        PeerUnreachableError
            No answer in time, a refusal, or the node there is another or not of this grid.
        """
        if dial.node == self._node:
            raise PeerUnreachableError("a node does not dial itself")
        try:
            peer, address = ID.from_base58(dial.node), multiaddr_of(dial.host, dial.port)
        except Exception as error:  # libp2p and multiaddr raise what they like for bad text
            raise PeerUnreachableError(f"{dial.node} at {dial.host} port {dial.port} is no address: {error}") from error
        if self._swarm.get_connections(peer):
            await trio.lowlevel.checkpoint()
            return
        try:
            with trio.fail_after(self._config.connect_timeout_s):
                # By address: dial_peer would wait 250 ms for a second address and remember failures for a minute.
                await self._swarm.dial_addr(address, peer)
        except trio.TooSlowError as error:
            message = f"{dial.node} did not answer within {self._config.connect_timeout_s} s"
            raise PeerUnreachableError(message) from error
        except BaseLibp2pError as error:
            raise PeerUnreachableError(f"cannot connect to {dial.node}: {_reason(error)}") from error

    async def disconnect(self, node: str) -> None:
        """Close the control connections of a node at once, if there are any."""
        peer = ID.from_base58(node)
        connections = self._swarm.get_connections(peer)
        for connection in connections:
            # The sockets first: a goodbye could wait for a peer that does not read.
            self._tcp.abort(connection.muxed_conn.get_remote_address())  # type: ignore[attr-defined]
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._config.close_s):
            await self._swarm.close_peer(peer)
        await trio.lowlevel.checkpoint()

    # ------------------------------------------------------------ life

    async def serve(self, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; reports the bound host and port once listening.

        Raises
        ------
        PeerUnreachableError
            The address cannot be listened on.
        ExceptionGroup
            libp2p failed as a whole.
        """
        host, port = await self._tcp.bind(*self._listen)
        try:
            async with (
                self._host.run([multiaddr_of(host, port)]),
                background_trio_service(self._gossip),
                background_trio_service(self._pubsub),
            ):
                await self._pubsub.wait_until_ready()
                for topic in TOPICS:
                    self._pubsub.set_topic_validator(self._prefix + topic, self._receive, False)
                    await self._pubsub.subscribe(self._prefix + topic)
                self._is_serving = True
                try:
                    task_status.started((host, port))
                    await trio.sleep_forever()
                finally:
                    self._is_serving = False
                    # libp2p's own way of closing; what it leaves open, abort_all closes.
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + self._config.close_s):
                        await self._say_goodbye()
                        await self._host.close()
        finally:
            self._tcp.abort_all()
            self._intake.close()

    async def _say_goodbye(self) -> None:
        """Close all connections at once; libp2p would do it one by one, at 0.2 s each."""

        async def close(connection: INetConn) -> None:
            try:
                await connection.close()
            except Exception as error:  # it is gone either way, see abort_all
                self._faults.note("close", error)

        async with trio.open_nursery() as nursery:
            for connection in self._swarm.get_connections():
                nursery.start_soon(close, connection)


def _silence() -> None:
    """Keep libp2p from writing an ERROR block for each refused peer; faults are counted instead."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)


@functools.lru_cache(NAMES_MAX)
def _name_of(peer: bytes) -> str:
    """Return a PeerID as text, which takes as long as half of all else that is done for a record."""
    return ID(peer).to_base58()


def _text(address: tuple[str, int] | None) -> str:
    return "" if address is None else f"{address[0]}:{address[1]}"


def _reason(error: BaseException) -> str:
    """Return the innermost cause, which says most."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
