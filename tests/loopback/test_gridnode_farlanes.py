"""Lanes to a peer over real TLS on 127.0.0.1: both daemons' parts, with program and worker played by the test."""

import fcntl
import hashlib
import os
import random
import socket
import struct
from contextlib import asynccontextmanager
from unittest import mock

import msgspec
import pytest
import trio
import trio.testing

from gridnode import farlanes
from gridnode.driver import Driver
from gridnode.farlanes import SILENCE_MAX_S, FarLanes
from gridnode.inbound import Inbound
from gridnode.jobtable import JobTable
from gridnode.laneruns import LaneRuns
from gridnode.lanes import LASTS_S, RUNS, LaneDesk
from gridnode.modelmemory import MODEL_BYTES, ModelMemory
from gridnode.report import Report
from models import laneprotocol as protocol
from models.executor import RunOutcome
from models.laneprotocol import LanePass, LaneRequest
from models.segments import Segment
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import ModelChanged
from scheduler.types import Capability
from transport.admission import Credentials
from transport.base import DataAddress
from transport.dataplane import TlsDataPlane
from transport.dataplane_records import DataPlaneConfig
from transport.sandbox import SandboxGrid
from transport.wire import CardRequest, LaneDone, LanePassed, LaneRun, PeerUnreachableError, RemoteProtocolError

MODEL = "a" * 64
SEGMENT_BYTES = 20_000_000

decode = msgspec.msgpack.Decoder(protocol.LaneDone | LanePass).decode


def key(number):
    return number.to_bytes(24, "big")


def make_memory():
    """Return a program's memory, full of noise, and its descriptor's segment."""
    noise = random.Random(7).randbytes(SEGMENT_BYTES // 100) * 100
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, noise)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return noise, Segment(descriptor, SEGMENT_BYTES)


class Worker:
    """Answers each run with the digest of its payload and as many zeros as wanted, unless it is stuck."""

    def __init__(self, nursery):
        self.nursery = nursery
        self.zeros = 0
        self.is_stuck = False
        self.stopped = 0
        self.places = []

    def begin(self, digest, request, on_end):
        scope = trio.CancelScope()
        self.places.append(request.place)
        self.nursery.start_soon(self._run, request, on_end, scope)

        def stop():
            self.stopped += 1
            scope.cancel()

        return stop

    async def _run(self, request, on_end, scope):
        with scope:
            await trio.lowlevel.checkpoint()
            if self.is_stuck:
                await trio.sleep_forever()
            payload = bytearray(hashlib.sha256(request.payload).digest() + bytes(self.zeros))
            on_end(RunOutcome(body=request.body, payload=payload, service_s=1e-6))


def plane_of(grid, node):
    credentials = Credentials(node.key, node.chain_pem, grid.trust(), epoch=1)
    return TlsDataPlane(credentials, DataPlaneConfig(host="127.0.0.1"))


def core_of(name):
    return Core(CoreConfig(), node_id=name, epoch=1, rng=random.Random(1), now_s=trio.current_time())


class Executor:
    """The peer's side: its core, its worker, and what serves its connections."""

    def __init__(self, plane, nursery):
        self.plane = plane
        self.core, self.worker, self.report = core_of("executor"), Worker(nursery), Report()
        self.driver = Driver(self.core)
        self.memory = ModelMemory(lambda segment: segment.close())
        plane.make_room = lambda message, size: (
            self.memory.take(message.model, size) if isinstance(message, LaneRun) else None
        )
        desk = LaneDesk(
            node="executor",
            core=self.core,
            driver=self.driver,
            executor=self.worker,
            report=self.report,
            recorder=None,
            default_deadline_s=10.0,
            slots=1,
        )
        runs = LaneRuns(
            core=self.core,
            driver=self.driver,
            executor=self.worker,
            desk=desk,
            report=self.report,
            recorder=None,
            nursery=nursery,
        )
        self.inbound = Inbound(
            node="executor", jobs=JobTable(), driver=self.driver, outbound=None, lane_runs=runs, nursery=nursery
        )
        entry = Capability(model=MODEL, mean_s=0.001, p95_s=0.001, memory_bytes=1, load_s=0.0)
        changed = ModelChanged(table_digest=b"t" * 8, capabilities=(entry,), loaded=frozenset([MODEL]))
        self.core.handle(changed, now_s=trio.current_time())
        nursery.start_soon(self.driver.run, self)

    def carry_out(self, action, attachment):
        """Serve as the driver's hands: nothing here asks for anything but to advertise."""

    async def serve(self, exchange, message, payload):
        if not await self.inbound.handle(exchange, message, payload):
            await exchange.send(message)
            exchange.finish()

    @property
    def received(self):
        return self.core.statistics().jobs_received


class Entry:
    """The entry's side, with a program at its lane."""

    def __init__(self, plane, peer, nursery):
        self.plane, self.peer = plane, peer
        self.blamed, self.words = [], []
        self.lanes = FarLanes(
            data=plane,
            driver=Driver(core_of("entry")),
            nursery=nursery,
            default_deadline_s=10.0,
            on_misbehaviour=lambda peer, what: self.blamed.append(what),
            on_answer=lambda peer: None,
        )
        self.noise, self.segment = make_memory()
        self.near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        self.lane = self.lanes.open(peer, MODEL, self.segment, far.detach(), self.words.append)
        self.ticket = 0
        self.count = 0

    async def meet(self):
        """Have a connection at hand."""
        async with self.plane.exchange(self.peer) as exchange:
            await exchange.send(CardRequest(nodes=()))
            await exchange.receive()
            exchange.finish()

    def give(self):
        self.ticket += 1
        assert self.lane.give(self.ticket, runs=RUNS, lasts_s=farlanes.LASTS_S)

    def ask(self, size, *, offset=0):
        self.count += 1
        self.near.send(protocol.encode(LaneRequest(key(self.count), self.ticket, b"body", offset, size, 5.0)))

    async def hear(self):
        """Return the next answer; None at the lane's end."""
        with trio.fail_after(10.0):
            await trio.lowlevel.wait_readable(self.near)
        packet = self.near.recv(protocol.PACKET_MAX_BYTES)
        return decode(packet) if packet else None

    async def run(self, size, *, offset=0):
        """Have one request run, and check its answer."""
        self.ask(size, offset=offset)
        answer = await self.hear()
        assert isinstance(answer, protocol.LaneDone), answer
        assert (answer.key, answer.body) == (key(self.count), b"body")
        assert answer.payload[:32] == hashlib.sha256(self.noise[offset : offset + size]).digest()

    @property
    def accounted(self):
        return [run.key for word in self.words for run in word.runs]


async def eventually(fact):
    """Wait for a fact that another task brings about."""
    with trio.fail_after(10):
        while not fact():
            await trio.testing.wait_all_tasks_blocked(0.001)


async def half_way(lane):
    """Wait until a part of a payload has left, and a part has not."""
    with trio.fail_after(10):
        while not lane._is_leaving:
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def two_daemons(serve=None, *, lasts_s=30.0):
    """Yield an entry and an executor that have met; checks in the end that nothing is left of the lane.

    Tickets last long, so that a busy machine makes no difference.
    """
    with mock.patch.object(farlanes, "LASTS_S", lasts_s):
        async with _two_daemons(serve) as both:
            yield both


@asynccontextmanager
async def _two_daemons(serve):
    grid = SandboxGrid()
    here, there = grid.make_node(), grid.make_node()
    dialler, listener = plane_of(grid, here), plane_of(grid, there)
    async with trio.open_nursery() as life:
        async with trio.open_nursery() as jobs:
            executor = Executor(listener, jobs)
            address = await life.start(listener.serve, serve or executor.serve)
            await life.start(dialler.serve, executor.serve)
            dialler.set_address(there.node, [DataAddress(host=address[0], port=address[1])])
            entry = Entry(dialler, there.node, jobs)
            with entry.near:
                await entry.meet()
                yield entry, executor
            await eventually(lambda: not entry.lanes._open)
            with trio.fail_after(5.0):
                await executor.inbound.wait_silent()
            jobs.cancel_scope.cancel()
        assert [word.is_closed for word in entry.words].count(True) == 1
        whole = executor.memory.take(MODEL, MODEL_BYTES - 4096)
        assert whole is not None, "all rooms were given back"
        whole.release()
        executor.memory.close()
        life.cancel_scope.cancel()
    entry.segment.close()


def in_trio(main):
    def run():
        async def within_limit():
            with trio.fail_after(30):
                await main()

        trio.run(within_limit)

    run.__name__ = main.__name__
    return run


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("size", "is_in_place"),
    [
        (0, False),
        (100, False),
        (16_000, None),
        (150_000, True),
        (600_000, True),
        (8_000_000, True),
        (16_000_000, False),
    ],
)
def test_payloads_of_any_size_are_run_at_the_peer(size, is_in_place):
    async def main():
        async with two_daemons() as (entry, executor):
            entry.give()
            for offset in (0, 640):
                await entry.run(size, offset=offset)
            if is_in_place is not None:
                assert [place is not None for place in executor.worker.places] == [is_in_place] * 2
            counters = entry.plane.statistics()
            assert (counters.dials, counters.outbound, counters.outbound_idle) == (1, 1, 0)
            entry.lane.revoke(entry.ticket)
            assert entry.plane.statistics().outbound_idle == 1
            assert entry.accounted == [key(1), key(2)]
            assert executor.received == 2
        assert entry.blamed == []

    in_trio(main)()


@in_trio
async def test_every_run_is_accounted_for_once_on_both_sides_over_many_tickets():
    async with two_daemons() as (entry, executor):
        for number in range(4 * RUNS):
            if not number % RUNS:
                entry.give()
            await entry.run(10_000)
        assert entry.accounted == [key(number + 1) for number in range(4 * RUNS)]
        assert executor.received == executor.report.by_lane == 4 * RUNS
        assert entry.plane.statistics().dials == 1
        await entry.meet()
        assert entry.plane.statistics().dials == 1, "the same connection serves the daemon's own exchanges"


@pytest.mark.parametrize("zeros", [protocol.PACKET_MAX_BYTES, 5_000_000])
def test_outputs_above_a_packets_size_are_passed_as_unfit(zeros):
    async def main():
        async with two_daemons() as (entry, executor):
            executor.worker.zeros = zeros
            entry.give()
            entry.ask(600_000)
            assert await entry.hear() == LanePass(key(1), is_unfit=True)
            executor.worker.zeros = 1000
            await entry.run(600_000)
            entry.lane.revoke(entry.ticket)
            assert entry.accounted == [key(2)]
            assert entry.plane.statistics().outbound_idle == 1

    in_trio(main)()


# ---------------------------------------------------------------- connections that break


@pytest.mark.parametrize("side", ["entry", "executor"])
def test_a_connection_that_is_killed_under_a_run_passes_it(side):
    async def main():
        async with two_daemons() as (entry, executor):
            entry.give()
            await entry.run(1000)
            executor.worker.is_stuck = True
            entry.ask(600_000)
            await eventually(lambda: len(executor.worker.places) == 2)
            if side == "entry":
                await entry.plane.close_peer(entry.peer)
            else:
                await executor.plane.close_peer(executor.plane.open_peers()[0])
            assert await entry.hear() == LanePass(key(2), is_unfit=False)
            await eventually(lambda: executor.worker.stopped == 1)
            assert entry.accounted == [key(1)]
            assert executor.received == 1
            executor.worker.is_stuck = False
            entry.give()
            entry.ask(1000)
            assert await entry.hear() == LanePass(key(3), is_unfit=False), "no connection is at hand"
            await entry.meet()
            entry.give()
            await entry.run(600_000)
        assert entry.blamed == []

    in_trio(main)()


@in_trio
async def test_a_connection_that_is_killed_while_a_payload_leaves_passes_its_run():
    async with two_daemons() as (entry, executor):
        entry.give()
        entry.ask(16_000_000)
        await half_way(entry.lane)
        await entry.plane.close_peer(entry.peer)
        assert await entry.hear() == LanePass(key(1), is_unfit=False)
        assert executor.worker.places == []


@in_trio
async def test_a_program_that_leaves_while_its_payload_does_ends_the_lane_and_the_connection():
    async with two_daemons() as (entry, executor):
        entry.give()
        entry.ask(16_000_000)
        await half_way(entry.lane)
        entry.near.close()
        entry.lane.close()
        entry.segment.close()
        await eventually(lambda: not entry.lanes._open)
        assert entry.plane.statistics().outbound == 0
        assert executor.worker.places == []


@in_trio
async def test_a_peer_that_falls_silent_is_given_up_and_ends_its_run():
    async with two_daemons(lasts_s=LASTS_S) as (entry, executor):
        executor.worker.is_stuck = True
        entry.give()
        begun_s = trio.current_time()
        entry.ask(600_000)
        assert await entry.hear() == LanePass(key(1), is_unfit=False)
        assert trio.current_time() - begun_s >= LASTS_S + SILENCE_MAX_S
        assert entry.plane.statistics().outbound == 0
        await eventually(lambda: executor.worker.stopped == 1)
        assert (executor.received, entry.accounted) == (0, [])
        assert [word.was_cut for word in entry.words] == [True]


# ---------------------------------------------------------------- peers that break the protocol


async def answer_twice(exchange, run):
    for _ in range(2):
        await exchange.send(LaneDone(key=run.key, service_s=0.0, body=b""))


async def answer_another(exchange, run):
    await exchange.send(LaneDone(key=b"x" * 24, service_s=0.0, body=b""))


async def answer_nonsense(exchange, run):
    exchange.connection._stream.send_nowait([struct.pack(">II", 5, 0) + b"\xc1" * 5])


async def answer_hugely(exchange, run):
    exchange.connection._stream.send_nowait([struct.pack(">II", 2**31, 2**31)])


async def answer_with_a_question(exchange, run):
    await exchange.send(run, [b"yours"])


async def leave(exchange, run):
    raise RemoteProtocolError("enough")


async def pass_on(exchange, run):
    await exchange.send(LanePassed(key=run.key, is_unfit=False))


@pytest.mark.parametrize(
    ("answer", "is_blamed", "is_done"),
    [
        (answer_twice, True, True),
        (answer_another, True, False),
        (answer_nonsense, True, False),
        (answer_hugely, True, False),
        (answer_with_a_question, True, False),
        (leave, False, False),
        (pass_on, False, False),
    ],
)
def test_whatever_a_peer_says_a_request_has_one_answer(answer, is_blamed, is_done):
    async def serve(exchange, message, payload):
        while isinstance(message, LaneRun):
            await answer(exchange, message)
            message, _ = await exchange.receive()
        await exchange.send(message)
        exchange.finish()

    async def main():
        async with two_daemons(serve) as (entry, _):
            for _ in range(3):
                entry.give()
                entry.ask(100)
                answered = await entry.hear()
                assert answered.key == key(entry.count)
                assert isinstance(answered, protocol.LaneDone) == is_done
                await eventually(lambda: len(entry.words) == entry.ticket)
                assert len(entry.blamed) == (entry.count if is_blamed else 0)
                await entry.meet()
            assert entry.accounted == ([key(1), key(2), key(3)] if is_done else [])
            assert entry.plane.statistics().dials == (1 if answer is pass_on else 4)

    in_trio(main)()


@in_trio
async def test_a_peer_that_answers_before_it_has_been_asked_everything_gets_no_more_of_it():
    served = []

    async def serve(exchange, message, payload):
        served.append(exchange.connection)
        await exchange.send(message)
        exchange.finish()

    async with two_daemons(serve) as (entry, executor):

        def answer_early(message, size):
            served[-1].send_nowait(LaneDone(key=message.key, service_s=0.0, body=b"early"))

        executor.plane.make_room = answer_early
        entry.give()
        entry.ask(16_000_000)
        assert await entry.hear() == LanePass(key(1), is_unfit=False)
        await eventually(lambda: entry.blamed)
        assert entry.plane.statistics().outbound == 0


# ---------------------------------------------------------------- a peer that asks for too much


@in_trio
async def test_a_flood_of_runs_costs_its_connection_and_others_are_served():
    async with two_daemons() as (entry, executor):
        executor.worker.is_stuck = True

        async def flood():
            async with entry.plane.exchange(entry.peer) as exchange:
                for number in range(10_000):
                    await exchange.send(LaneRun(key=key(number), model=MODEL, budget_s=1.0, body=b""), [bytes(100)])

        with pytest.raises(PeerUnreachableError):
            await flood()
        executor.worker.is_stuck = False
        await eventually(lambda: executor.worker.stopped == 1)
        await entry.meet()
        entry.give()
        await entry.run(1000)
        assert len(executor.worker.places) == 2


@in_trio
async def test_a_peer_that_reads_no_answers_keeps_nobody_from_the_worker():
    async with two_daemons() as (entry, executor):
        executor.worker.zeros = 30_000_000
        async with entry.plane.exchange(entry.peer) as deaf:
            await deaf.send(LaneRun(key=key(77), model=MODEL, budget_s=1.0, body=b""))
            await eventually(lambda: executor.worker.places)
            await eventually(lambda: not executor.inbound.is_silent)
            executor.worker.zeros = 0
            await entry.meet()
            entry.give()
            await entry.run(1000)
            assert not executor.inbound.is_silent, "its answer still waits to leave"
        with trio.fail_after(5.0):
            await executor.inbound.wait_silent()  # its connection was closed just now
