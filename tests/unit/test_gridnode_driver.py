"""The driver feeds one event at a time, in order, whatever actions post, and nothing after its end."""

import itertools
import random

import trio
import trio.testing

from gridnode.driver import Driver
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import DrainRequested, JobArrived, LoadSampled, PeerLost
from scheduler.types import Job


class Hands:
    """Notes what it is told, and may post in return."""

    def __init__(self, on_action=lambda action: None):
        self.seen = []
        self._on_action = on_action

    def carry_out(self, action, attachment):
        self.seen.append((type(action).__name__, attachment))
        self._on_action(action)


def make(clock=trio.current_time):
    return Driver(Core(CoreConfig(), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0), clock=clock)


def arrival(handle):
    job = Job(
        key=handle.to_bytes(24, "big"), entry="n", input_bytes=0, arrival_s=0.0, deadline_s=5.0, models=("0" * 64,)
    )
    return JobArrived(handle=handle, job=job, origin=None)


def run(scenario):
    async def main():
        driver = make()
        async with trio.open_nursery() as nursery:
            await scenario(driver, nursery)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_timer_costs_the_driver_one_turn():
    class Steps(trio.abc.Instrument):
        turns = 0

        def before_task_step(self, task):
            self.turns += task.name.endswith("Driver.run")

    async def scenario(driver, nursery):
        nursery.start_soon(driver.run, Hands())
        await trio.testing.wait_all_tasks_blocked()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        before = driver.handled
        await trio.sleep(60.0)
        trio.lowlevel.remove_instrument(steps)
        rung = driver.handled - before
        assert rung > 20
        assert steps.turns <= rung

    run(scenario)


def test_what_was_posted_before_the_start_is_taken_first_and_in_order():
    async def scenario(driver, nursery):
        hands = Hands()
        for handle in (1, 2, 3):
            driver.post(arrival(handle), f"job {handle}")
        assert driver.handled == 0
        nursery.start_soon(driver.run, hands)
        await trio.testing.wait_all_tasks_blocked()
        assert [attachment for kind, attachment in hands.seen if kind == "Reject"] == ["job 1", "job 2", "job 3"]

    run(scenario)


def test_an_event_is_taken_in_the_call_that_posts_it():
    async def scenario(driver, nursery):
        hands = Hands()
        nursery.start_soon(driver.run, hands)
        await trio.testing.wait_all_tasks_blocked()
        driver.post(arrival(1), "bytes")
        assert ("Reject", "bytes") in hands.seen

    run(scenario)


def test_what_an_action_posts_waits_for_its_turn():
    async def scenario(driver, nursery):
        order = []

        def post_more(action):
            order.append((type(action).__name__, driver.handled))
            if len(order) == 1:
                driver.post(arrival(9))
                order.append(("posted", driver.handled))

        nursery.start_soon(driver.run, Hands(post_more))
        await trio.testing.wait_all_tasks_blocked()
        order.clear()
        before = driver.handled
        driver.post(arrival(1))
        assert order[:2] == [("Reject", before + 1), ("posted", before + 1)]
        assert ("Reject", before + 2) in order

    run(scenario)


def test_timers_of_the_core_come_due_by_themselves():
    async def scenario(driver, nursery):
        hands = Hands()
        nursery.start_soon(driver.run, hands)
        await trio.sleep(30.0)
        adverts = sum(kind == "Advertise" for kind, _ in hands.seen)
        assert 10 <= adverts <= 20
        assert driver.handled < 200, "the timer spins"

    run(scenario)


def test_after_its_end_nothing_is_carried_out():
    async def scenario(driver, nursery):
        hands = Hands()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(driver.run, hands)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        hands.seen.clear()
        for event in (arrival(1), DrainRequested(), PeerLost(peer="x")):
            driver.post(event)
        assert not hands.seen

    run(scenario)


def test_time_never_goes_back_for_the_core():
    async def main():
        moments = itertools.chain([5.0, 3.0, 4.0], itertools.repeat(6.0))
        driver = make(clock=lambda: next(moments))
        with trio.move_on_after(0.01):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    driver.post(LoadSampled(slow_down=1.0, memory_free_bytes=1, power_class=0))
                nursery.start_soon(driver.run, Hands())
        assert driver.handled >= 3

    trio.run(main)
