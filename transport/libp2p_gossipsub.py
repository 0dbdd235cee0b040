"""libp2p's gossip router, made cheap: its mesh is libp2p's, how a message and a heartbeat go out is our own.

Degrees, grafts, prunes, IHAVE and IWANT are the stock router's. Once a second it looks after its mesh, as stock does;
but all topics are joined and nobody is scored, so that most of stock's heartbeat has nothing to do.

The subclass relies on the insides of exactly this version of libp2p, as transport.libp2p_guards does.
"""

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, cast

import trio
from libp2p.abc import IMuxedStream, INetStream
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service.api import InternalManagerAPI

from transport.beats import next_beat_s
from transport.delimited import delimit
from transport.libp2p_guards import Faults, fence
from transport.libp2p_mux import GridMuxStream

RPC_MAX_BYTES: Final = 64 * 1024
"""Largest gossip RPC: sixteen of the largest messages. Parsing it takes about 3 ms at worst."""
HEARTBEAT_FAULTS_MAX: Final = 10
"""Heartbeats that may fail, one a second, before gossip counts as broken and the node ends."""
NEWS_MAX: Final = 100
"""Fleeting messages that may wait to be passed on; with state records' 450 bytes they fit in one RPC."""
LAZY_PEERS: Final = 1
"""Neighbours outside a fleeting topic's mesh that are told the names of its last messages. Enough to bridge a mesh in
two halves."""
LAZY_BEATS: Final = 3
"""Heartbeats between two such tellings: as many as a name is kept, so that each is told once."""


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
    phase_s : float
        When the heartbeat comes after the process's beat.
    rng : random.Random
        Draws how long a message waits.
    """

    def __init__(
        self,
        faults: Faults,
        *args: Any,  # noqa: ANN401 - stock signature
        fleeting: Iterable[str],
        spread_s: float,
        phase_s: float,
        rng: random.Random,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **options)
        self._faults = faults
        self._fleeting = frozenset(fleeting)
        self._spread_s = spread_s
        self._phase_s = phase_s
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
        """Beat until cancelled; begin anew after an exception, up to a bound."""
        failed = 0
        while True:
            now_s = trio.current_time() - self._phase_s
            await trio.sleep_until(next_beat_s(now_s, self.heartbeat_interval) + self._phase_s)
            try:
                await self._beat()
            except Exception as error:
                self._faults.note("heartbeat", error)
                failed += 1
                if failed > HEARTBEAT_FAULTS_MAX:
                    raise

    async def _beat(self) -> None:
        """Mend the mesh, tell names of messages, and forget what is old."""
        self._beats += 1
        self._tell_news()
        grafts, prunes = self.mesh_heartbeat()
        await self._emit_control_msgs(grafts, prunes, self.gossip_heartbeat())
        self.mcache.shift()
        if self.scorer is not None:
            self.scorer.on_heartbeat()
        self._periodic_security_cleanup()
        self._prune_idontwant_entries()

    def gossip_heartbeat(self) -> defaultdict[ID, dict[str, list[bytes]]]:
        """Return whom to tell of which messages."""
        found: defaultdict[ID, dict[str, list[bytes]]] = defaultdict(dict)
        followers = cast(Pubsub, self.pubsub).peer_topics
        for topic, mesh in self.mesh.items():
            names = self.mcache.window(topic)
            count = self._get_adaptive_gossip_peers_count(topic, len(followers.get(topic, ())) - len(mesh))
            if names and count and topic in followers:
                for peer in self._get_in_topic_gossipsub_peers_from_minus(topic, count, mesh, True):
                    found[peer][topic] = list(names)
        return found

    def _perform_opportunistic_grafting(self, topic: str, peers_to_graft: dict[ID, list[str]]) -> int:
        return 0  # it compares scores, which weigh nothing here, and would graft beyond the degree

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
        rpc = rpc_pb2.RPC(control=control_msg)
        if to_peer in self._pending_control or not self._send_nowait(to_peer, delimit(rpc.SerializeToString())):
            self.send_rpc(to_peer, rpc, priority=True)

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
        if forwarder == cast(Pubsub, self.pubsub).my_id or len(self._news) >= NEWS_MAX:
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

    def _tell(self, news: list["_News"]) -> None:
        """Send each neighbour of the mesh what it does not know yet, in one RPC."""
        for peer in {peer for each in news for peer in self.mesh.get(each.topic, ())}:
            fresh = [each.rpc for each in news if peer not in each.known_to and peer in self.mesh.get(each.topic, ())]
            if fresh:  # one RPC behind the other is one RPC: that is how protobuf joins lists
                self._send(peer, delimit(b"".join(fresh)))

    def _send(self, peer: ID, data: bytes) -> None:
        queue = cast(Pubsub, self.pubsub).peer_queues.get(peer)
        if queue is None or self._send_nowait(peer, data):
            return
        if not queue.push(cast(rpc_pb2.RPC, data)):  # our sender takes RPCs and encoded ones, see GuardedPubsub
            self.dropped += 1

    def _send_nowait(self, peer: ID, data: bytes) -> bool:
        """Send an encoded RPC in this call, which wakes no task; False where others go before it, or it is long."""
        pubsub = cast(Pubsub, self.pubsub)
        stream, queue = pubsub.peers.get(peer), pubsub.peer_queues.get(peer)
        if stream is None or queue is None or len(queue) or len(data) > RPC_MAX_BYTES:
            return False
        muxed = muxed_stream(stream)
        return isinstance(muxed, GridMuxStream) and muxed.write_nowait(data)


def muxed_stream(stream: INetStream) -> IMuxedStream:
    """Return the muxer's stream, which wants no lock per read and write."""
    return cast(IMuxedStream, stream.muxed_stream)  # type: ignore[attr-defined]
