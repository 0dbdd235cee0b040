"""A program's lanes at the daemon's door: which are opened, and how many; the worker is played by the test."""

import array
import fcntl
import mmap
import os
import socket

import msgspec
import pytest
import trio

from gridnode.control import (
    PREFIX_BYTES,
    ClientHello,
    JobDone,
    OpenLane,
    RequestBody,
    ServerHello,
    Share,
    Submit,
    TensorHeader,
    Ticket,
    decode_prefix,
    decode_server,
    encode_body,
    encode_frame,
    make_key,
)
from gridnode.lanes import LASTS_S, PROGRAM_LANES_MAX, RUNS_BEFORE
from gridnode.sandbox import SandboxDevice
from models.workerprotocol import LaneEnded, LaneRun
from transport.wire import LaneRun as WireRun
from transport.wire import Ping

CLIENT = bytes(range(16))
BODY = encode_body(RequestBody(kind="tensors", tensors=(TensorHeader(name="x", dtype="uint8", shape=(100,)),)))
SEGMENT = 8 * mmap.PAGESIZE


class Lane:
    """A lane of a worker's, as its desk sees it."""

    def __init__(self, digest, on_word):
        self.digest = digest
        self.on_word = on_word
        self.closed = trio.Event()
        self.tickets = []
        self.revoked = []

    def give(self, ticket, *, runs, lasts_s):
        self.tickets.append(ticket)
        return True

    def revoke(self, ticket):
        self.revoked.append(ticket)

    def close(self):
        self.closed.set()

    def end(self):
        self.on_word(LaneEnded(lane=1, ticket=0, runs=(), was_cut=False, is_closed=True))


class Worker:
    """Takes every lane."""

    def __init__(self):
        self.lanes = []

    def open_lane(self, digest, segment, descriptor, on_word):
        os.close(descriptor)
        self.lanes.append(Lane(digest, on_word))
        return self.lanes[-1]


class Program:
    """A program that says what it is told."""

    def __init__(self, stream):
        self.stream = stream
        self.count = 0

    async def say(self, message, *descriptors, payload=b""):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        frame = encode_frame(message, len(payload)) + payload
        assert await self.stream.socket.sendmsg([frame], ancillary) == len(frame)
        for descriptor in descriptors:
            os.close(descriptor)

    async def hear(self):
        data = b""
        with trio.fail_after(5.0):
            while len(data) < PREFIX_BYTES or len(data) < PREFIX_BYTES + sum(decode_prefix(data)):
                data += await self.stream.receive_some(1 << 16)
        header, _ = decode_prefix(data)
        return decode_server(data[PREFIX_BYTES : PREFIX_BYTES + header])

    async def ask(self, **changes):
        """Have a job answered, so that all that was said before it is done."""
        self.count += 1
        fields = {"key": make_key(CLIENT, self.count), "model": "m", "budget_s": 2.0, "body": BODY}
        await self.say(Submit(**fields | changes), payload=bytes(100))
        assert isinstance(await self.hear(), JobDone)

    async def share(self):
        descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, SEGMENT)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        await self.say(Share(segment_bytes=SEGMENT), descriptor)

    async def offer(self, **changes):
        """Offer a lane."""
        fields = {"lane": 0, "model": "m", "rungs": True, "priority": 1, "tenant": ""}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            await self.say(OpenLane(**fields | changes), theirs.detach())


@pytest.fixture
def run_lanes(run_grid):
    """Run a scenario with a program and the worker that its lanes lead to."""

    def run(scenario, *, slots=1):
        async def careful(sandbox):
            node, worker = sandbox.nodes["one"], Worker()
            node.running.parts.lanes._executor = worker
            async with await trio.open_unix_socket(str(node.socket)) as stream:
                program = Program(stream)
                await program.say(ClientHello(client=CLIENT))
                assert isinstance(await program.hear(), ServerHello)
                await scenario(program, worker)

        run_grid(careful, devices={"one": SandboxDevice(slots=slots)}, models_s={"m": 0.1, "n": 0.1})

    return run


def test_a_lane_is_for_requests_like_the_last_one(run_lanes):
    async def scenario(program, worker):
        await program.share()
        await program.offer()
        await program.ask(tenant="shop", priority=2)
        assert worker.lanes == [], "nothing was asked before"
        for other in ({}, {"tenant": "shop"}, {"priority": 2}, {"tenant": "shop", "priority": 2, "rungs": False}):
            await program.offer(**other)
        await program.offer(model="n", tenant="shop", priority=2)
        await program.ask(tenant="shop", priority=2)
        assert worker.lanes == []
        for _ in range(2):
            await program.offer(tenant="shop", priority=2)
            await program.ask(tenant="shop", priority=2)
            assert len(worker.lanes) == 1, "one slot is busy with one"
        await program.ask(tenant="shop", stream="door")
        await program.offer(tenant="shop")
        await program.ask()
        assert len(worker.lanes) == 1, "a stream's frame is no request of a kind"

    run_lanes(scenario)


def test_there_are_as_many_lanes_of_a_kind_as_slots(run_lanes):
    async def scenario(program, worker):
        await program.share()
        for number in range(5):
            await program.ask()
            await program.offer(lane=number)
        await program.ask()
        assert len(worker.lanes) == 3
        worker.lanes[0].end()
        await program.offer(lane=5)
        await program.ask()
        assert len(worker.lanes) == 4

    run_lanes(scenario, slots=3)


def test_without_shared_memory_there_is_no_lane(run_lanes):
    async def scenario(program, worker):
        await program.ask()
        await program.offer()
        await program.ask()
        assert worker.lanes == []

    run_lanes(scenario)


def test_a_program_has_so_many_lanes_and_those_that_have_ended_take_no_room(run_lanes):
    async def open_one(program, tenant):
        await program.ask(tenant=tenant)
        await program.offer(tenant=tenant)
        await program.ask(tenant=tenant)

    async def scenario(program, worker):
        await program.share()
        for number in range(PROGRAM_LANES_MAX + 2):
            await open_one(program, f"tenant {number}")
        assert len(worker.lanes) == PROGRAM_LANES_MAX
        worker.lanes[1].end()
        await open_one(program, "one more")
        assert len(worker.lanes) == PROGRAM_LANES_MAX + 1
        await open_one(program, "and one")
        assert len(worker.lanes) == PROGRAM_LANES_MAX + 1

    run_lanes(scenario)


def test_a_lane_that_has_ended_is_followed_by_another_of_its_kind(run_lanes):
    async def scenario(program, worker):
        await program.share()
        await program.ask()
        await program.offer()
        await program.ask()
        worker.lanes[0].end()
        await program.ask()
        await program.offer()
        await program.ask()
        assert len(worker.lanes) == 2

    run_lanes(scenario)


def test_a_program_that_leaves_closes_its_lanes(run_lanes):
    async def scenario(program, worker):
        await program.share()
        await program.ask()
        await program.offer()
        await program.ask()
        assert not worker.lanes[0].closed.is_set()
        await program.stream.aclose()
        with trio.fail_after(5.0):
            await worker.lanes[0].closed.wait()

    run_lanes(scenario)


def test_a_node_that_ends_waits_for_the_accounts_of_its_lanes(run_grid):
    async def scenario(sandbox):
        node, worker = sandbox.nodes["one"], Worker()
        node.running.parts.lanes._executor = worker
        async with await trio.open_unix_socket(str(node.socket)) as stream:
            program = Program(stream)
            await program.say(ClientHello(client=CLIENT))
            await program.hear()
            await program.share()
            await program.ask()
            await program.offer()
            for _ in range(RUNS_BEFORE - 1):
                await program.ask()
            key, place = make_key(CLIENT, 99), {"model": "m", "budget_s": 2.0}
            await program.say(Submit(key=key, body=BODY, **place), payload=bytes(100))
            assert isinstance(await program.hear(), Ticket)
            [lane] = worker.lanes
            assert (lane.tickets, lane.revoked) == ([1], [])
            node.running.stop()
            await trio.sleep(LASTS_S)
            assert lane.revoked == [1]
            assert not lane.closed.is_set(), "a run may still be under way"
            run = LaneRun(
                key=make_key(CLIENT, 100), age_s=0.01, service_s=0.001, input_bytes=1, output_bytes=1, budget_s=None
            )
            lane.on_word(LaneEnded(lane=1, ticket=1, runs=(run,), was_cut=True, is_closed=False))
            await lane.closed.wait()
            await node.ended.wait()
            assert node.running.parts.report.by_lane == 1

    run_grid(scenario, devices={"one": SandboxDevice()}, models_s={"m": 0.001})


def test_peers_payloads_for_lanes_are_received_where_their_models_workers_read_them(run_grid):
    async def scenario(sandbox):
        make_room = sandbox.nodes["one"].running._data.make_room
        run = WireRun(key=bytes(24), model="a" * 64, budget_s=1.0, body=b"")
        room = make_room(run, 100_000)
        other = make_room(run, 100_000)
        assert room.place.segment is other.place.segment
        assert make_room(msgspec.structs.replace(run, model="b" * 64), 100_000).place.segment is not room.place.segment
        assert make_room(Ping(nonce=1), 100_000) is None

    run_grid(scenario, devices={"one": SandboxDevice()})
