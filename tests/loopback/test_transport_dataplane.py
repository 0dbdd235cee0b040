"""The data plane over real sockets on 127.0.0.1."""

import bisect
import itertools
import socket
import ssl
import struct
from contextlib import asynccontextmanager, closing, suppress

import msgspec
import pytest
import trio
import trio.testing

from transport import wire
from transport.admission import Credentials
from transport.base import DataAddress
from transport.bounds import ByteBudget, FrameLimits
from transport.certificates import DAY_S, GridTrust, NothingRevoked
from transport.dataplane import TlsDataPlane
from transport.dataplane_records import DataPlaneConfig
from transport.framing import FrameReceiver, encode_prefix
from transport.gridtime import GridTime
from transport.revocation import Revocations
from transport.sandbox import GRID_ID, NOW_S, SandboxGrid
from transport.securestream import PIECE_BYTES, READ_BYTES, ListenError, SecureStream, take_socket
from transport.tls import CONFIRMATION, client_context, joining_context, server_context
from transport.wire import (
    CardRequest,
    Document,
    FrameTooLargeError,
    Hello,
    LocalProtocolError,
    PeerUnreachableError,
    Ping,
    RemoteProtocolError,
    TrustRequest,
)

QUICK = FrameLimits(stall_s=0.3, slowest_rate=1e9)


def plane_of(grid, node, *, revocations=None, now_s=None, told=None, **changes):
    trust = grid.trust(revocations=revocations, now_s=now_s)
    credentials = Credentials(node.key, node.chain_pem, trust, epoch=1)
    config = DataPlaneConfig(host="127.0.0.1", **changes)
    return TlsDataPlane(credentials, config, **(told or {}))


async def echo(exchange, message, payload):
    """Send back what came, until something else than a CardRequest comes."""
    await exchange.send(message, [payload])
    exchange.finish()


async def eventually(fact):
    """Wait for a fact that another task brings about."""
    with trio.fail_after(10):
        while not fact():
            await trio.testing.wait_all_tasks_blocked(0.001)


@asynccontextmanager
async def two_planes(handler=echo, *, client=None, server=None, grid=None):
    grid = grid or SandboxGrid()
    here, there = grid.make_node(), grid.make_node()
    dialler, listener = plane_of(grid, here, **(client or {})), plane_of(grid, there, **(server or {}))
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(listener.serve, handler)
        await nursery.start(dialler.serve, echo)
        dialler.set_address(there.node, [DataAddress(host=host, port=port)])
        yield dialler, listener, there.node, (host, port)
        nursery.cancel_scope.cancel()


async def ask(plane, peer, payload=b"", message=None):
    async with plane.exchange(peer) as exchange:
        await exchange.send(message or CardRequest(nodes=()), [payload])
        answer = await exchange.receive()
        exchange.finish()
    return answer


def in_trio(main):
    def run():
        async def within_limit():
            with trio.fail_after(30):
                await main()

        trio.run(within_limit)

    run.__name__ = main.__name__
    return run


# ---------------------------------------------------------------- exchanges


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 150_000, 2_700_000])
def test_payloads_of_any_size_go_round(size):
    async def main():
        async with two_planes() as (plane, _, peer, _address):
            payload = bytes(range(256)) * (size // 256 + 1)
            message, answer = await ask(plane, peer, payload[:size])
            assert message == CardRequest(nodes=())
            assert answer == payload[:size]

    in_trio(main)()


class Room:
    """Memory of a test's choice."""

    def __init__(self, size):
        self.view = memoryview(bytearray(size))
        self.released = 0

    def release(self):
        self.released += 1


@pytest.mark.parametrize("is_taken", [True, False])
def test_payloads_are_received_where_the_receiver_wants_them(is_taken):
    async def main():
        rooms = []

        def make_room(message, size):
            assert message == CardRequest(nodes=())
            rooms.append(Room(size))
            return rooms[-1]

        async def look(exchange, message, payload):
            if payload and is_taken:
                assert exchange.take_room() is rooms[-1]
            await echo(exchange, message, payload)

        async with two_planes(look) as (plane, listener, peer, _address):
            listener.make_room = make_room
            for size in (100_000, 0, 300_000):
                _, answer = await ask(plane, peer, b"x" * size)
                assert answer == b"x" * size
            await ask(plane, peer)
            assert [bytes(room.view) for room in rooms] == [b"x" * 100_000, b"x" * 300_000]
            # What nobody took is let go before the next frame; what somebody took is theirs to let go.
            assert [room.released for room in rooms] == [0 if is_taken else 1] * 2

    in_trio(main)()


@in_trio
async def test_a_receive_that_is_cancelled_inside_a_payload_keeps_its_room():
    rooms = []

    def make_room(message, size):
        rooms.append(Room(size))
        return rooms[-1]

    payload = bytes(range(250)) * 200
    go_on = trio.Event()

    async def in_two(exchange, message, _):
        header = wire.encode(message)
        frame = encode_prefix(header, len(payload)) + header + payload
        exchange.connection._stream.ssl_object.write(frame[:30_000])
        await exchange.flush()
        await go_on.wait()
        exchange.connection._stream.ssl_object.write(frame[30_000:])
        await exchange.flush()
        exchange.finish()

    async with two_planes(in_two) as (plane, _, peer, _address), plane.exchange(peer) as exchange:
        plane.make_room = make_room
        await exchange.send(CardRequest(nodes=()))
        with trio.CancelScope() as impatience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange.receive)
                await eventually(lambda: rooms and rooms[0].view[0:250] == payload[:250])
                impatience.cancel()
        go_on.set()
        _, received = await exchange.receive()
        assert received == payload
        assert [room.released for room in rooms] == [0]
        assert exchange.take_room() is rooms[0]


@in_trio
async def test_room_for_a_payload_that_breaks_off_is_let_go():
    rooms = []

    def make_room(message, size):
        rooms.append(Room(size))
        return rooms[-1]

    async with two_planes() as (plane, listener, peer, _):
        listener.make_room = make_room
        await ask(plane, peer)
        with trio.move_on_after(0.2):
            async with plane.exchange(peer) as exchange:
                exchange.connection._stream.ssl_object.write(
                    encode_prefix(wire.encode(CardRequest(nodes=())), 50_000)
                    + wire.encode(CardRequest(nodes=()))
                    + bytes(10)
                )
                await exchange.flush()
                await eventually(lambda: rooms)
        await eventually(lambda: rooms[0].released == 1)


@in_trio
async def test_a_payload_in_parts_arrives_as_one():
    async with two_planes() as (plane, _, peer, _), plane.exchange(peer) as exchange:
        numbers = memoryview(bytearray(range(240))).cast("I", (3, 20))
        await exchange.send(CardRequest(nodes=()), [b"head", numbers, bytearray(b"tail"), b""])
        _, answer = await exchange.receive()
        assert bytes(answer) == b"head" + bytes(range(240)) + b"tail"
        assert exchange.peer == peer
        assert exchange.certificate.node == peer


@in_trio
async def test_a_finished_connection_is_used_again():
    async with two_planes() as (plane, listener, peer, _):
        for _ in range(3):
            await ask(plane, peer)
        counters = plane.statistics()
        assert (counters.dials, counters.reused, counters.outbound, counters.outbound_idle) == (1, 2, 1, 1)
        assert (counters.frames_sent, counters.frames_received) == (4, 4)
        assert listener.statistics().exchanges_served == 3
        assert plane.open_peers() == (peer,)


@in_trio
async def test_an_unfinished_exchange_closes_its_connection():
    async with two_planes() as (plane, listener, peer, _):
        async with plane.exchange(peer) as exchange:
            await exchange.send(CardRequest(nodes=()))
        await ask(plane, peer)
        assert plane.statistics().dials == 2
        await eventually(lambda: listener.statistics().inbound == 1)


@in_trio
async def test_an_exchange_left_by_an_error_closes_its_connection():
    async with two_planes() as (plane, _, peer, _):

        async def fail():
            async with plane.exchange(peer) as exchange:
                exchange.finish()
                raise KeyError

        with pytest.raises(KeyError):
            await fail()
        assert plane.open_peers() == ()


@in_trio
async def test_a_handler_that_does_not_finish_closes_the_connection():
    async def forgetful(exchange, message, payload):
        await exchange.send(message)

    async with two_planes(forgetful) as (plane, listener, peer, _):
        await ask(plane, peer)
        await eventually(lambda: listener.statistics().inbound == 0)
        await ask(plane, peer)
        assert (plane.statistics().reused, plane.statistics().dials) == (0, 2)


@in_trio
async def test_exchanges_at_the_same_time_take_connections_of_their_own():
    both = trio.Event()
    waiting = 0

    async def meet(exchange, message, payload):
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both.set()
        await both.wait()
        await echo(exchange, message, payload)

    async with two_planes(meet) as (plane, _, peer, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, plane, peer)
            nursery.start_soon(ask, plane, peer)
        assert plane.statistics().outbound == 2


@in_trio
async def test_connections_per_peer_are_bounded_and_others_wait():
    async with two_planes(client={"outbound_per_peer": 2}) as (plane, _, peer, _):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask, plane, peer, b"x" * 200_000)
        assert plane.statistics().dials == 2
        assert plane.statistics().reused == 6


@in_trio
async def test_a_burst_to_one_peer_does_not_look_like_an_attack():
    all_here = trio.Event()
    here = 0

    async def meet(exchange, message, payload):
        nonlocal here
        here += 1
        if here == 24:
            all_here.set()
        await all_here.wait()
        await echo(exchange, message, payload)

    async with two_planes(meet, server={"pending_per_host": 3}) as (plane, listener, peer, _):
        async with trio.open_nursery() as nursery:
            for _ in range(24):
                nursery.start_soon(ask, plane, peer)
        assert plane.statistics().dials_failed == 0
        assert listener.statistics().refused_crowded == 0


@in_trio
async def test_connections_in_all_are_bounded_and_the_longest_idle_makes_room():
    grid = SandboxGrid()
    nodes = [grid.make_node() for _ in range(3)]
    plane = plane_of(grid, grid.make_node(), outbound_max=2)
    async with trio.open_nursery() as nursery:
        for node in nodes:
            host, port = await nursery.start(plane_of(grid, node).serve, echo)
            plane.set_address(node.node, [DataAddress(host=host, port=port)])
        for node in nodes:
            await ask(plane, node.node)
        assert plane.open_peers() == tuple(sorted(node.node for node in nodes[1:]))
        await plane.close_peer(nodes[1].node)
        await plane.close_peer(nodes[2].node)
        nursery.cancel_scope.cancel()


@in_trio
async def test_without_an_idle_connection_to_give_up_a_lease_waits():
    grid = SandboxGrid()
    one, other = grid.make_node(), grid.make_node()
    plane = plane_of(grid, grid.make_node(), outbound_max=1)
    async with trio.open_nursery() as nursery:
        for node in (one, other):
            host, port = await nursery.start(plane_of(grid, node).serve, echo)
            plane.set_address(node.node, [DataAddress(host=host, port=port)])
        async with plane.exchange(one.node) as exchange:
            with trio.move_on_after(0.05) as scope:
                await ask(plane, other.node)
            assert scope.cancelled_caught
            assert plane.open_peers() == (one.node,)
            nursery.start_soon(ask, plane, other.node)
            await exchange.send(Ping(nonce=1))
            await exchange.receive()
            exchange.finish()
        await eventually(lambda: plane.open_peers() == (other.node,) and plane.statistics().outbound_idle == 1)
        await plane.close_peer(other.node)
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_conversation_of_several_frames_in_both_directions():
    async def count_down(exchange, message, payload):
        for number in range(message.nonce, 0, -1):
            await exchange.send(Ping(nonce=number))
        reply, _ = await exchange.receive()
        assert reply == Ping(nonce=7)
        exchange.finish()

    async with two_planes(count_down) as (plane, listener, peer, _):
        async with plane.exchange(peer) as exchange:
            await exchange.send(Ping(nonce=3))
            assert [(await exchange.receive())[0].nonce for _ in range(3)] == [3, 2, 1]
            await exchange.send(Ping(nonce=7))
            exchange.finish()
        assert listener.statistics().faults == 0


@in_trio
async def test_receiving_may_be_cancelled_between_frames():
    async with two_planes() as (plane, _, peer, _), plane.exchange(peer) as exchange:
        with trio.move_on_after(0.02):
            await exchange.receive()
        await exchange.send(Ping(nonce=1))
        assert (await exchange.receive())[0] == Ping(nonce=1)


@in_trio
async def test_sending_cancelled_half_way_closes_the_connection_and_nothing_else():
    async def deaf(exchange, message, payload):
        await trio.sleep_forever()

    async with two_planes(deaf) as (plane, _, peer, _):
        async with plane.exchange(peer) as exchange:
            await exchange.send(Ping(nonce=1))  # the handler does not read what follows
            with trio.move_on_after(0.2) as scope:
                await exchange.send(Ping(nonce=2), [bytes(32_000_000)])
            assert scope.cancelled_caught
            with pytest.raises(PeerUnreachableError, match="closed on this side"):
                await exchange.send(Ping(nonce=3))
            with pytest.raises(PeerUnreachableError, match="closed on this side"):
                await exchange.receive()
        assert plane.open_peers() == ()


@in_trio
async def test_a_peer_that_does_not_read_is_given_up():
    async def deaf(exchange, message, payload):
        await trio.sleep_forever()

    async with two_planes(deaf, client={"frames": QUICK}) as (plane, _, peer, _), plane.exchange(peer) as exchange:
        await exchange.send(Ping(nonce=1))
        with pytest.raises(PeerUnreachableError, match="did not take"):
            await exchange.send(Ping(nonce=2), [bytes(32_000_000)])


@in_trio
async def test_what_is_too_large_is_our_fault_and_leaves_the_connection_alone():
    limits = FrameLimits(payload_max_bytes=1000)
    async with two_planes(client={"frames": limits}) as (plane, _, peer, _), plane.exchange(peer) as exchange:
        with pytest.raises(FrameTooLargeError):
            await exchange.send(Ping(nonce=1), [bytes(1001)])
        with pytest.raises(LocalProtocolError):
            await exchange.send(wire.Refused(reason="x" * 70_000))
        await exchange.send(Ping(nonce=1), [bytes(1000)])
        assert len((await exchange.receive())[1]) == 1000


@in_trio
async def test_too_large_a_payload_is_refused_before_it_is_allocated():
    async with two_planes(server={"frames": FrameLimits(payload_max_bytes=1000)}) as (plane, listener, peer, _):
        with pytest.raises(PeerUnreachableError):
            await ask(plane, peer, bytes(1001))
        await eventually(lambda: listener.statistics().faults == 1)
        assert listener.statistics().receiving_bytes == 0
        await ask(plane, peer, bytes(1000))


@in_trio
async def test_payload_buffers_are_bounded_over_all_connections():
    limits = FrameLimits(receive_budget_bytes=300_000)
    async with two_planes(server={"frames": limits}) as (plane, listener, peer, _):
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask, plane, peer, bytes(200_000))
        assert listener.statistics().receiving_bytes == 0
        assert listener.statistics().exchanges_served == 6


def test_who_finds_no_room_waits_for_it():
    async def main():
        budget = ByteBudget(100)
        await budget.take(500)  # alone it may exceed the bound
        order = []

        async def take(name, count):
            await budget.take(count)
            order.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, "a", 60)
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
            budget.give_back(500)
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["a"]
            nursery.start_soon(take, "b", 60)
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["a"]
            budget.give_back(60)
        assert budget.used_bytes == 60

    in_trio(main)()


# ---------------------------------------------------------------- losing connections


@in_trio
async def test_a_stale_pooled_connection_is_replaced_before_anything_is_sent():
    grid = SandboxGrid()
    here, there = grid.make_node(), grid.make_node()
    plane = plane_of(grid, here)
    async with trio.open_nursery() as nursery:
        for restart in range(2):
            async with trio.open_nursery() as life:
                host, port = await life.start(plane_of(grid, there).serve, echo)
                plane.set_address(there.node, [DataAddress(host=host, port=port)])
                await ask(plane, there.node)
                life.cancel_scope.cancel()
            assert plane.statistics().stale == restart
        nursery.cancel_scope.cancel()
    await plane.close_peer(there.node)


@in_trio
async def test_a_peer_that_goes_away_while_idle_is_noticed():
    gone = []
    grid = SandboxGrid()
    there = grid.make_node()
    plane = plane_of(grid, grid.make_node(), sweep_s=3600.0, told={"on_peer_closed": gone.append})
    async with trio.open_nursery() as nursery:
        await nursery.start(plane.serve, echo)
        async with trio.open_nursery() as life:
            host, port = await life.start(plane_of(grid, there).serve, echo)
            plane.set_address(there.node, [DataAddress(host=host, port=port)])
            await ask(plane, there.node)
            life.cancel_scope.cancel()
        await eventually(lambda: gone == [there.node])
        assert plane.open_peers() == ()
        nursery.cancel_scope.cancel()


@in_trio
async def test_what_comes_on_connections_wakes_nobody_who_waits_for_their_end():
    gone = []
    async with two_planes(client={"sweep_s": 3600.0, "told": {"on_peer_closed": gone.append}}) as (plane, _, peer, _):
        for _ in range(3):
            await ask(plane, peer)
        looker = next(task for task in tasks_of("Hangups.serve"))
        counter = StepCounter(looker)
        trio.lowlevel.add_instrument(counter)
        for _ in range(20):
            await ask(plane, peer)
        trio.lowlevel.remove_instrument(counter)
        assert (counter.steps, gone, plane.statistics().reused) == (0, [], 22)


@in_trio
async def test_a_peer_that_closes_a_connection_in_use_is_told_by_the_exchange_alone():
    gone = []

    async def leave(exchange, message, payload):
        raise RemoteProtocolError("enough")

    client = {"sweep_s": 3600.0, "told": {"on_peer_closed": gone.append}}
    async with two_planes(leave, client=client) as (plane, _, peer, _):
        for _ in range(3):
            with pytest.raises(PeerUnreachableError):
                await ask(plane, peer)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (gone, plane.open_peers()) == ([], ())


class StepCounter(trio.abc.Instrument):
    """Counts how often a task runs."""

    def __init__(self, task):
        self.task = task
        self.steps = 0

    def before_task_step(self, task):
        self.steps += task is self.task


def tasks_of(name):
    """Return all tasks whose name ends like this."""
    waiting, found = [trio.lowlevel.current_root_task()], []
    while waiting:
        task = waiting.pop()
        found += [task] if task.name.endswith(name) else []
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


@in_trio
async def test_both_sides_are_told_of_each_new_connection():
    dialled, admitted = [], []
    told = {
        "client": {"told": {"on_peer_opened": dialled.append}},
        "server": {"told": {"on_peer_opened": admitted.append}},
    }
    async with two_planes(**told) as (plane, listener, peer, _):
        await ask(plane, peer)
        await ask(plane, peer)
        await plane.close_peer(peer)
        await ask(plane, peer)
        assert dialled == [peer, peer]
        assert len(admitted) == 2
        assert listener.open_peers() == (admitted[0],)


@in_trio
async def test_a_leased_connection_is_retired_by_renewal():
    grid = SandboxGrid()
    node, there = grid.make_node(), grid.make_node()
    plane = plane_of(grid, node)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(plane_of(grid, there).serve, echo)
        plane.set_address(there.node, [DataAddress(host=host, port=port)])
        async with plane.exchange(there.node) as exchange:
            plane.renew(grid.issue(node.key, ("serve",), at_s=NOW_S + DAY_S))
            await exchange.send(Ping(nonce=1))
            await exchange.receive()
            exchange.finish()
        assert plane.open_peers() == ()
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_pooled_connection_to_a_peer_revoked_since_is_not_used():
    grid = SandboxGrid()
    here, there = grid.make_node(), grid.make_node()
    revocations = Revocations()
    plane = plane_of(grid, here, revocations=revocations)
    async with trio.open_nursery() as nursery:
        listener = plane_of(grid, there)
        host, port = await nursery.start(listener.serve, echo)
        plane.set_address(there.node, [DataAddress(host=host, port=port)])
        await ask(plane, there.node)
        document = revocations.sign_next(GRID_ID, grid.ca_key, now_s=NOW_S, nodes=[there.node])
        revocations.accept(document, grid.trust())
        with pytest.raises(PeerUnreachableError, match="revoked"):
            await ask(plane, there.node)
        assert listener.statistics().exchanges_served == 1
        nursery.cancel_scope.cancel()


@in_trio
async def test_idle_connections_are_closed_after_a_while():
    changes = {"idle_s": 0.05, "sweep_s": 0.02}
    async with two_planes(client=changes) as (plane, listener, peer, _):
        await ask(plane, peer)
        await eventually(lambda: plane.open_peers() == ())
        await eventually(lambda: listener.statistics().inbound == 0)


@in_trio
async def test_a_listener_closes_connections_that_stay_idle():
    async with two_planes(server={"idle_s": 0.04, "inbound_idle_s": 0.05, "sweep_s": 0.02}) as (
        plane,
        listener,
        peer,
        _,
    ):
        await ask(plane, peer)
        await eventually(lambda: listener.statistics().inbound == 0)
        await ask(plane, peer)


def test_the_dialling_side_must_be_the_first_to_close_idle_connections():
    with pytest.raises(ValueError, match="below inbound_idle_s"):
        DataPlaneConfig(idle_s=90.0)


@in_trio
async def test_a_peer_dying_in_an_exchange_is_reported_once():
    async def die(exchange, message, payload):
        raise RemoteProtocolError("enough")

    async with two_planes(die) as (plane, listener, peer, _):
        with pytest.raises(PeerUnreachableError, match="closed the connection"):
            await ask(plane, peer)
        assert plane.open_peers() == ()
        await eventually(lambda: listener.statistics().faults == 1)


@in_trio
async def test_close_peer_wakes_those_who_wait():
    async def silent(exchange, message, payload):
        await trio.sleep_forever()

    async with two_planes(silent) as (plane, _, peer, _):
        failures = []

        async def wait_for_answer():
            with pytest.raises(PeerUnreachableError) as caught:
                await ask(plane, peer)
            failures.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_answer)
            await eventually(lambda: plane.open_peers() == (peer,))
            await plane.close_peer(peer)
        assert len(failures) == 1
        assert plane.open_peers() == ()


def test_a_bug_in_a_handler_ends_the_node():
    async def buggy(exchange, message, payload):
        raise ZeroDivisionError

    async def main():
        async with two_planes(buggy) as (plane, _, peer, _):
            with pytest.raises(PeerUnreachableError):
                await ask(plane, peer)
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        in_trio(main)()
    assert caught.group_contains(ZeroDivisionError)


# ---------------------------------------------------------------- dialling


# ---------------------------------------------------------------- listeners


class Ear:
    """Hears what comes back on an exchange, and says when something did."""

    def __init__(self, plane, exchange, *, frames=1):
        self.plane, self.exchange, self.frames = plane, exchange, frames
        self.got = []
        self.errors = []
        self.over = trio.Event()

    def heard(self, message, payload):
        self.got.append(bytes(payload))
        if len(self.got) == self.frames:
            self.exchange.finish()
            self.plane.give_back(self.exchange)
            self.over.set()

    def broke(self, error):
        self.errors.append(type(error))
        self.plane.give_back(self.exchange)
        self.over.set()


def put(plane, peer, payload=b"", **options):
    """Ask a question whose answer is listened for."""
    exchange = plane.take(peer)
    ear = Ear(plane, exchange, **options)
    assert exchange.send_nowait(CardRequest(nodes=()), [payload])
    assert exchange.listen(ear)
    return ear


async def twice(exchange, message, payload):
    await exchange.send(message, [payload])
    await exchange.send(message, [payload])
    exchange.finish()


@in_trio
async def test_answers_are_heard_by_a_reader_that_stays_with_its_connection():
    async with two_planes(twice) as (plane, _, peer, _address):
        async with plane.exchange(peer) as exchange:
            await exchange.send(CardRequest(nodes=()))
            await exchange.receive()
            await exchange.receive()
            exchange.finish()
        readers = set()
        for size in (0, 10, 10_000):
            ear = put(plane, peer, bytes(size), frames=2)
            await ear.over.wait()
            assert ear.got == [bytes(size)] * 2
            readers.add(ear.exchange.connection.reader)
        assert len(readers) == 1
        assert None not in readers
        assert plane.statistics().dials == 1


@in_trio
async def test_who_receives_sends_the_reader_away():
    async with two_planes() as (plane, _, peer, _address):
        await ask(plane, peer)
        for payload in (b"one", b"two"):
            ear = put(plane, peer, payload)
            await ear.over.wait()
            assert ear.got == [payload]
            _, answer = await ask(plane, peer, b"other")
            assert answer == b"other"
            assert ear.exchange.connection.reader is None
        assert plane.statistics().dials == 1


@in_trio
async def test_a_reader_leaves_to_the_next_exchange_what_it_finds_between_two():
    async def chatty(exchange, message, payload):
        await exchange.send(message, [payload])
        exchange.finish()
        if payload == b"chat":
            await exchange.send(message, [b"unasked"])

    async with two_planes(chatty) as (plane, _, peer, _address):
        await ask(plane, peer)
        ear = put(plane, peer, b"chat")
        await ear.over.wait()
        await eventually(lambda: ear.exchange.connection.reader is None)
        _, answer = await ask(plane, peer, b"again")
        assert answer == b"again"
        assert ear.got == [b"chat"]
        assert plane.statistics().stale == 1


@in_trio
async def test_what_comes_in_parts_when_nobody_listens_any_more_ends_the_connection():
    served = []

    async def remember(exchange, message, payload):
        served.append(exchange.connection._stream)
        await echo(exchange, message, payload)

    async with two_planes(remember) as (plane, _, peer, _address):
        await ask(plane, peer)
        exchange = plane.take(peer)
        ear = Ear(plane, exchange)
        assert exchange.listen(ear)
        stream = served[0]
        header = wire.encode(CardRequest(nodes=()))
        stream.ssl_object.write(encode_prefix(header, 0) + header)
        record = stream._outgoing.read()
        stream._socket.send(record[:20])
        await trio.testing.wait_all_tasks_blocked(0.01)
        exchange.finish()  # as a lane's ticket ends between two requests
        plane.give_back(exchange)
        assert plane.statistics().outbound_idle == 1
        stream._socket.send(record[20:])
        await eventually(lambda: plane.statistics().outbound == 0)
        assert (ear.got, ear.errors) == ([], [])


@pytest.mark.parametrize("end", ["peer", "own side", "nonsense"])
def test_a_listener_is_told_once_of_the_end(end):
    async def main():
        async def leave(exchange, message, payload):
            if payload == b"leave" and end == "nonsense":
                exchange.connection._stream.send_nowait([struct.pack(">II", 0, 0)])
            if payload == b"leave" and end == "own side":
                await trio.sleep_forever()
            if payload != b"leave":
                await echo(exchange, message, payload)

        async with two_planes(leave) as (plane, _, peer, _address):
            await ask(plane, peer)
            ear = put(plane, peer, b"leave")
            if end == "own side":
                await plane.close_peer(peer)
            await ear.over.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert ear.errors == [RemoteProtocolError if end == "nonsense" else PeerUnreachableError]
            assert ear.exchange.connection.is_closed
            assert plane.statistics().outbound == 0

    in_trio(main)()


@in_trio
async def test_a_peer_that_closes_a_connection_with_an_idle_reader_is_told():
    closed = []
    told = {"told": {"on_peer_closed": closed.append}}
    async with two_planes(client=told) as (plane, listener, peer, _address):
        await ask(plane, peer)
        await put(plane, peer).over.wait()
        await listener.close_peer(listener.open_peers()[0])
        await eventually(lambda: closed == [peer])
        assert plane.statistics().outbound == 0


@in_trio
async def test_a_plane_that_does_not_run_has_no_readers():
    grid = SandboxGrid()
    here, there = grid.make_node(), grid.make_node()
    plane, listener = plane_of(grid, here), plane_of(grid, there)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(listener.serve, echo)
        plane.set_address(there.node, [DataAddress(host=host, port=port)])
        await ask(plane, there.node)
        exchange = plane.take(there.node)
        assert not exchange.listen(Ear(plane, exchange))
        plane.give_back(exchange)
        nursery.cancel_scope.cancel()


@in_trio
async def test_without_address_a_peer_is_unreachable():
    grid = SandboxGrid()
    plane = plane_of(grid, grid.make_node())
    with pytest.raises(PeerUnreachableError, match="no data address"):
        await ask(plane, grid.make_node().node)
    plane.set_address("x", [DataAddress(host="127.0.0.1", port=1)])
    plane.set_address("x", [])
    with pytest.raises(PeerUnreachableError, match="no data address"):
        await ask(plane, "x")


@in_trio
async def test_dead_and_senseless_addresses_are_tried_one_after_the_other():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with two_planes() as (plane, _, peer, (host, port)):
            dead = DataAddress(host="127.0.0.1", port=unused.getsockname()[1])
            no_host = DataAddress(host="a" * 100 + ".", port=1)
            plane.set_address(peer, [dead, no_host, DataAddress(host=host, port=port)])
            await ask(plane, peer)
            assert plane.statistics().dials_failed == 2
            plane.set_address("stranger", [dead, no_host])
            with pytest.raises(PeerUnreachableError, match=r"refused|no connection"):
                await ask(plane, "stranger")


@in_trio
async def test_another_node_at_the_address_is_not_spoken_to():
    async with two_planes() as (plane, listener, _, (host, port)):
        wanted = SandboxGrid().make_node().node
        plane.set_address(wanted, [DataAddress(host=host, port=port)])
        with pytest.raises(PeerUnreachableError, match="out of date"):
            await ask(plane, wanted)
        assert listener.statistics().exchanges_served == 0


@pytest.mark.parametrize(
    ("greeting", "complaint"), [(b"\x07", "instead of its confirmation"), (b"", "instead of accepting")]
)
def test_without_the_confirmation_nothing_is_sent(greeting, complaint):
    async def main():
        grid = SandboxGrid()
        here, there = grid.make_node(), grid.make_node()
        plane = plane_of(grid, here)
        heard = bytearray()

        async def listen(guest):
            context = server_context(there.key, there.chain_pem, grid.ca_pem)
            stream = SecureStream(take_socket(guest), context, server_side=True)
            with closing(stream):
                await stream.handshake()
                if greeting:
                    await stream.send([greeting])
                    await drain(stream, heard)

        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, listen, listeners)
            host, port = listeners[0].socket.getsockname()
            plane.set_address(there.node, [DataAddress(host=host, port=port)])
            with pytest.raises(PeerUnreachableError, match=complaint):
                await ask(plane, there.node)
            nursery.cancel_scope.cancel()
        assert heard == b""

    in_trio(main)()


@in_trio
async def test_a_silent_listener_costs_the_handshake_timeout_only():
    grid = SandboxGrid()
    plane = plane_of(grid, grid.make_node(), handshake_timeout_s=0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        plane.set_address("x", [DataAddress(host="127.0.0.1", port=silent.getsockname()[1])])
        with pytest.raises(PeerUnreachableError, match="no answer in time"):
            await ask(plane, "x")
    assert plane.statistics().outbound == 0


@in_trio
async def test_a_renewed_certificate_is_shown_from_then_on():
    grid = SandboxGrid()
    node = grid.make_node()
    credentials = Credentials(node.key, node.chain_pem, grid.trust(), epoch=1)
    plane = TlsDataPlane(credentials, DataPlaneConfig(host="127.0.0.1"))
    seen = []

    async def look(exchange, message, payload):
        seen.append(exchange.certificate.not_before_s)
        await echo(exchange, message, payload)

    there = grid.make_node()
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(plane_of(grid, there).serve, look)
        plane.set_address(there.node, [DataAddress(host=host, port=port)])
        await ask(plane, there.node)
        plane.renew(grid.issue(node.key, ("serve",), at_s=NOW_S + DAY_S))
        assert plane.open_peers() == ()
        await ask(plane, there.node)
        nursery.cancel_scope.cancel()
    await plane.close_peer(there.node)
    assert seen == [NOW_S, NOW_S + DAY_S]


# ---------------------------------------------------------------- who may come in


def revoking(grid, *nodes):
    revocations = Revocations()
    document = revocations.sign_next(GRID_ID, grid.ca_key, now_s=NOW_S, nodes=nodes)
    revocations.accept(document, grid.trust())
    return revocations


@pytest.mark.parametrize("kind", ["none", "foreign", "expired", "revoked"])
def test_without_a_good_certificate_not_a_byte_comes_back(kind):
    grid = SandboxGrid()
    there = grid.make_node()
    bad = (SandboxGrid() if kind == "foreign" else grid).make_node()
    context = client_context(bad.key, bad.chain_pem, grid.ca_pem) if kind != "none" else joining_context(grid.ca_pem)
    now_s = NOW_S + 31 * DAY_S if kind == "expired" else NOW_S
    listener = plane_of(grid, there, now_s=now_s, revocations=revoking(grid, bad.node) if kind == "revoked" else None)

    async def main():
        async with trio.open_nursery() as nursery:
            host, port = await nursery.start(listener.serve, echo)
            stream = SecureStream(take_socket(await trio.open_tcp_stream(host, port)), context, server_side=False)
            await stream.handshake()  # a TLS 1.3 client finishes before the server has looked at its certificate
            await stream.send([frame(Hello(versions=(1,), node=bad.node, epoch=1)), frame(Ping(nonce=1))])
            got = bytearray()
            with suppress(PeerUnreachableError, RemoteProtocolError):
                await drain(stream, got)
            stream.close()
            assert got == b""
            await eventually(lambda: listener.statistics().refused_handshakes == 1)
            assert listener.statistics().admitted == listener.statistics().exchanges_served == 0
            nursery.cancel_scope.cancel()

    in_trio(main)()


@pytest.mark.parametrize("kind", ["foreign", "expired", "revoked"])
def test_a_listener_without_a_good_certificate_is_not_sent_a_byte(kind):
    grid = SandboxGrid()
    here = grid.make_node()
    there = (SandboxGrid() if kind == "foreign" else grid).make_node()
    now_s = NOW_S + 31 * DAY_S if kind == "expired" else NOW_S
    chain_pem = grid.issue(here.key, ("serve",), at_s=now_s)
    trust = grid.trust(now_s=now_s, revocations=revoking(grid, there.node) if kind == "revoked" else None)
    plane = TlsDataPlane(Credentials(here.key, chain_pem, trust, epoch=1), DataPlaneConfig(host="127.0.0.1"))
    exchanges = []

    async def count(exchange, message, payload):
        exchanges.append(message)

    async def main():
        listener = plane_of(grid, there)
        async with trio.open_nursery() as nursery:
            host, port = await nursery.start(listener.serve, count)
            plane.set_address(there.node, [DataAddress(host=host, port=port)])
            with pytest.raises(PeerUnreachableError):
                await ask(plane, there.node)
            nursery.cancel_scope.cancel()

    in_trio(main)()
    assert exchanges == []


@in_trio
async def test_revocation_closes_what_is_open():
    grid = SandboxGrid()
    revocations = Revocations()
    here, there = grid.make_node(), grid.make_node()
    plane, listener = plane_of(grid, here), plane_of(grid, there, revocations=revocations)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(listener.serve, echo)
        plane.set_address(there.node, [DataAddress(host=host, port=port)])
        await ask(plane, there.node)
        assert await listener.close_refused() == ()
        document = revocations.sign_next(GRID_ID, grid.ca_key, now_s=NOW_S, nodes=[here.node])
        revocations.accept(document, grid.trust())
        assert await listener.close_refused() == (here.node,)
        assert listener.open_peers() == ()
        with pytest.raises(PeerUnreachableError):
            await ask(plane, there.node)
        nursery.cancel_scope.cancel()


@in_trio
async def test_a_certificate_that_expires_on_an_open_connection_ends_it_at_the_next_exchange():
    grid = SandboxGrid()
    here, there = grid.make_node(), grid.make_node()
    clock = [NOW_S]
    trust = GridTrust(grid.ca_pem, GRID_ID, revocations=NothingRevoked(), grid_time=GridTime(lambda: clock[0]))
    listener = TlsDataPlane(Credentials(there.key, there.chain_pem, trust, epoch=1), DataPlaneConfig(host="127.0.0.1"))
    plane = plane_of(grid, here)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(listener.serve, echo)
        plane.set_address(there.node, [DataAddress(host=host, port=port)])
        await ask(plane, there.node)
        clock[0] += 31 * DAY_S
        with pytest.raises(PeerUnreachableError):
            await ask(plane, there.node)
        assert listener.statistics().exchanges_served == 1
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000, b"\x16\x03\x01\xff\xff" + b"a" * 3000, bytes(range(256)) * 40],
    ids=["http", "zeros", "record", "bytes"],
)
def test_garbage_costs_one_connection(garbage):
    async def main():
        async with two_planes() as (plane, listener, peer, address):
            for _ in range(20):
                async with await trio.open_tcp_stream(*address) as stream:
                    with suppress(trio.BrokenResourceError):
                        await stream.send_all(garbage)
                        alert = b"".join([piece async for piece in stream])
                        assert len(alert) <= 7, "more than a TLS alert"
            await eventually(lambda: listener.statistics().refused_handshakes == 20)
            await ask(plane, peer)

    in_trio(main)()


@in_trio
async def test_silent_strangers_are_bounded_and_time_out():
    changes = {"handshake_timeout_s": 0.3, "pending_per_host": 4}
    async with two_planes(server=changes) as (plane, listener, peer, address):
        streams = [await trio.open_tcp_stream(*address) for _ in range(30)]
        await eventually(lambda: listener.statistics().refused_crowded == 26)
        assert listener.statistics().pending == 4
        await eventually(lambda: listener.statistics().pending == 0)
        await ask(plane, peer)
        for stream in streams:
            await stream.aclose()


@in_trio
async def test_inbound_connections_of_one_peer_are_bounded():
    async with two_planes(server={"inbound_per_peer": 2}) as (plane, listener, peer, _):
        async with plane.exchange(peer), plane.exchange(peer):
            with pytest.raises(PeerUnreachableError):
                await ask(plane, peer)
        assert listener.statistics().refused_handshakes == 1


@in_trio
async def test_inbound_connections_in_all_are_bounded():
    async with two_planes(server={"inbound_max": 1}) as (plane, listener, peer, _):
        async with plane.exchange(peer):
            with pytest.raises(PeerUnreachableError):
                await ask(plane, peer)
        assert listener.statistics().refused_crowded == 1


@asynccontextmanager
async def certified_stranger(*, greet=True, **changes):
    """A peer with a good certificate that speaks TLS by hand."""
    grid = SandboxGrid()
    bad, there = grid.make_node(), grid.make_node()
    listener = plane_of(grid, there, **changes)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(listener.serve, echo)
        context = client_context(bad.key, bad.chain_pem, grid.ca_pem)
        stream = SecureStream(take_socket(await trio.open_tcp_stream(host, port)), context, server_side=False)
        await stream.handshake()
        if greet:
            await stream.send([frame(Hello(versions=(1,), node=bad.node, epoch=1))])
        yield stream, listener, bad.node
        stream.close()
        nursery.cancel_scope.cancel()


def frame(message, payload=b""):
    header = msgspec.msgpack.encode(message)
    return encode_prefix(header, len(payload)) + header + payload


async def drain(stream, data=None):
    """Read to the end, into a buffer that keeps what came before an error."""
    data = bytearray() if data is None else data
    buffer = bytearray(4096)
    while count := await stream.receive_into(memoryview(buffer)):
        data += buffer[:count]
    return bytes(data)


@in_trio
async def test_the_confirmation_and_hello_come_first():
    async with certified_stranger() as (stream, _, _):
        buffer = bytearray(4096)
        data = bytearray()
        receiver, frames = FrameReceiver(), []
        while not frames:
            count = await stream.receive_into(memoryview(buffer))
            data += buffer[:count]
            frames = receiver.feed(data[1:]) if len(data) > 1 else []
        assert data[:1] == CONFIRMATION
        assert isinstance(wire.decode_data(frames[0].header), Hello)


@pytest.mark.parametrize(
    "hello",
    [
        Hello(versions=(99,), node="{node}", epoch=1),
        Hello(versions=(1,), node="somebody else", epoch=1),
        Ping(nonce=1),
    ],
    ids=["version", "name", "other message"],
)
def test_a_wrong_greeting_ends_the_connection(hello):
    async def main():
        async with certified_stranger(greet=False) as (stream, listener, node):
            named = msgspec.structs.replace(hello, node=node) if getattr(hello, "node", "") == "{node}" else hello
            await stream.send([frame(named)])
            await drain(stream)
            assert listener.statistics().refused_handshakes == 1
            assert listener.open_peers() == ()

    in_trio(main)()


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack(">II", 0, 0),
        struct.pack(">II", 2**31, 0),
        struct.pack(">II", 5, 2**32 - 1) + b"hello",
        struct.pack(">II", 5, 0) + b"hello",
        struct.pack(">II", 60_000, 0) + b"\x91" * 60_000,
        struct.pack(">II", 60_000, 0) + (b"\x83\xa1t\xa4ping\xa5nonce\x01\xa5later" + b"\x91" * 60_000)[:60_000],
        frame(TrustRequest(path="../../etc/passwd")),
    ],
    ids=["empty", "header", "payload", "no map", "nested", "nested in a field", "path"],
)
def test_nonsense_of_a_certified_peer_costs_its_connection(nonsense):
    async def main():
        async with certified_stranger() as (stream, listener, _):
            await stream.send([nonsense])
            await drain(stream)
            assert listener.statistics().faults == 1
            assert listener.statistics().exchanges_served == 0
            assert listener.open_peers() == ()

    in_trio(main)()


@pytest.mark.parametrize("cut", [1, 7, 8, 12, 200])
def test_a_frame_that_stalls_costs_its_connection(cut):
    async def main():
        async with certified_stranger(frames=QUICK, sweep_s=0.05) as (stream, listener, _):
            await stream.send([frame(Ping(nonce=1), bytes(1000))[:cut]])
            await drain(stream)
            await eventually(lambda: listener.statistics().faults == 1)
            assert listener.statistics().receiving_bytes == 0

    in_trio(main)()


@in_trio
async def test_a_frame_is_late_when_two_looks_find_it_so():
    async with certified_stranger() as (stream, listener, node):
        await eventually(lambda: listener.open_peers() == (node,))
        (connection,) = listener._inbound[node]
        data = frame(CardRequest(nodes=()), bytes(30_000))
        for start, end in ((0, 100), (100, 20_000), (20_000, len(data))):  # in the header, in the payload
            await stream.send([data[start:end]])
            await trio.testing.wait_all_tasks_blocked(0.01)
            connection.look_for_stall(trio.current_time() + 100.0)
            assert not connection.is_closed, "the rest may have come while this process stood still"
            connection.look_for_stall(trio.current_time())
        await eventually(lambda: listener.statistics().exchanges_served == 1)
        connection.look_for_stall(trio.current_time() + 100.0)
        connection.look_for_stall(trio.current_time() + 100.0)
        assert not connection.is_closed, "nothing is late between frames"
        await stream.send([data[:20_000]])
        await trio.testing.wait_all_tasks_blocked(0.01)
        connection.look_for_stall(trio.current_time() + 100.0)
        connection.look_for_stall(trio.current_time() + 100.0)
        assert connection.is_closed
        await eventually(lambda: listener.statistics().faults == 1)
        assert listener.statistics().receiving_bytes == 0


@in_trio
async def test_an_answer_that_stalls_costs_its_connection():
    async def faint(exchange, message, payload):
        exchange.connection._stream.send_nowait([frame(message, bytes(1000))[:500]])
        await trio.sleep_forever()

    client = {"frames": QUICK, "sweep_s": 0.05}
    async with two_planes(faint, client=client) as (plane, _, peer, _address):
        with pytest.raises(RemoteProtocolError, match="stopped in the middle"):
            await ask(plane, peer)
        assert plane.statistics().outbound == 0


@in_trio
async def test_a_frame_that_we_let_wait_is_not_late():
    limits = FrameLimits(stall_s=0.05, slowest_rate=1e9, receive_budget_bytes=1000)
    async with two_planes(server={"frames": limits, "sweep_s": 0.02}) as (plane, listener, peer, _address):
        assert listener._budget.take_nowait(1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, plane, peer, bytes(100_000))
            await trio.sleep(0.3)  # many looks
            assert listener.statistics().faults == 0
            listener._budget.give_back(1000)
        assert listener.statistics().exchanges_served == 1


@in_trio
async def test_a_frame_that_trickles_costs_its_connection():
    async with certified_stranger(frames=QUICK, sweep_s=0.05) as (stream, listener, _):
        data = frame(Ping(nonce=1), bytes(1000))

        async def trickle():
            for position in range(len(data)):
                await stream.send([data[position : position + 1]])
                await trio.sleep(0.01)  # the attack itself

        with pytest.raises(PeerUnreachableError):
            await trickle()
        await eventually(lambda: listener.statistics().faults == 1)


@pytest.mark.parametrize("size", [0, 300, 5000, 40_000])
@pytest.mark.parametrize("cut", [1, 8, 11, 60, 5100])
def test_frames_do_not_depend_on_how_records_were_cut(size, cut):
    async def main():
        async with certified_stranger() as (stream, _, _), trio.open_nursery() as nursery:
            frames = [frame(CardRequest(nodes=()), bytes([number]) * size) for number in range(1, 20)]
            data = b"".join(frames)

            async def send():
                await stream.send([data[:cut]])
                for start in range(cut, len(data), 16_000):
                    await stream.send([data[start : start + 16_000]])

            nursery.start_soon(send)
            receiver, got, buffer = FrameReceiver(), [], bytearray(1 << 16)
            skipped = len(CONFIRMATION)
            while len(got) < len(frames) + 1:
                count = await stream.receive_into(memoryview(buffer))
                assert count, "the connection must stay"
                got += receiver.feed(buffer[skipped:count])
                skipped = 0
            assert [bytes(each.payload) for each in got[1:]] == [bytes([number]) * size for number in range(1, 20)]

    in_trio(main)()


@in_trio
async def test_what_nobody_asked_for_behind_an_answer_ends_the_connection():
    async def chatty(exchange, message, payload):
        connection = exchange.connection
        connection._stream.send_nowait([frame(message, b"answer") + frame(message, b"unasked")])
        exchange.finish()

    async with two_planes(chatty) as (plane, _, peer, _address):
        _, answer = await ask(plane, peer)
        assert answer == b"answer"
        _, answer = await ask(plane, peer)
        assert answer == b"answer", "and not what came before the question"
        assert plane.statistics().stale == 1


@in_trio
async def test_after_a_goodbye_nothing_is_awaited():
    async with certified_stranger() as (stream, listener, _):
        await stream.send([frame(CardRequest(nodes=()), b"x")])
        with pytest.raises(ssl.SSLWantReadError):
            stream.ssl_object.unwrap()
        stream._flush_nowait()  # the socket itself stays open
        await eventually(lambda: listener.open_peers() == ())


@in_trio
async def test_a_large_frame_leaves_in_the_call_that_sends_it():
    async with two_planes() as (plane, _, peer, _address):
        await ask(plane, peer)
        exchange = plane.take(peer)
        payload = bytes(range(256)) * 2400
        left = exchange.send_nowait(CardRequest(nodes=()), [payload[:100], payload[100:]])
        if not left:  # a kernel with small buffers
            await exchange.flush()
        _, answer = await exchange.receive()
        assert answer == payload
        exchange.finish()
        plane.give_back(exchange)


@in_trio
async def test_what_the_socket_does_not_take_waits_for_the_flush():
    async with two_planes() as (plane, _, peer, _address):
        await ask(plane, peer)
        exchange = plane.take(peer)
        payload = bytes(range(256)) * 100_000
        assert not exchange.send_nowait(CardRequest(nodes=()), [payload])
        with pytest.raises(trio.WouldBlock):
            exchange.send_nowait(CardRequest(nodes=()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.flush)
            _, answer = await exchange.receive()
        assert answer == payload
        exchange.finish()
        plane.give_back(exchange)
        await ask(plane, peer)
        assert plane.statistics().dials == 1


@in_trio
async def test_a_payload_leaves_in_pieces_without_a_small_rest():
    async with two_planes() as (plane, _, peer, _address):
        await ask(plane, peer, bytes(4 << 20))  # the kernel gives more room to who needs it
        exchange = plane.take(peer)
        stream = exchange.connection._stream
        pieces = []

        class Tap:
            """The socket, with a note of what it is given."""

            def send(self, data):
                pieces.append(len(data))
                return stream.plain.send(data)

            def __getattr__(self, name):
                return getattr(stream.plain, name)

        stream.plain, stream._socket = stream._socket, Tap()
        exchange.send_nowait(CardRequest(nodes=()), [bytes(3 * PIECE_BYTES + 3000)])
        await exchange.flush()
        assert len(pieces) == 3
        assert min(pieces) >= PIECE_BYTES
        await exchange.receive()
        exchange.finish()
        plane.give_back(exchange)


def test_a_long_send_lets_other_tasks_run(monkeypatch):
    monkeypatch.setattr("transport.securestream.TURN_BYTES", 50_000)

    async def main():
        async with two_planes() as (plane, _, peer, _address):
            await ask(plane, peer, bytes(4 << 20))  # the kernel gives more room to who needs it
            exchange = plane.take(peer)
            assert not exchange.send_nowait(CardRequest(nodes=()), [bytes(200_000)]), "the rest takes its turn"
            await exchange.flush()
            await exchange.receive()
            exchange.finish()
            plane.give_back(exchange)

    in_trio(main)()


def test_a_long_receive_lets_other_tasks_run(monkeypatch):
    monkeypatch.setattr("transport.connection.TURN_BYTES", 100_000)

    async def main():
        room = Room(8 << 20)
        filled = []

        async def look():
            while True:
                filled.append(bisect.bisect_left(room.view, 1, key=lambda byte: 1 - byte))
                await trio.lowlevel.checkpoint()

        async with two_planes() as (plane, listener, peer, _address), trio.open_nursery() as nursery:
            listener.make_room = lambda _message, _size: room
            nursery.start_soon(look)
            await ask(plane, peer, b"\1" * len(room.view))
            nursery.cancel_scope.cancel()
        most = max(after - before for before, after in itertools.pairwise(filled))
        assert most <= 2 * (100_000 + READ_BYTES), "trio may run a task last in one round and first in the next"

    in_trio(main)()


@in_trio
async def test_a_truncated_frame_is_no_message():
    async with certified_stranger() as (stream, listener, _):
        await stream.send([frame(Document(found=True), bytes(1000))[:-1]])
        stream.close()
        await eventually(lambda: listener.open_peers() == ())
        assert listener.statistics().exchanges_served == 0
        assert listener.statistics().receiving_bytes == 0


@in_trio
async def test_a_damaged_record_ends_the_connection():
    grid = SandboxGrid()
    bad, there = grid.make_node(), grid.make_node()
    listener = plane_of(grid, there)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(listener.serve, echo)
        plain = take_socket(await trio.open_tcp_stream(host, port))
        stream = SecureStream(plain, client_context(bad.key, bad.chain_pem, grid.ca_pem), server_side=False)
        await stream.handshake()
        await stream.send([frame(Hello(versions=(1,), node=bad.node, epoch=1))])
        plain.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        with suppress(RemoteProtocolError, PeerUnreachableError):
            await drain(stream)
        await eventually(lambda: listener.open_peers() == ())
        stream.close()
        nursery.cancel_scope.cancel()


@in_trio
async def test_cancelling_the_service_closes_everything():
    grid = SandboxGrid()
    here, there = grid.make_node(), grid.make_node()
    plane, listener = plane_of(grid, here), plane_of(grid, there)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(listener.serve, echo)
        await nursery.start(plane.serve, echo)
        plane.set_address(there.node, [DataAddress(host=host, port=port)])
        await ask(plane, there.node)
        nursery.cancel_scope.cancel()
    assert plane.open_peers() == listener.open_peers() == ()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, port)).close()


def test_a_port_that_is_taken_is_named():
    async def main():
        grid = SandboxGrid()
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ListenError, match="another port"):
            await plane_of(grid, grid.make_node(), port=taken.getsockname()[1]).serve(echo)

    in_trio(main)()


def test_only_tls_1_3_is_spoken():
    async def main():
        grid = SandboxGrid()
        node = grid.make_node()
        async with two_planes(grid=grid) as (_, listener, _, address):
            context = client_context(node.key, node.chain_pem, grid.ca_pem)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
            stream = SecureStream(take_socket(await trio.open_tcp_stream(*address)), context, server_side=False)
            with pytest.raises(RemoteProtocolError):
                await stream.handshake()
            stream.close()
            await eventually(lambda: listener.statistics().refused_handshakes == 1)

    in_trio(main)()
