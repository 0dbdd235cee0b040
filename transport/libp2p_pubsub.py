"""libp2p's gossip, fenced and made cheap: the way of a message through it is our own, its mesh is libp2p's.

Stock pubsub reads a message's length byte by byte, starts a task per message, looks for its signature's key in three
places, copies and splits it per neighbour and wakes a task for each: four fifths of what a state record cost. Here a
message is judged, delivered and passed on in the call that read it, and encoded once. What is checked, in this order:

    form, seen before, rate of the forwarder     cheap, and the forwarder's name is proved
    signature                                    50 us
    rate of the origin, topic's own judge        transport.intake; the origin's name is proved by now

Degrees, grafts, prunes, IHAVE and IWANT are the stock router's. Records of addresses (senderRecord) are neither sent
nor read: nodes are dialled only by address, and each record costs the receiver a signature check.

The subclasses rely on the insides of exactly this version of libp2p, as transport.libp2p_guards does.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, cast

import trio
from libp2p.abc import IMuxedStream, INetStream
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX, signature_validator
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.tools.anyio_service.api import InternalManagerAPI

from transport.delimited import DelimitedReader, delimit
from transport.intake import TokenBuckets
from transport.libp2p_guards import Faults, fence, reset
from transport.libp2p_mux import GridMuxStream
from transport.wire import GOSSIP_MAX_BYTES, FrameTooLargeError

RPC_MAX_BYTES: Final = 64 * 1024
"""Largest gossip RPC: sixteen of the largest messages. Parsing it takes about 3 ms at worst."""
MESSAGES_PER_RPC: Final = 256
"""Messages taken out of one RPC: as many state records as fit in it. The rest counts as ill-formed."""
CONTROLS_MAX: Final = 16
"""RPCs with grafts, prunes or names of messages that wait for the router. A neighbour sends one per heartbeat."""
READ_BYTES: Final = 64 * 1024
"""Most that one read takes from a neighbour's stream."""
WRITE_BYTES: Final = 64 * 1024
"""What a queue may join into one write."""
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
NEWS_MAX: Final = 100
"""Fleeting messages that may wait to be passed on; with state records' 450 bytes they fit in one RPC."""
LAZY_PEERS: Final = 1
"""Neighbours outside a fleeting topic's mesh that are told the names of its last messages. Enough to bridge a mesh in
two halves."""
LAZY_BEATS: Final = 3
"""Heartbeats between two such tellings: as many as a name is kept, so that each is told once."""

_ED25519_PREFIX: Final = bytes.fromhex("002408011220")
"""What a PeerID begins with that holds its Ed25519 key (libp2p peer-ids: identity multihash of the key's protobuf)."""
_ED25519_BYTES: Final = len(_ED25519_PREFIX) + 32
_SIGNATURE_BYTES: Final = 64
_SIGNING_PREFIX: Final = PUBSUB_SIGNING_PREFIX.encode()


class _News(NamedTuple):
    """A message on its way to the mesh."""

    rpc: bytes
    topic: str
    known_to: set[ID]
    """Who need not be told: its origin, and the neighbours it came from."""


class GuardedGossipSub(GossipSub):
    """Outlives a failing heartbeat, tells no addresses, and passes messages on without detours.

    Parameters
    ----------
    fleeting : collection of str
        Topics whose messages are soon replaced by newer ones: they may wait for one another on their way, and are
        hardly worth telling outside the mesh.
    spread_s : float
        Such a message waits up to so long, drawn, then for the next RPC or the next heartbeat. So that of two
        neighbours that hear it one speaks first, and the other one, who hears it from him, need not send it back: each
        connection of the mesh carries it once instead of twice, often with others, and nobody is woken for it.
    rng : random.Random
        Draws how long.
    """

    def __init__(
        self,
        faults: Faults,
        *args: Any,  # noqa: ANN401 - stock signature
        fleeting: Iterable[str],
        spread_s: float,
        rng: random.Random,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **options)
        self._faults = faults
        self._fleeting = frozenset(fleeting)
        self._spread_s = spread_s
        self._rng = rng
        self._news: dict[bytes, _News] = {}
        """Fleeting messages that are still to be passed on, by their names."""
        self._news_due_s = 0.0
        """When the first of them need not wait any more."""
        self._beats = 0
        self.dropped = 0
        """Messages that found a neighbour's queue full."""

    @property
    def manager(self) -> InternalManagerAPI:
        """Manager of this service, fenced."""
        return fence(self._manager, self._faults)

    async def heartbeat(self) -> None:
        """Run the heartbeat; begin anew after an exception, up to a bound."""
        for _ in range(HEARTBEAT_FAULTS_MAX):
            try:
                await super().heartbeat()
            except Exception as error:
                self._faults.note("heartbeat", error)
                await trio.sleep(self.heartbeat_interval)
        await super().heartbeat()

    def _perform_opportunistic_grafting(self, topic: str, peers_to_graft: dict[ID, list[str]]) -> int:
        return 0  # it compares scores, which weigh nothing here, and would graft beyond the degree

    async def _maintain_mesh_quality(self, topic: str) -> None:
        await trio.lowlevel.checkpoint()  # likewise

    def _get_adaptive_gossip_peers_count(self, topic: str, total_peers: int) -> int:
        if topic in self._fleeting:
            return 0 if self._beats % LAZY_BEATS else LAZY_PEERS
        return super()._get_adaptive_gossip_peers_count(topic, total_peers)

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        """Take a neighbour's grafts, prunes and names of messages."""
        rpc.ClearField("senderRecord")
        await super().handle_rpc(rpc, sender_peer_id)

    async def emit_control_message(self, control_msg: rpc_pb2.ControlMessage, to_peer: ID) -> None:
        """Send grafts, prunes and names of messages."""
        self.send_rpc(to_peer, rpc_pb2.RPC(control=control_msg), priority=True)

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        """Send without the signed record of our addresses."""
        if rpc.HasField("senderRecord"):
            rpc.ClearField("senderRecord")
        super().send_rpc(peer_id, rpc, priority)

    async def send_recent_messages(self, peer_id: ID, topic: str) -> None:
        """Send a neighbour that has just come what was said in the last heartbeats."""
        recent = [self.mcache.get(name) for name in self.mcache.window(topic)]
        if found := [message for message in recent if message is not None]:
            self.send_rpc(peer_id, rpc_pb2.RPC(publish=found))

    def pass_on(self, forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Send a good message to the mesh, but not to whom it came from: at once, or with others soon."""
        self.mcache.put(msg)
        topic = msg.topicIDs[0]
        news = _News(rpc_pb2.RPC(publish=[msg]).SerializeToString(), topic, {forwarder, ID(msg.from_id)})
        if topic not in self._fleeting or self._spread_s <= 0:
            self._tell([news])
            return
        if not self._news:
            self._news_due_s = trio.current_time() + self._spread_s * self._rng.uniform(0.2, 1.0)
        self._news[msg.from_id + msg.seqno] = news
        # What this node says itself takes along what waits.
        if forwarder == cast(GuardedPubsub, self.pubsub).my_id or len(self._news) >= NEWS_MAX:
            self._tell_news()

    def heard_again(self, forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Take note that a neighbour knows a message already."""
        news = self._news.get(msg.from_id + msg.seqno)
        if news is not None:
            news.known_to.add(forwarder)

    def tell_due_news(self) -> None:
        """Pass on what has waited long enough; for a moment at which this process is awake anyway."""
        if self._news and trio.current_time() >= self._news_due_s:
            self._tell_news()

    def _tell_news(self) -> None:
        news = list(self._news.values())
        self._news.clear()
        self._tell(news)

    def gossip_heartbeat(self) -> defaultdict[ID, dict[str, list[bytes]]]:
        """Pass on what still waits, and return whom to tell of which messages."""
        self._beats += 1
        self._tell_news()
        return super().gossip_heartbeat()

    def _tell(self, news: list["_News"]) -> None:
        """Send each neighbour of the mesh what it does not know yet, in one RPC."""
        for peer in {peer for each in news for peer in self.mesh.get(each.topic, ())}:
            fresh = [each.rpc for each in news if peer not in each.known_to and peer in self.mesh.get(each.topic, ())]
            if fresh:  # one RPC behind the other is one RPC: that is how protobuf joins lists
                self._send(cast(GuardedPubsub, self.pubsub), peer, delimit(b"".join(fresh)))

    def _send(self, pubsub: "GuardedPubsub", peer: ID, data: bytes) -> None:
        stream, queue = pubsub.peers.get(peer), pubsub.peer_queues.get(peer)
        if stream is None or queue is None:
            return
        muxed = _muxed(stream)
        if not len(queue) and isinstance(muxed, GridMuxStream) and muxed.write_nowait(data):
            return
        if not queue.push(cast(rpc_pb2.RPC, data)):  # our sender takes RPCs and encoded ones, see GuardedPubsub
            self.dropped += 1


class GuardedPubsub(Pubsub):
    """Checks form and rate of a message before its signature, and fences what a peer can trigger."""

    router: GuardedGossipSub

    def __init__(self, faults: Faults, *args: Any, **options: Any) -> None:  # noqa: ANN401 - stock signature
        super().__init__(*args, **options)
        self._faults = faults
        self._forwarders = TokenBuckets(rate_hz=FORWARDER_RATE_HZ, burst=FORWARDER_BURST, names_max=FORWARDERS_MAX)
        self._registering: dict[ID, trio.Lock] = {}
        self._my_name = self.my_id.to_bytes()
        self.ill_formed = 0
        self.limited = 0
        self.copies = 0
        """Well-formed messages that arrived, duplicates too."""

    @property
    def manager(self) -> InternalManagerAPI:
        """Manager of this service, fenced."""
        return fence(self._manager, self._faults)

    # ------------------------------------------------------------ neighbours

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

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: RpcQueue) -> None:
        """Write what waits for a neighbour, as much as there is in one write."""
        queue.max_message_size = RPC_MAX_BYTES
        try:
            while (first := await queue.pop()) is not None:
                data = _encode(first)
                while len(queue) and len(data) < WRITE_BYTES and (more := await queue.pop()) is not None:
                    data += _encode(more)
                await stream.write(data)
        except Exception:  # stock's rule: whatever it is, the stream is of no more use
            self._handle_dead_peer(peer_id)

    # ------------------------------------------------------------ what comes in

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Take a neighbour's RPCs until its stream ends."""
        peer = stream.muxed_conn.peer_id
        muxed = _muxed(stream)
        reader = DelimitedReader(RPC_MAX_BYTES)
        send_control, controls = trio.open_memory_channel[rpc_pb2.RPC](CONTROLS_MAX)

        def take(data: bytes) -> None:
            for raw in reader.feed(data):
                self._take_rpc(peer, raw, send_control)

        # Not a nursery of our own: a group of exceptions that holds a cancellation, too, would pass every fence.
        self.manager.run_task(self._take_controls, peer, controls)
        try:
            await _read_to_end(muxed, take)
        except FrameTooLargeError:
            self._handle_dead_peer(peer)
            raise
        finally:
            send_control.close()
            await reset(stream)

    async def _take_controls(self, peer: ID, controls: trio.MemoryReceiveChannel[rpc_pb2.RPC]) -> None:
        async for rpc in controls:
            try:
                await self.router.handle_rpc(rpc, peer)
            except Exception as error:
                self._faults.note("control", error)

    def _take_rpc(self, peer: ID, raw: bytes, controls: trio.MemorySendChannel[rpc_pb2.RPC]) -> None:
        rpc = rpc_pb2.RPC()
        rpc.ParseFromString(raw)
        self.ill_formed += max(0, len(rpc.publish) - MESSAGES_PER_RPC)
        for msg in rpc.publish[:MESSAGES_PER_RPC]:
            self._take(peer, msg)
        self.router.tell_due_news()
        if len(rpc.subscriptions) <= self.max_subscriptions_per_rpc:
            for subscription in rpc.subscriptions:
                self.handle_subscription(peer, subscription)
        if rpc.HasField("control"):
            try:
                controls.send_nowait(rpc)
            except trio.WouldBlock:
                self.ill_formed += 1

    def _take(self, forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Judge, deliver and pass on a neighbour's message; whatever it brings about costs only the message."""
        try:
            if self._may_enter(forwarder, msg) and self._is_signed(msg):
                # Before the judge: what he refuses is refused once, not once per neighbour.
                self._mark_msg_seen(msg)
                validator = self.topic_validators.get(msg.topicIDs[0])
                if validator is not None and validator.validator(forwarder, msg):
                    self.router.pass_on(forwarder, msg)
        except Exception as error:
            self._faults.note("message", error)

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
        self.copies += 1
        if msg.topicIDs[0] not in self.topic_ids or msg.from_id == self._my_name:
            return False
        if self._is_msg_seen(msg):
            self.router.heard_again(forwarder, msg)
            return False
        # By forwarder, whose name is proved; the origin's is not before the signature is checked.
        if not self._forwarders.take(forwarder.to_base58(), trio.current_time()):
            self.limited += 1
            return False
        return True

    def _is_signed(self, msg: rpc_pb2.Message) -> bool:
        """Say whether the origin has signed this; its key lies in its name."""
        origin, signature = msg.from_id, msg.signature
        if len(origin) != _ED25519_BYTES or not origin.startswith(_ED25519_PREFIX):
            return signature_validator(msg)  # another kind of key, in an open grid
        if len(signature) != _SIGNATURE_BYTES:
            return False
        key = Ed25519PublicKey.from_bytes(origin[len(_ED25519_PREFIX) :])
        return key.verify(_signed_part(msg), signature)

    # ------------------------------------------------------------ what goes out

    async def publish(self, topic_id: str | list[str], data: bytes) -> None:
        """Sign a message and send it to the mesh."""
        assert isinstance(topic_id, str)
        assert self.sign_key is not None
        msg = rpc_pb2.Message(data=data, topicIDs=[topic_id], from_id=self._my_name, seqno=self._next_seqno())
        msg.signature = self.sign_key.sign(_signed_part(msg))  # no key: it lies in our name
        self._mark_msg_seen(msg)
        self.router.pass_on(self.my_id, msg)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Do nothing: the validator delivers, see transport.libp2p_host."""


def _muxed(stream: INetStream) -> IMuxedStream:
    """Return the muxer's stream, which wants no lock per read and write."""
    return cast(IMuxedStream, stream.muxed_stream)  # type: ignore[attr-defined]


async def _read_to_end(muxed: IMuxedStream, take: Callable[[bytes], None]) -> None:
    """Give all that comes to a function, in the call that receives it where the muxer is ours."""
    try:
        if isinstance(muxed, GridMuxStream):
            await muxed.consume(take)
        while True:
            take(await muxed.read(READ_BYTES))
    except (MuxedStreamError, IOException, RawConnError):
        return  # it has ended, in one of the ways in which streams end


def _encode(rpc: rpc_pb2.RPC | bytes) -> bytes:
    """Return an RPC as it goes out; some are encoded already."""
    return rpc if isinstance(rpc, bytes) else delimit(rpc.SerializeToString())


def _signed_part(msg: rpc_pb2.Message) -> bytes:
    """Return what a signature is of."""
    unsigned = rpc_pb2.Message(data=msg.data, topicIDs=msg.topicIDs, from_id=msg.from_id, seqno=msg.seqno)
    return _SIGNING_PREFIX + unsigned.SerializeToString()
