"""The network in memory, on a virtual clock."""

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from transport.base import HEALTH_TOPIC, STATE_TOPIC, DataAddress, Dial, Exchange, GossipMessage
from transport.intake import INBOX_MESSAGES, ORIGIN_BURST
from transport.memory import Link, MemoryNetwork, MemoryNode
from transport.wire import (
    GOSSIP_MAX_BYTES,
    DataMessage,
    Document,
    FrameTooLargeError,
    JobFailed,
    LocalProtocolError,
    PeerUnreachableError,
    Ping,
    Refused,
    StateRecord,
    TrustRequest,
)

Scene = Callable[[MemoryNetwork, dict[str, MemoryNode]], Awaitable[None]]


async def answer(exchange: Exchange, message: DataMessage, payload: memoryview) -> None:
    """Give back what came."""
    await exchange.send(Document(found=True), [payload])
    exchange.finish()


def play(scene: Scene, *names: str, link: Link | None = None, seed: int = 1) -> None:
    """Run a scene with these nodes serving and knowing one another's data ports, on a virtual clock."""

    async def main() -> None:
        network = MemoryNetwork(random.Random(seed), link)
        nodes = {name: network.join(name) for name in names}
        async with trio.open_nursery() as nursery:
            await nursery.start(network.serve)
            for node in nodes.values():
                await nursery.start(node.control.serve)
                host, port = await nursery.start(node.data.serve, answer)
                for other in nodes.values():
                    other.data.set_address(node.control.node, [DataAddress(host=host, port=port)])
            await scene(network, nodes)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def link_up(a: MemoryNode, b: MemoryNode) -> None:
    assert b.control.port is not None
    await a.control.connect(Dial(node=b.control.node, host="memory", port=b.control.port))


def names_of(node: MemoryNode) -> list[str]:
    return [n.node for n in node.control.neighbours()]


def test_gossip_floods_once_to_everyone_and_says_who_made_it_and_who_passed_it_on() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b, c = nodes.values()
        await link_up(a, b)
        await link_up(b, c)
        await link_up(c, a)
        network.partition(["a"], ["c"])  # so that c hears it of b
        began_s = trio.current_time()
        await a.control.publish(STATE_TOPIC, b"news")
        message = await c.control.messages().receive()
        assert message == GossipMessage(topic=STATE_TOPIC, origin="a", forwarder="b", data=b"news")
        assert trio.current_time() - began_s == pytest.approx(0.020)
        network.heal()
        await trio.sleep(1.0)
        assert c.control.messages().statistics().current_buffer_used == 0
        assert c.control.duplicates == 1
        assert a.control.messages().statistics().current_buffer_used == 0, "own messages do not come back"

    play(scene, "a", "b", "c", link=Link(delay_s=0.010))


def test_a_message_is_delivered_after_delay_and_its_time_on_the_line_and_in_order() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, _ = nodes.values()
        async with a.data.exchange("b") as exchange:
            began_s = trio.current_time()
            await exchange.send(TrustRequest(path="targets/x"), [bytes(100_000)])
            _, payload = await exchange.receive()
            exchange.finish()
        assert payload.nbytes == 100_000
        assert trio.current_time() - began_s == pytest.approx(2 * (0.010 + 0.1), rel=0.01)

    play(scene, "a", "b", link=Link(delay_s=0.010, bytes_per_s=1e6))


def test_a_finished_connection_is_used_again_and_an_unfinished_one_is_closed() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b = nodes.values()
        times = []
        for finish in (True, True, False, True):
            began_s = trio.current_time()
            async with a.data.exchange("b") as exchange:
                await exchange.send(Ping(nonce=1))
                await exchange.receive()
                if finish:
                    exchange.finish()
            times.append(trio.current_time() - began_s)
        assert times[0] == pytest.approx(0.080)  # three round trips, then the question
        assert times[1] == times[2] == pytest.approx(0.020)
        assert times[3] == pytest.approx(0.080)
        assert b.data.open_peers() == ("a",)

    play(scene, "a", "b", link=Link(delay_s=0.010))


def test_a_killed_node_breaks_its_connections_and_refuses_until_it_joins_again() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b = nodes.values()
        await link_up(a, b)
        async with a.data.exchange("b") as exchange:
            network.kill("b")
            with pytest.raises(PeerUnreachableError, match="closed"):
                await exchange.receive()
        assert names_of(a) == []
        with pytest.raises(PeerUnreachableError, match="refused"):
            async with a.data.exchange("b"):
                pass
        with pytest.raises(PeerUnreachableError, match="refused"):
            await a.control.connect(Dial(node="b", host="memory", port=40_002))
        again = network.join("b")
        async with trio.open_nursery() as nursery:
            await nursery.start(again.control.serve)
            await link_up(a, again)
            await again.control.publish(STATE_TOPIC, b"back")
            assert (await a.control.messages().receive()).data == b"back"
            nursery.cancel_scope.cancel()

    play(scene, "a", "b")


def test_a_paused_node_is_silent_and_breaks_nothing_and_what_was_sent_arrives_later() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b = nodes.values()
        await link_up(a, b)
        async with a.data.exchange("b") as exchange:
            network.pause("b")
            await exchange.send(Ping(nonce=1))
            with trio.move_on_after(60.0) as patience:
                await exchange.receive()
            assert patience.cancelled_caught
            assert names_of(a) == ["b"]
            network.resume("b")
            assert isinstance((await exchange.receive())[0], Document)
        network.pause("b")
        with pytest.raises(PeerUnreachableError, match="does not answer"):
            async with a.data.exchange("b"):
                pass

    play(scene, "a", "b")


def test_nothing_passes_a_partition_and_everything_after_it() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b = nodes.values()
        await link_up(a, b)
        network.partition(["a"], ["b"])
        await a.control.publish(STATE_TOPIC, b"held")
        await trio.sleep(30.0)
        assert b.control.messages().statistics().current_buffer_used == 0
        network.heal()
        assert (await b.control.messages().receive()).data == b"held"

    play(scene, "a", "b")


def test_gossip_is_lost_at_the_links_rate_and_streams_are_not() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b = nodes.values()
        await link_up(a, b)
        heard = 0
        for _ in range(400):
            await a.control.publish(STATE_TOPIC, b"x")
            await trio.sleep(1.0)
            heard += b.control.messages().statistics().current_buffer_used
            if b.control.messages().statistics().current_buffer_used:
                b.control.messages().receive_nowait()
        assert 240 <= heard <= 320
        for _ in range(20):
            async with a.data.exchange("b") as exchange:
                await exchange.send(Ping(nonce=1))
                await exchange.receive()

    play(scene, "a", "b", link=Link(gossip_loss=0.3))


def test_a_refused_message_is_neither_delivered_nor_passed_on() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b, c = nodes.values()
        await link_up(a, b)
        await link_up(b, c)
        b.control.set_validator(STATE_TOPIC, lambda message: message.data != b"bad")
        for data in (b"bad", b"good"):
            await a.control.publish(STATE_TOPIC, data)
        assert (await c.control.messages().receive()).data == b"good"
        assert b.control.statistics().refused == 1

    play(scene, "a", "b", "c")


def test_an_origin_above_its_rate_and_an_oversize_message_are_dropped_before_the_validator() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b = nodes.values()
        await link_up(a, b)
        seen: list[bytes] = []

        def note(message: GossipMessage) -> bool:
            seen.append(message.data)
            return True

        b.control.set_validator(HEALTH_TOPIC, note)
        b.control.set_validator(STATE_TOPIC, note)
        await a.control.publish(STATE_TOPIC, bytes(257))
        for i in range(100):
            await a.control.publish(HEALTH_TOPIC, bytes([i]))
        await trio.sleep(0.1)
        assert len(seen) == ORIGIN_BURST
        assert b.control.statistics().oversize == 1
        with pytest.raises(LocalProtocolError, match="4096"):
            await a.control.publish(HEALTH_TOPIC, bytes(GOSSIP_MAX_BYTES + 1))

    play(scene, "a", "b")


def test_when_the_daemon_falls_behind_the_oldest_message_goes() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b = nodes.values()
        await link_up(a, b)
        for i in range(INBOX_MESSAGES + 3):
            await a.control.publish(STATE_TOPIC, str(i).encode())
            await trio.sleep(1.0)
        assert (await b.control.messages().receive()).data == b"3"
        assert b.control.statistics().dropped == 3

    play(scene, "a", "b")


def test_a_validator_that_raises_is_told_to_the_supervisor_and_refuses() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        bugs: list[Exception] = []
        c = network.join("c", on_bug=bugs.append)
        c.control.set_validator(STATE_TOPIC, lambda message: 1 // 0 == 0)
        async with trio.open_nursery() as nursery:
            await nursery.start(c.control.serve)
            await link_up(nodes["a"], c)
            await nodes["a"].control.publish(STATE_TOPIC, b"x")
            await trio.sleep(1.0)
            assert [type(bug) for bug in bugs] == [ZeroDivisionError]
            assert c.control.statistics().delivered == 0
            nursery.cancel_scope.cancel()

    play(scene, "a")


def test_a_disconnect_is_seen_on_both_sides_and_a_wrong_name_is_refused() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b = nodes.values()
        await link_up(a, b)
        (seen,) = b.control.neighbours()
        assert (seen.node, seen.outbound) == ("a", False)
        await a.control.disconnect("b")
        await trio.sleep(0.1)
        assert names_of(a) == names_of(b) == []
        assert a.control.port is not None
        with pytest.raises(PeerUnreachableError):
            await a.control.connect(Dial(node="b", host="memory", port=a.control.port))

    play(scene, "a", "b")


def test_sizes_are_those_of_the_wire() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, _ = nodes.values()
        state = StateRecord(1, "a", 1, 1, 0.0, 1, 0.0, 1.0, 0, 0, False, 0, bytes(8))
        async with a.data.exchange("b") as exchange:
            with pytest.raises(LocalProtocolError):
                await exchange.send(JobFailed(key=bytes(24), attempt=0, reason="x", message="y" * 70_000, state=state))
            with pytest.raises(FrameTooLargeError):
                await exchange.send(Ping(nonce=1), [bytes(64 << 20), b"1"])

    play(scene, "a", "b")


def test_a_sender_waits_for_a_reader_that_does_not_read_and_its_cancellation_closes() -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(1))
        a, b = network.join("a"), network.join("b")

        async def read_nothing(exchange: Exchange, message: DataMessage, payload: memoryview) -> None:
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            await nursery.start(network.serve)
            host, port = await nursery.start(b.data.serve, read_nothing)
            a.data.set_address("b", [DataAddress(host=host, port=port)])
            async with a.data.exchange("b") as exchange:
                with trio.move_on_after(10.0) as patience:
                    for _ in range(10):
                        await exchange.send(Ping(nonce=1), [bytes(1 << 20)])
                assert patience.cancelled_caught
                with pytest.raises(PeerUnreachableError):
                    await exchange.send(Ping(nonce=2))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_handlers_transport_error_closes_the_connection_and_its_bug_ends_the_node() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        c = network.join("c")

        async def fail(exchange: Exchange, message: DataMessage, payload: memoryview) -> None:
            raise PeerUnreachableError("x") if isinstance(message, Ping) else ZeroDivisionError

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                host, port = await nursery.start(c.data.serve, fail)
                nodes["a"].data.set_address("c", [DataAddress(host=host, port=port)])
                for message in (Ping(nonce=1), Refused(reason="x")):
                    async with nodes["a"].data.exchange("c") as exchange:
                        await exchange.send(message)
                        with pytest.raises(PeerUnreachableError):
                            await exchange.receive()
                await trio.sleep_forever()

        with pytest.raises(ExceptionGroup) as caught:
            await run()
        assert caught.group_contains(ZeroDivisionError)

    play(scene, "a")


def test_close_peer_closes_connections_in_use_too() -> None:
    async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
        a, b = nodes.values()
        async with a.data.exchange("b") as exchange:
            await b.data.close_peer("a")
            with pytest.raises(PeerUnreachableError):
                await exchange.receive()
        await wait_all_tasks_blocked()
        assert a.data.open_peers() == b.data.open_peers() == ()

    play(scene, "a", "b")


def test_a_run_repeats_with_its_seed() -> None:
    def record(seed: int) -> list[tuple[float, str, bytes]]:
        log: list[tuple[float, str, bytes]] = []

        async def scene(network: MemoryNetwork, nodes: dict[str, MemoryNode]) -> None:
            a, b, c = nodes.values()
            await link_up(a, b)
            await link_up(b, c)
            for i in range(30):
                await a.control.publish(STATE_TOPIC, bytes([i]))
                await trio.sleep(0.5)
                for node in (b, c):
                    while node.control.messages().statistics().current_buffer_used:
                        message = node.control.messages().receive_nowait()
                        log.append((trio.current_time(), node.control.node, message.data))

        play(scene, "a", "b", "c", link=Link(delay_s=0.2, jitter_s=0.4, gossip_loss=0.2), seed=seed)
        return log

    assert record(3) == record(3) != record(4)
