"""libp2p's gossip, fenced and made cheap: the way of a message through it is our own.

Stock pubsub reads a message's length byte by byte, starts a task per message, looks for its signature's key in three
places, copies and splits it per neighbour and wakes a task for each: four fifths of what a state record cost. Here a
message is judged, delivered and passed on in the call that read it, and encoded once. What is checked, in this order:

    form, seen before, rate of the forwarder     cheap, and the forwarder's name is proved
    signature                                    50 us
    rate of the origin, topic's own judge        transport.intake; the origin's name is proved by now

The mesh is transport.libp2p_gossipsub's. Records of addresses (senderRecord) are neither sent nor read: nodes are
dialled only by address, and each record costs the receiver a signature check.

The subclasses rely on the insides of exactly this version of libp2p, as transport.libp2p_guards does.
"""

from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.abc import IMuxedStream, INetStream
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX, signature_validator
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.tools.anyio_service.api import InternalManagerAPI

from transport.delimited import DelimitedReader, delimit
from transport.intake import TokenBuckets
from transport.libp2p_gossipsub import RPC_MAX_BYTES, GuardedGossipSub, muxed_stream
from transport.libp2p_guards import Faults, fence, reset
from transport.libp2p_mux import GridMuxStream
from transport.wire import GOSSIP_MAX_BYTES, FrameTooLargeError

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

_ED25519_PREFIX: Final = bytes.fromhex("002408011220")
"""What a PeerID begins with that holds its Ed25519 key (libp2p peer-ids: identity multihash of the key's protobuf)."""
_ED25519_BYTES: Final = len(_ED25519_PREFIX) + 32
_SIGNATURE_BYTES: Final = 64
_SIGNING_PREFIX: Final = PUBSUB_SIGNING_PREFIX.encode()


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
        muxed = muxed_stream(stream)
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
