"""Turns: what happens at one instant of a virtual clock happens in a stated order, whatever trio does."""

import functools
import random

import trio
import trio.testing

from gridnode.driver import Driver
from gridnode.turns import ACTION, DELIVERY, TIMER, Turns
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import DrainRequested, JobArrived
from scheduler.types import Job
from transport.base import DataAddress
from transport.memory import Link, MemoryNetwork
from transport.wire import PeerUnreachableError, Ping, Pong, StateRecord

TRIES = 8
"""trio reverses a batch of tasks with probability one half: an order that held so often was no chance."""


def virtual(main):
    """Run on a virtual clock several times and return what each run returned."""
    return [trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)) for _ in range(TRIES)]


def test_turns_come_by_rank_and_then_in_the_order_of_asking():
    async def main():
        turns, seen = Turns(), []

        async def follow(name):
            await trio.lowlevel.checkpoint()
            seen.append(f"after {name}")

        async with trio.open_nursery() as nursery:
            await nursery.start(turns.serve)

            def begin(name):
                seen.append(name)
                nursery.start_soon(follow, name)

            for rank, name in ((DELIVERY, "delivery"), (TIMER, "timer"), (ACTION, "first"), (ACTION, "second")):
                turns.later(functools.partial(begin, name), rank)
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
        return seen

    for seen in virtual(main):
        names = ["first", "second", "timer", "delivery"]
        assert seen == [each for name in names for each in (name, f"after {name}")]


class Talkers:
    """Hands whose every action starts a task, as the daemon's do."""

    def __init__(self, nursery):
        self._nursery = nursery
        self.started = []
        self.spoken = []

    def carry_out(self, action, attachment):
        number = len(self.started)
        self.started.append(action)
        self._nursery.start_soon(self._speak, number)

    async def _speak(self, number):
        await trio.lowlevel.checkpoint()
        self.spoken.append(number)


def test_the_actions_of_one_event_are_carried_out_one_after_the_other():
    async def main():
        turns = Turns()
        core = Core(CoreConfig(), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        driver = Driver(core, turns=turns)
        async with trio.open_nursery() as nursery:
            await nursery.start(turns.serve)
            hands = Talkers(nursery)
            nursery.start_soon(driver.run, hands)
            await trio.testing.wait_all_tasks_blocked()
            driver.post(DrainRequested())
            for handle in (1, 2, 3):
                job = Job(
                    key=bytes([handle] * 24), entry="n", input_bytes=0, arrival_s=0.0, deadline_s=1.0, models=("m",)
                )
                driver.post(JobArrived(handle=handle, job=job, origin=None))
            await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        return [type(action).__name__ for action in hands.started], hands.spoken

    for started, spoken in virtual(main):
        assert started == ["Advertise", "Drained", "Reject", "Reject", "Reject"]
        assert spoken == sorted(spoken), "an action overtook the one before it"


STATE = StateRecord(1, "b", 1, 1, 0.0, 1, 0.0, 1.0, 0, 0, False, 0, bytes(8))


def test_what_a_killed_node_said_before_reaches_one_that_was_paused():
    async def main():
        network = MemoryNetwork(random.Random(7), Link(delay_s=0.01))
        a, b = network.join("a"), network.join("b")
        ends = []

        async def answer(exchange, message, payload):
            await exchange.send(Pong(nonce=message.nonce, reached=True, state=STATE))
            exchange.finish()

        async def ask():
            async with a.data.exchange("b") as exchange:
                await exchange.send(Ping(nonce=1))
                await exchange.receive()
                network.pause("a")
                await exchange.send(Ping(nonce=2))
                try:
                    await exchange.receive()
                except PeerUnreachableError:
                    ends.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            await nursery.start(network.serve)
            host, port = await nursery.start(b.data.serve, answer)
            a.data.set_address("b", (DataAddress(host=host, port=port),))
            nursery.start_soon(ask)
            await trio.sleep(1.0)
            network.kill("b")
            await trio.sleep(1.0)
            network.resume("a")
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
        return ends

    for ends in virtual(main):
        assert len(ends) == 1, "the connection never broke"
        assert 2.0 <= ends[0] < 2.1
