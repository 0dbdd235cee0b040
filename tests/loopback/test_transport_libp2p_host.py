"""The libp2p control plane: real sockets on 127.0.0.1, several hosts in one process."""

import base64
import os
import random
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import multiaddr
import pytest
import trio
from libp2p import generate_new_ed25519_identity, new_host
from libp2p.abc import INetConn
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.tools.anyio_service import background_trio_service
from trio.testing import MockClock

from transport.base import HEALTH_TOPIC, STATE_TOPIC, Dial, GossipMessage
from transport.identity import NodeKey
from transport.intake import ORIGIN_BURST
from transport.libp2p_host import Libp2pConfig, Libp2pHost
from transport.libp2p_pubsub import FORWARDER_BURST, FORWARDER_RATE_HZ, MESSAGES_PER_RPC
from transport.libp2p_tcp import PENDING_PER_HOST, WRITE_TIMEOUT_S, Doorstep, GridStream, multiaddr_of
from transport.muxcore import DATA, OPEN, encode_frame
from transport.sandbox import SandboxGrid, SandboxNode
from transport.tls import client_context
from transport.wire import LocalProtocolError, PeerUnreachableError

pytestmark = pytest.mark.slow  # importing libp2p alone takes seconds

GRID = SandboxGrid()
LIMIT_S = 20.0
"""Far above what any test takes; a test that waits for what never comes fails instead of hanging."""


class Running:
    """A host and where it listens."""

    def __init__(self, host: Libp2pHost, address: tuple[str, int], scope: trio.CancelScope) -> None:
        self.host = host
        self.address = address
        self.scope = scope

    @property
    def dial(self) -> Dial:
        return Dial(node=self.host.node, host=self.address[0], port=self.address[1])

    @property
    def neighbours(self) -> list[str]:
        return [neighbour.node for neighbour in self.host.neighbours()]


def fail(error: Exception) -> None:
    raise error


def make(
    member: SandboxNode | None = None,
    *,
    grid: SandboxGrid = GRID,
    epoch: int = 1,
    port: int = 0,
    on_bug: Callable[[Exception], None] = fail,
    config: Libp2pConfig | None = None,
    now_s: float | None = None,
) -> Libp2pHost:
    member = member or grid.make_node()
    return Libp2pHost(
        member.key,
        grid_id=grid.grid_id,
        epoch=epoch,
        listen=("127.0.0.1", port),
        trust=grid.trust(now_s=now_s),
        chain_pem=member.chain_pem,
        on_bug=on_bug,
        config=config,
    )


async def start(nursery: trio.Nursery, host: Libp2pHost) -> Running:
    scope = trio.CancelScope()

    async def serve(task_status: trio.TaskStatus[tuple[str, int]]) -> None:
        with scope:
            await host.serve(task_status=task_status)

    return Running(host, await nursery.start(serve), scope)


def play(
    scene: Callable[..., Awaitable[None]], *hosts: Callable[[], Libp2pHost], clock: MockClock | None = None
) -> None:
    """Run a scene with these hosts serving; it gets the nursery and them."""

    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                running = [await start(nursery, host()) for host in hosts]
                await scene(nursery, *running)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task or process of the system brings about."""
    while not condition():  # noqa: ASYNC110 - libp2p has no event for most of what is waited for here
        await trio.sleep(0.005)


async def hear(host: Libp2pHost, data: bytes) -> GossipMessage:
    """Wait for a message with this content."""
    async for message in host.messages():
        if message.data == data:
            return message
    raise AssertionError("the channel ended")


async def meet(a: Running, b: Running) -> None:
    """Connect two hosts and wait until gossip passes both ways: each has the other in its mesh."""
    await a.host.connect(b.dial)
    for source, target in ((a, b), (b, a)):
        name, topic = ID.from_base58(target.host.node), source.host._prefix + STATE_TOPIC
        await until(lambda s=source, n=name, t=topic: n in s.host._pubsub.router.mesh.get(t, ()))  # type: ignore[misc]


def test_gossip_reaches_everyone_over_a_line_and_names_origin_and_forwarder() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running, c: Running, d: Running) -> None:
        for left, right in ((a, b), (b, c), (c, d)):
            await meet(left, right)
        assert b.neighbours == sorted([a.host.node, c.host.node])
        for i, source in enumerate((a, d)):
            data = f"news {i}".encode()
            await source.host.publish(STATE_TOPIC, data)
            for other in (b, c) if source is a else (c, b):
                assert (await hear(other.host, data)).origin == source.host.node
            last = await hear((d if source is a else a).host, data)
            assert last.topic == STATE_TOPIC
            assert last.origin == source.host.node
            assert last.forwarder == (c if source is a else b).host.node
        assert a.host.statistics().intake.delivered == 1, "own messages do not come back"

    play(scene, make, make, make, make)


def muxer_of(connection: INetConn) -> str:
    return str(connection.muxed_conn.negotiated_muxer_protocol)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        (Libp2pConfig().muxers, Libp2pConfig().muxers, "/gridnode/mux/1.0.0"),
        (Libp2pConfig().muxers, ("/yamux/1.0.0",), "/yamux/1.0.0"),
        (("/yamux/1.0.0",), Libp2pConfig().muxers, "/yamux/1.0.0"),
    ],
)
def test_the_muxer_is_ours_where_both_have_it(ours: tuple[str, ...], theirs: tuple[str, ...], agreed: str) -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        await meet(a, b)
        assert [muxer_of(c) for host in (a, b) for c in host.host._swarm.get_connections()] == [agreed] * 2
        await a.host.publish(STATE_TOPIC, b"by whatever way")
        await hear(b.host, b"by whatever way")

    play(scene, lambda: make(config=Libp2pConfig(muxers=ours)), lambda: make(config=Libp2pConfig(muxers=theirs)))


def test_a_connection_takes_no_quarter_second_of_waiting_for_a_second_address() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        times = []
        for _ in range(5):
            began_s = trio.current_time()
            await a.host.connect(b.dial)
            times.append(trio.current_time() - began_s)
            await a.host.disconnect(b.host.node)
            await until(lambda: not b.neighbours)
        assert min(times) < 0.2

    play(scene, make, make)


@pytest.mark.parametrize("grid_id", [GRID.grid_id, "77" * 32])
def test_a_node_of_another_grid_is_refused_in_both_directions(grid_id: str) -> None:
    other = SandboxGrid(grid_id=grid_id)

    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        for source, target in ((a, b), (b, a)):
            with pytest.raises(PeerUnreachableError, match="cannot connect"):
                await source.host.connect(target.dial)
        assert a.neighbours == b.neighbours == []
        await until(lambda: a.host.statistics().pending == 0)

    play(scene, make, lambda: make(grid=other))


def test_a_node_with_another_key_than_the_dialled_one_is_refused() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        wrong = Dial(node=NodeKey.generate().node, host=b.address[0], port=b.address[1])
        with pytest.raises(PeerUnreachableError):
            await a.host.connect(wrong)
        assert a.neighbours == []

    play(scene, make, make)


async def multistream(stream: trio.SocketStream, protocol: bytes) -> bytes:
    """Ask for a protocol by multistream-select; return the answer."""

    async def line() -> bytes:
        size = (await stream.receive_some(1))[0]
        data = b""
        while len(data) < size:
            data += await stream.receive_some(size - len(data))
        return bytes(data)

    for text in (b"/multistream/1.0.0\n", protocol + b"\n"):
        await stream.send_all(bytes([len(text)]) + text)
    assert await line() == b"/multistream/1.0.0\n"
    return await line()


async def bytes_after_handshake(address: tuple[str, int], context: ssl.SSLContext) -> bytes:
    """Do the handshake with this context; return every decrypted byte that follows."""
    async with await trio.open_tcp_stream(*address) as stream:
        assert await multistream(stream, b"/gridnode/tls/1.0.0") == b"/gridnode/tls/1.0.0\n"
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing)
        done, got = False, b""
        while True:
            try:
                if done:
                    got += tls.read(4096)
                else:
                    tls.do_handshake()
                    done = True
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    await stream.send_all(outgoing.read())
                data = await stream.receive_some(4096)
                if not data:
                    return got
                incoming.write(data)
            except ssl.SSLError:
                return got


def stranger() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def member_of(grid: SandboxGrid) -> ssl.SSLContext:
    node = grid.make_node()
    context = client_context(node.key, node.chain_pem, GRID.ca_pem)
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize(("context", "days"), [(stranger(), 0), (member_of(SandboxGrid()), 0), (member_of(GRID), 40)])
def test_a_peer_without_a_good_certificate_gets_no_byte_beyond_the_handshake(
    context: ssl.SSLContext, days: int
) -> None:
    async def scene(nursery: trio.Nursery, a: Running) -> None:
        assert await bytes_after_handshake(a.address, context) == b""
        assert a.neighbours == []

    play(scene, lambda: make(now_s=GRID.now_s + days * 86400.0))


@pytest.mark.parametrize("protocol", [b"/noise", b"/tls/1.0.0", b"/plaintext/2.0.0", b"/secio/1.0.0"])
def test_no_other_security_protocol_is_offered(protocol: bytes) -> None:
    async def scene(nursery: trio.Nursery, a: Running) -> None:
        async with await trio.open_tcp_stream(*a.address) as stream:
            assert await multistream(stream, protocol) == b"na\n"

    play(scene, make)


def test_garbage_on_the_port_costs_one_connection() -> None:
    rng = random.Random(5)

    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        for i in range(40):
            async with await trio.open_tcp_stream(*a.address) as stream:
                if i % 2:
                    await multistream(stream, b"/gridnode/tls/1.0.0")
                await stream.send_all(rng.randbytes(rng.randint(1, 20_000)))
        await meet(b, a)
        await b.host.publish(STATE_TOPIC, b"still here")
        await hear(a.host, b"still here")

    play(scene, make, make)


def test_silent_connections_do_not_lock_out_an_honest_peer() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        silent = [await trio.open_tcp_stream(*a.address) for _ in range(200)]
        await until(lambda: a.host.statistics().evicted >= 200 - PENDING_PER_HOST)
        began_s = trio.current_time()
        await b.host.connect(a.dial)
        assert trio.current_time() - began_s < 2.0
        assert a.neighbours == [b.host.node]
        for stream in silent:
            await stream.aclose()
        await until(lambda: a.host.statistics().pending == 0)

    play(scene, make, make)


def test_a_silent_connection_is_closed_after_the_upgrade_timeout() -> None:
    async def scene(nursery: trio.Nursery, a: Running) -> None:
        async with await trio.open_tcp_stream(*a.address) as stream:
            began_s = trio.current_time()
            while await stream.receive_some(100):
                pass
            assert trio.current_time() - began_s < 1.5

    play(scene, lambda: make(config=Libp2pConfig(upgrade_timeout_s=0.3)))


def test_inbound_connections_give_back_their_place_when_they_end() -> None:
    config = Libp2pConfig(connections_max=4)

    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        for _ in range(12):
            await b.host.connect(a.dial)
            await b.host.disconnect(a.host.node)
            await until(lambda: not a.neighbours)
        await b.host.connect(a.dial)
        assert b.neighbours == [a.host.node]

    play(scene, lambda: make(config=config), make)


def test_a_killed_host_is_noticed_and_heard_at_once_after_its_restart() -> None:
    member = GRID.make_node()

    async def scene(nursery: trio.Nursery, a: Running) -> None:
        for epoch in (1, 2, 3):
            b = await start(nursery, make(member, epoch=epoch))
            await meet(b, a)
            for i in range(3):  # within the origin's burst, which a restart does not refill
                data = f"{epoch} {i}".encode()
                await b.host.publish(STATE_TOPIC, data)
                assert (await hear(a.host, data)).origin == member.node
            for stream in list(b.host._tcp._streams):
                stream.abort()  # what the kernel does for a process that dies
            began_s = trio.current_time()
            await until(lambda: a.neighbours == [])
            assert trio.current_time() - began_s < 1.0
            b.scope.cancel()

    play(scene, make)


def test_gossip_goes_on_when_one_of_two_connections_to_a_peer_breaks() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        async with trio.open_nursery() as dials:
            dials.start_soon(a.host.connect, b.dial)
            dials.start_soon(b.host.connect, a.dial)
        await meet(a, b)
        while len(connections := a.host._swarm.get_connections()) > 1:
            a.host._tcp.abort(connections[0].muxed_conn.get_remote_address())  # type: ignore[attr-defined]
            await until(lambda first=connections[0]: first not in a.host._swarm.get_connections())  # type: ignore[misc]
        assert a.neighbours == [b.host.node]
        await meet(a, b)
        for i, (source, target) in enumerate(((a, b), (b, a))):
            heard = trio.Event()

            async def listen(target: Running = target, data: bytes = bytes([i]), heard: trio.Event = heard) -> None:
                await hear(target.host, data)
                heard.set()

            nursery.start_soon(listen)
            while not heard.is_set():
                await source.host.publish(STATE_TOPIC, bytes([i]))
                with trio.move_on_after(0.5):
                    await heard.wait()

    play(scene, make, make)


def test_reconnections_leave_no_task_behind() -> None:
    """Both dial at once, as nodes do after a restart: two connections, of which one carries the gossip."""

    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        tasks_at_rest = set[int]()
        for _ in range(5):
            async with trio.open_nursery() as dials:
                dials.start_soon(a.host.connect, b.dial)
                dials.start_soon(b.host.connect, a.dial)
            await meet(a, b)
            async with trio.open_nursery() as ends:
                ends.start_soon(a.host.disconnect, b.host.node)
                ends.start_soon(b.host.disconnect, a.host.node)
            await until(lambda: not a.host._swarm.get_connections() and not b.host._swarm.get_connections())
            with trio.move_on_after(2.0):
                await until(lambda: trio.lowlevel.current_statistics().tasks_living in tasks_at_rest)
            tasks_at_rest.add(trio.lowlevel.current_statistics().tasks_living)
            assert not a.host._pubsub.peer_queues
            assert not a.host._pubsub._registering
        assert len(tasks_at_rest) == 1

    play(scene, make, make)


def test_after_a_failed_dial_the_next_one_may_succeed_at_once() -> None:
    member = GRID.make_node()

    async def scene(nursery: trio.Nursery, a: Running) -> None:
        b = await start(nursery, make(member))
        b.scope.cancel()
        await until(lambda: b.host._swarm.manager.is_finished)
        for _ in range(3):
            with pytest.raises(PeerUnreachableError):
                await a.host.connect(b.dial)
        again = await start(nursery, make(member, epoch=2, port=b.address[1]))
        await a.host.connect(again.dial)
        assert a.neighbours == [member.node]

    play(scene, make)


def test_a_second_host_on_the_same_port_is_refused() -> None:
    async def scene(nursery: trio.Nursery, a: Running) -> None:
        with pytest.raises(PeerUnreachableError, match="cannot listen"):
            await make(port=a.address[1]).serve()

    play(scene, make)


def test_a_validator_that_raises_refuses_and_tells_the_supervisor_and_the_host_lives() -> None:
    bugs: list[Exception] = []

    def broken() -> Libp2pHost:
        host = make(on_bug=bugs.append)
        host.set_validator(STATE_TOPIC, lambda message: 1 // 0 == 0)
        return host

    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        await meet(a, b)
        await b.host.publish(STATE_TOPIC, b"x")
        await until(lambda: len(bugs) == 1)
        await b.host.publish(HEALTH_TOPIC, b"y")
        await hear(a.host, b"y")
        assert isinstance(bugs[0], ZeroDivisionError)

    play(scene, broken, make)


def test_what_a_validator_refuses_is_not_forwarded() -> None:
    def picky() -> Libp2pHost:
        host = make()
        host.set_validator(STATE_TOPIC, lambda message: message.data != b"bad")
        return host

    async def scene(nursery: trio.Nursery, a: Running, b: Running, c: Running) -> None:
        await meet(a, b)
        await meet(b, c)
        await a.host.publish(STATE_TOPIC, b"bad")
        await a.host.publish(STATE_TOPIC, b"good")
        async for message in c.host.messages():
            assert message.data == b"good"
            break
        assert b.host.statistics().intake.refused == 1

    play(scene, make, picky, make)


def test_an_origin_is_held_to_its_rate() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        await meet(a, b)
        for i in range(30):
            await a.host.publish(HEALTH_TOPIC, bytes([i]))
        await until(lambda: b.host.statistics().intake.limited >= 30 - ORIGIN_BURST - 3)
        assert b.host.statistics().intake.delivered <= ORIGIN_BURST + 3

    play(scene, make, make)


def rpc_with(source: Running, *, origin: str, signer: Running, key_of: Running | None, data: bytes) -> rpc_pb2.RPC:
    """Make an RPC with one message that says it comes from `origin`."""
    msg = rpc_pb2.Message(
        data=data,
        topicIDs=[source.host._prefix + STATE_TOPIC],
        from_id=ID.from_base58(origin).to_bytes(),
        seqno=(77).to_bytes(8, "big"),
    )
    private = signer.host._host.get_private_key()
    msg.signature = private.sign(b"libp2p-pubsub:" + msg.SerializeToString())
    if key_of is not None:
        msg.key = key_of.host._host.get_public_key().serialize()
    return rpc_pb2.RPC(publish=[msg])


def test_a_forged_origin_is_dropped_and_the_true_one_passes() -> None:
    async def scene(nursery: trio.Nursery, attacker: Running, b: Running, victim: Running) -> None:
        await meet(attacker, b)
        target = ID.from_base58(b.host.node)
        send = attacker.host._gossip.send_rpc
        for key_of in (attacker, victim, None):
            send(target, rpc_with(b, origin=victim.host.node, signer=attacker, key_of=key_of, data=b"forged"))
        send(target, rpc_with(b, origin=b.host.node, signer=attacker, key_of=None, data=b"forged as its own"))
        send(target, rpc_with(b, origin=b.host.node, signer=b, key_of=b, data=b"its own, played back"))
        unsigned = rpc_with(b, origin=victim.host.node, signer=victim, key_of=None, data=b"unsigned")
        unsigned.publish[0].ClearField("signature")
        send(target, unsigned)
        send(target, rpc_with(b, origin=victim.host.node, signer=victim, key_of=victim, data=b"true"))
        async for message in b.host.messages():
            assert message.data == b"true"
            assert (message.origin, message.forwarder) == (victim.host.node, attacker.host.node)
            break

    play(scene, make, make, make)


def heard_by(source: Running, monkeypatch: pytest.MonkeyPatch) -> list[rpc_pb2.RPC]:
    """Return a list that fills with the RPCs that reach a host."""
    found: list[rpc_pb2.RPC] = []
    take = source.host._pubsub._take_rpc

    def note(peer: ID, raw: bytes, controls: trio.MemorySendChannel[rpc_pb2.RPC]) -> None:
        found.append(rpc_pb2.RPC.FromString(raw))
        take(peer, raw, controls)

    monkeypatch.setattr(source.host._pubsub, "_take_rpc", note)
    return found


def test_a_message_on_the_wire_holds_nothing_that_its_receiver_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        heard = heard_by(b, monkeypatch)
        await meet(a, b)
        await a.host.publish(STATE_TOPIC, bytes(100))
        await hear(b.host, bytes(100))
        assert not any(rpc.HasField("senderRecord") for rpc in heard)
        (rpc,) = [rpc for rpc in heard if rpc.publish]
        assert not rpc.publish[0].HasField("key"), "it lies in the PeerID"
        assert rpc.ByteSize() < 100 + 38 + 64 + 8 + len(b.host._prefix) + 25

    play(scene, make, make)


def test_each_connection_of_the_mesh_carries_a_state_record_about_once() -> None:
    configs = [Libp2pConfig(spread_s=0.5, degree_low=3, phase_s=phase_s) for phase_s in (0.0, 0.25, 0.5, 0.75)]

    async def scene(nursery: trio.Nursery, *hosts: Running) -> None:
        for i, host in enumerate(hosts):
            for other in hosts[:i]:
                await meet(host, other)
        before = sum(host.host.statistics().copies for host in hosts)
        for i, host in enumerate(hosts):
            await host.host.publish(STATE_TOPIC, bytes([i]))
            await until(lambda: all(not other.host._gossip._news for other in hosts))
        await until(lambda: all(host.host.statistics().intake.delivered == 3 for host in hosts))
        copies = sum(host.host.statistics().copies for host in hosts) - before
        assert copies < 4 * 9, "six connections; nine copies each if nobody listened before he spoke"

    play(scene, *[lambda config=config: make(config=config) for config in configs])


def test_state_records_wait_for_one_another_and_other_news_pass_them(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Libp2pConfig(spread_s=30.0)

    async def scene(nursery: trio.Nursery, a: Running, b: Running, c: Running) -> None:
        await meet(a, b)
        await meet(b, c)
        heard = heard_by(c, monkeypatch)
        for i in range(3):
            await a.host.publish(STATE_TOPIC, bytes([i]))
        await a.host.publish(HEALTH_TOPIC, b"somebody is suspect")
        first = await c.host.messages().receive()
        assert first.data == b"somebody is suspect"
        for i in range(3):  # the heartbeat brings them
            assert (await c.host.messages().receive()).data == bytes([i])
        assert max(len(rpc.publish) for rpc in heard) >= 2

    play(scene, make, lambda: make(config=patient), make)


def test_a_state_record_reaches_a_neighbour_outside_the_mesh_by_its_name() -> None:
    apart = Libp2pConfig(degree=0, degree_low=0, degree_high=0)

    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        await a.host.connect(b.dial)
        topic, name = a.host._prefix + STATE_TOPIC, ID.from_base58(b.host.node)
        await until(lambda: name in a.host._pubsub.peer_topics.get(topic, ()) and name in a.host._pubsub.peers)
        await a.host.publish(STATE_TOPIC, b"by name")
        await hear(b.host, b"by name")
        assert not a.host._gossip.mesh[topic]

    play(scene, lambda: make(config=apart), lambda: make(config=apart))


def test_heartbeats_that_fail_are_counted_and_the_next_one_mends_the_mesh() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        history, a.host._gossip.mcache.history = a.host._gossip.mcache.history, []
        await until(lambda: a.host.statistics().faults.get("heartbeat", 0) == 2)
        a.host._gossip.mcache.history = history
        await meet(a, b)
        assert a.host.statistics().faults == {"heartbeat": 2}

    play(scene, make, make)


def test_heartbeats_come_with_the_other_timers_of_the_process() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        beats: list[float] = []
        shift = a.host._gossip.mcache.shift
        a.host._gossip.mcache.shift = lambda: (beats.append(trio.current_time()), shift())
        await meet(a, b)
        await until(lambda: len(beats) >= 2)
        assert all(at_s % 1.0 < 0.25 for at_s in beats), beats

    play(scene, lambda: make(), lambda: make(config=Libp2pConfig(phase_s=0.5)))


def test_what_is_refused_is_judged_once_however_many_bring_it() -> None:
    judged: list[bytes] = []

    def picky() -> Libp2pHost:
        host = make()
        host.set_validator(STATE_TOPIC, lambda message: bool(judged.append(message.data)))
        return host

    async def scene(nursery: trio.Nursery, a: Running, b: Running, attacker: Running) -> None:
        await meet(a, b)
        await meet(attacker, b)
        rpc = rpc_with(b, origin=a.host.node, signer=a, key_of=None, data=b"once")
        for source in (a, attacker, a):
            source.host._gossip.send_rpc(ID.from_base58(b.host.node), rpc)
        await until(lambda: b.host.statistics().copies == 3)
        assert judged == [b"once"]

    play(scene, make, picky, make)


def test_a_flood_of_forged_messages_costs_so_many_signature_checks_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(nursery: trio.Nursery, attacker: Running, b: Running) -> None:
        await meet(attacker, b)
        checks = 0
        check = b.host._pubsub._is_signed

        def count(msg: rpc_pb2.Message) -> bool:
            nonlocal checks
            checks += 1
            return check(msg)

        monkeypatch.setattr(b.host._pubsub, "_is_signed", count)
        topic = b.host._prefix + STATE_TOPIC
        victim = ID.from_base58(NodeKey.generate().node).to_bytes()
        forged = [
            rpc_pb2.Message(topicIDs=[topic], from_id=victim, seqno=i.to_bytes(8, "big"), signature=bytes(64))
            for i in range(1200)
        ]
        for start in range(0, 1200, 100):
            rpc = rpc_pb2.RPC(publish=forged[start : start + 100])
            attacker.host._gossip.send_rpc(ID.from_base58(b.host.node), rpc)
        await until(lambda: b.host.statistics().copies == 1200)
        assert FORWARDER_BURST <= checks < FORWARDER_BURST + 2 * FORWARDER_RATE_HZ
        assert b.host.statistics().limited == 1200 - checks

    play(scene, make, make)


def test_only_so_many_messages_are_taken_out_of_one_rpc() -> None:
    async def scene(nursery: trio.Nursery, attacker: Running, b: Running) -> None:
        await meet(attacker, b)
        rpc = rpc_pb2.RPC(publish=[rpc_pb2.Message(topicIDs=["x"], seqno=bytes(8))] * 1000)
        attacker.host._gossip.send_rpc(ID.from_base58(b.host.node), rpc)
        await until(lambda: b.host.statistics().ill_formed == 1000 - MESSAGES_PER_RPC)
        assert b.host.statistics().copies == MESSAGES_PER_RPC

    play(scene, make, make)


def test_malformed_messages_of_a_certified_peer_end_nothing() -> None:
    async def scene(nursery: trio.Nursery, attacker: Running, b: Running) -> None:
        await meet(attacker, b)
        target = ID.from_base58(b.host.node)
        good: dict[str, Any] = {"data": b"x", "topicIDs": [b.host._prefix + STATE_TOPIC], "seqno": bytes(8)}
        for change in (
            {"from_id": b"\xff" * 40, "key": b"\x08\xff\x12", "signature": bytes(64)},
            {"from_id": b"", "signature": bytes(64)},
            {"from_id": bytes(38), "signature": bytes(64), "topicIDs": good["topicIDs"] * 3},
            {"from_id": bytes(38), "signature": bytes(64), "data": bytes(5000)},
            {"from_id": b"\x12\x20" + bytes(32), "key": b"\x08\x63\x12\x20" + bytes(32), "signature": bytes(64)},
        ):
            attacker.host._gossip.send_rpc(target, rpc_pb2.RPC(publish=[rpc_pb2.Message(**{**good, **change})]))
        stream = await attacker.host._host.new_stream(target, ["/meshsub/1.1.0"])
        await stream.write(b"\x05\xff\xff\xff\xff\xff")  # no protobuf
        stream = await attacker.host._host.new_stream(target, ["/meshsub/1.1.0"])
        await stream.write(b"\xff\xff\xff\xff\x0f")  # four gigabytes
        await until(lambda: b.host.statistics().ill_formed >= 2)
        await meet(attacker, b)
        await attacker.host.publish(STATE_TOPIC, b"alive")
        await hear(b.host, b"alive")
        assert sum(b.host.statistics().faults.values()) >= 2, "what stock libp2p would have died of"

    play(scene, make, make)


@pytest.mark.parametrize(
    "garbage",
    [
        random.Random(8).randbytes(20_000),
        b"\x01\xff\xff\xff" + bytes(100),
        encode_frame(DATA, 4001, b"for a stream that nobody opened"),
        encode_frame(OPEN, 1) * 2,
    ],
)
def test_a_certified_peer_that_breaks_the_muxers_protocol_loses_its_connection_and_nothing_else(garbage: bytes) -> None:
    async def scene(nursery: trio.Nursery, attacker: Running, b: Running, c: Running) -> None:
        await meet(attacker, b)
        await meet(c, b)
        (connection,) = attacker.host._swarm.get_connections()
        await connection.muxed_conn.secured_conn.write(garbage)  # type: ignore[attr-defined]
        await until(lambda: attacker.neighbours == [] and b.neighbours == [c.host.node])
        await c.host.publish(STATE_TOPIC, b"still here")
        await hear(b.host, b"still here")
        await meet(attacker, b)
        assert sum(b.host.statistics().faults.values()) == 0, "it is the peer's fault, not libp2p's"

    play(scene, make, make, make)


def test_a_flood_of_streams_is_bounded() -> None:
    async def scene(nursery: trio.Nursery, attacker: Running, b: Running) -> None:
        await meet(attacker, b)
        target = ID.from_base58(b.host.node)
        for _ in range(60):
            await attacker.host._swarm.new_stream(target)
        await until(lambda: sum(b.host._host._inbound.values()) >= 8)
        assert sum(b.host._host._inbound.values()) <= 8
        await attacker.host.publish(STATE_TOPIC, b"alive")
        await hear(b.host, b"alive")

    play(scene, make, make)


def test_a_cancelled_publish_kills_no_connection() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        await meet(a, b)
        connection = a.host._swarm.get_connections()[0]
        for i in range(300):
            with trio.move_on_after(0) if i % 2 else trio.move_on_after(0.0005):
                await a.host.publish(HEALTH_TOPIC, bytes(2000))
        await trio.sleep(2.5)  # the origin's bucket fills again
        await a.host.publish(STATE_TOPIC, b"after all")
        await hear(b.host, b"after all")
        assert a.host._swarm.get_connections() == [connection]

    play(scene, make, make)


def test_a_disconnected_peer_is_not_dialled_by_libp2p_itself() -> None:
    async def scene(nursery: trio.Nursery, a: Running, b: Running) -> None:
        await meet(a, b)
        await a.host.disconnect(b.host.node)
        await until(lambda: not b.neighbours)
        for host, other in ((a, b), (b, a)):
            await host.host.publish(STATE_TOPIC, b"nobody hears it")
            told = multiaddr_of(*other.address)  # as a peer could have told by any of libp2p's ways
            host.host._host.get_peerstore().add_addrs(ID.from_base58(other.host.node), [told], 3600)
            with pytest.raises(SwarmException, match="planner"):
                await host.host._host.new_stream(ID.from_base58(other.host.node), ["/meshsub/1.1.0"])
        await trio.sleep(1.5)  # more than one heartbeat and one retry of pubsub
        assert a.neighbours == b.neighbours == []

    play(scene, make, make)


def test_publishing_has_bounds_and_needs_a_running_host() -> None:
    async def scene(nursery: trio.Nursery, a: Running) -> None:
        with pytest.raises(LocalProtocolError, match="4096"):
            await a.host.publish(STATE_TOPIC, bytes(5000))
        with pytest.raises(LocalProtocolError, match="does not run"):
            await make().publish(STATE_TOPIC, b"x")
        with pytest.raises(PeerUnreachableError, match="itself"):
            await a.host.connect(a.dial)
        for node, host in (("nonsense", "127.0.0.1"), (NodeKey.generate().node, "not a host\x00/")):
            with pytest.raises(PeerUnreachableError):
                await a.host.connect(Dial(node=node, host=host, port=1))

    play(scene, make)


def test_an_end_leaves_no_descriptor_and_no_task() -> None:
    async def main() -> None:
        before: tuple[int, int] | None = None
        for _ in range(4):
            async with trio.open_nursery() as nursery:
                a, b, c = [await start(nursery, make()) for _ in range(3)]
                await meet(a, b)
                await meet(b, c)
                silent = await trio.open_tcp_stream(*a.address)
                await a.host.publish(STATE_TOPIC, b"x")
                began_s = trio.current_time()
                nursery.cancel_scope.cancel()
            assert trio.current_time() - began_s < 4.0
            with trio.CancelScope(shield=True):
                await silent.aclose()
            now = (len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living)
            if before is not None:
                assert now == before
            before = now

    trio.run(main)


def test_a_peer_that_does_not_read_loses_its_connection() -> None:
    async def main() -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        deaf = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        closed: list[GridStream] = []
        stream = GridStream(await listener.accept(), closed.append)
        began_s = trio.current_time()
        with pytest.raises(Exception, match="read nothing"):
            await stream.write(bytes(64 << 20))
        assert trio.current_time() - began_s == pytest.approx(WRITE_TIMEOUT_S)
        assert closed == [stream]
        await deaf.aclose()
        await listener.aclose()

    trio.run(main, clock=MockClock(autojump_threshold=0.05))


def test_a_cancellation_does_not_tear_a_write() -> None:
    async def main() -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        reader = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        stream = GridStream(await listener.accept(), lambda _: None)
        got = bytearray()

        async def read() -> None:
            async for part in reader:
                got.extend(part)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for _ in range(10):
                with trio.move_on_after(0.001):
                    await stream.write(bytes(4 << 20))
            stream.abort()
        assert len(got) % (4 << 20) == 0
        assert got
        await reader.aclose()
        await listener.aclose()

    trio.run(main)


class Knocker:
    """As much of a stream as the doorstep looks at."""

    def __init__(self, host_key: str, step: Doorstep) -> None:
        self.host_key = host_key
        self.aborted = False
        self._step = step

    def abort(self) -> None:
        self.aborted = True
        self._step.leave(self)  # type: ignore[arg-type]


def test_the_oldest_of_the_greediest_address_goes_first() -> None:
    step = Doorstep(per_host=3, in_all=5)
    greedy = [Knocker("10.0.0.1", step) for _ in range(4)]
    modest = [Knocker(f"10.0.0.{i}", step) for i in (2, 3, 4)]
    for knocker in (*greedy[:3], *modest[:2], greedy[3], modest[2]):
        step.enter(knocker)  # type: ignore[arg-type]
    assert [k.aborted for k in greedy] == [True, True, False, False]
    assert not any(k.aborted for k in modest)
    assert (len(step), step.evicted) == (5, 2)


@asynccontextmanager
async def stock_peer() -> AsyncIterator[tuple[object, Pubsub, str]]:
    """A libp2p host as anybody might make it."""
    keys = generate_new_ed25519_identity()
    address = multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")
    host = new_host(key_pair=keys, sec_opt={NOISE: Noise(keys, noise_privkey=create_new_key_pair().private_key)})
    router = GossipSub(["/meshsub/1.1.0"], degree=4, degree_low=3, degree_high=8, heartbeat_interval=1)
    pubsub = Pubsub(host, router, strict_signing=True)
    async with host.run([address]), background_trio_service(router), background_trio_service(pubsub):
        await pubsub.wait_until_ready()
        try:
            yield host, pubsub, str(host.get_addrs()[0])
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 3.0):
                await host.close()


def test_an_open_grid_gossips_with_a_stock_libp2p_host() -> None:
    def open_host() -> Libp2pHost:
        return Libp2pHost(
            NodeKey.generate(),
            grid_id=GRID.grid_id,
            epoch=1,
            listen=("127.0.0.1", 0),
            trust=None,
            chain_pem=None,
            on_bug=fail,
        )

    async def scene(nursery: trio.Nursery, a: Running) -> None:
        async with stock_peer() as (host, pubsub, _):
            topic = a.host._prefix + STATE_TOPIC
            subscription = await pubsub.subscribe(topic)
            target = multiaddr.Multiaddr(f"/ip4/127.0.0.1/tcp/{a.address[1]}/p2p/{a.host.node}")
            await host.connect(info_from_p2p_addr(target))  # type: ignore[attr-defined]
            me = host.get_id()  # type: ignore[attr-defined]
            await until(lambda: me in a.host._pubsub.peer_topics.get(topic, ()))
            await until(lambda: ID.from_base58(a.host.node) in pubsub.peer_topics.get(topic, ()))
            assert [muxer_of(connection) for connection in a.host._swarm.get_connections()] == ["/yamux/1.0.0"]
            await pubsub.publish(topic, b"from them")
            assert (await hear(a.host, b"from them")).origin == me.to_base58()
            await a.host.publish(STATE_TOPIC, b"from us")
            while (await subscription.get()).data != b"from us":
                pass

    play(scene, open_host)


OTHER_PROCESS = """
import base64, sys
import msgspec, trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from transport.certificates import GridTrust, NothingRevoked
from transport.gridtime import GridTime
from transport.identity import NodeKey
from transport.libp2p_host import Libp2pHost
raw, chain, ca, grid_id, now_s = msgspec.json.decode(sys.stdin.readline())
key = NodeKey(Ed25519PrivateKey.from_private_bytes(base64.b64decode(raw)))
trust = GridTrust(ca.encode(), grid_id, revocations=NothingRevoked(), grid_time=GridTime(lambda: now_s))
host = Libp2pHost(key, grid_id=grid_id, epoch=1, listen=("127.0.0.1", 0), trust=trust,
                  chain_pem=chain.encode(), on_bug=sys.exit)
async def main():
    async with trio.open_nursery() as nursery:
        address = await nursery.start(host.serve)
        print(address[1], flush=True)
trio.run(main)
"""


@asynccontextmanager
async def other_process(member: SandboxNode) -> AsyncIterator[tuple[trio.Process, Dial]]:
    """Run a host in a process of its own."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", OTHER_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        raw = base64.b64encode(member.key.raw_private).decode()
        told = (raw, member.chain_pem.decode(), GRID.ca_pem.decode(), GRID.grid_id, GRID.now_s)
        await process.stdin.send_all(msgspec.json.encode(told) + b"\n")
        port = b""
        while not port.endswith(b"\n"):
            port += await process.stdout.receive_some()
        yield process, Dial(node=member.node, host="127.0.0.1", port=int(port))
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5.0):
            await process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await pipe.aclose()


def test_a_killed_process_is_noticed_at_once() -> None:
    async def scene(nursery: trio.Nursery, a: Running) -> None:
        async with other_process(GRID.make_node()) as (process, dial):
            await a.host.connect(dial)
            assert a.neighbours == [dial.node]
            process.kill()
            began_s = trio.current_time()
            await until(lambda: a.neighbours == [])
            assert trio.current_time() - began_s < 1.0

    play(scene, make)


def test_a_stopped_process_delays_neither_a_disconnect_nor_the_end() -> None:
    async def scene(nursery: trio.Nursery) -> None:
        async with other_process(GRID.make_node()) as (process, dial):
            for ending in ("disconnect", "end"):
                a = await start(nursery, make())
                await a.host.connect(dial)
                mesh, name = a.host._gossip.mesh, ID.from_base58(dial.node)
                topic = a.host._prefix + HEALTH_TOPIC
                await until(lambda m=mesh, n=name, t=topic: n in m.get(t, ()))  # type: ignore[misc]
                process.send_signal(signal.SIGSTOP)
                for i in range(120):
                    await a.host.publish(HEALTH_TOPIC, bytes([i]) * 4000)
                assert a.host.statistics().dropped > 0, "a neighbour that does not read fills no memory"
                assert a.neighbours == [dial.node], "silence is the failure detector's business"
                began_s = trio.current_time()
                if ending == "disconnect":
                    await a.host.disconnect(dial.node)
                    assert a.neighbours == []
                    assert trio.current_time() - began_s < 2.0
                a.scope.cancel()
                await until(lambda host=a.host: host._swarm.manager.is_finished)  # type: ignore[misc]
                assert trio.current_time() - began_s < 5.0
                process.send_signal(signal.SIGCONT)

    play(scene)
