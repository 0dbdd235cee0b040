"""The worker's threads and orders, without a process and without a model."""

import fcntl
import os
import socket
import threading

import msgspec
import pytest

from models import laneprotocol
from models import workerprotocol as protocol
from models.mappings import Mappings
from models.sharedmemory import SharedMemory
from models.tensors import BadInputError
from models.worker import CANCELS_KEPT, Worker


class Options(msgspec.Struct):
    """What the runtime has for a run."""

    terminate: bool = False


class Model:
    """Ends when it is told to, or at once."""

    def __init__(self):
        self.alone = []
        self.payloads = []
        """Each with whether a program may change it."""
        self.options = []
        self.fault = None
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()

    def answer(self, body, payload, output, options, *, is_shared, is_alone):
        self.alone.append(is_alone)
        self.options.append(options)
        if self.fault is not None:
            raise self.fault
        self.payloads.append((bytes(payload), is_shared))
        self.begun.release()
        assert self.may_end.wait(5.0)
        return body, 0


@pytest.fixture
def bench():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.settimeout(5.0)
    model, prepared, memory = Model(), threading.Semaphore(0), SharedMemory.create(2)
    worker = Worker(
        model,
        memory,
        Mappings(),
        far,
        share_threads=prepared.release,
        options=Options,
        input_faults=(BadInputError,),
        model_faults=(RuntimeError,),
    )
    threads = [threading.Thread(target=worker.serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield worker, near, model, prepared
    near.close()
    model.may_end.set()
    for thread in threads:
        thread.join(5.0)
    far.close()
    memory.close()


def send(near, run):
    near.send(protocol.encode(protocol.RunOrder(run=run, slot=run % 2, body=b"body", payload_bytes=0)))


def answer(near):
    return protocol.decode_answer(near.recv(protocol.PACKET_MAX_BYTES))


def test_a_run_cancelled_before_it_comes_is_left_out_whatever_has_begun_meanwhile(bench):
    worker, near, _, _ = bench
    send(near, 7)
    assert isinstance(answer(near), protocol.Done)
    worker.cancel(3)
    send(near, 4)
    assert isinstance(answer(near), protocol.Done)
    send(near, 3)
    assert answer(near).kind == "terminated"
    send(near, 3)
    assert isinstance(answer(near), protocol.Done), "it was told once"


def test_cancellations_of_what_is_over_do_not_pile_up(bench):
    worker, near, _, _ = bench
    for run in range(1000, 1000 + 2 * CANCELS_KEPT):
        worker.cancel(run)
    send(near, 1000)
    assert isinstance(answer(near), protocol.Done)
    send(near, 1000 + 2 * CANCELS_KEPT - 1)
    assert answer(near).kind == "terminated"


def run_two(near, model, *runs):
    """Have two runs go on at once."""
    model.may_end.clear()
    model.begun = threading.Semaphore(0)
    for run in runs:
        send(near, run)
        assert model.begun.acquire(timeout=5.0)
    model.may_end.set()
    assert {answer(near).run, answer(near).run} == set(runs)


def test_a_run_knows_whether_it_is_alone_and_the_first_company_is_prepared_for_once(bench, monkeypatch):
    monkeypatch.setattr("models.worker.CROWD_PAUSE_S", 0.0)
    _, near, model, prepared = bench
    send(near, 0)
    answer(near)
    assert not prepared.acquire(blocking=False)
    run_two(near, model, 1, 2)
    run_two(near, model, 3, 4)
    assert model.alone == [True, True, False, True, False]
    assert prepared.acquire(timeout=5.0)
    assert not prepared.acquire(blocking=False)


def test_the_first_run_soon_after_one_that_had_company_expects_some(bench, monkeypatch):
    monkeypatch.setattr("models.worker.CROWD_PAUSE_S", 1000.0)
    _, near, model, _ = bench
    run_two(near, model, 1, 2)
    for run in (3, 4):
        send(near, run)
        answer(near)
    assert model.alone == [True, False, False, True], "the third had none, so the fourth expects none"


# ---------------------------------------------------------------- lanes

SIZE = 8192
SEGMENT = 5


class Program:
    """A program with memory that the worker has mapped, and a lane to it."""

    def __init__(self, worker, near):
        self.worker = worker
        self.near = near
        descriptor = os.memfd_create("program", os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, SIZE)
        os.pwrite(descriptor, b"frame", 64)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        worker._mappings.map(SEGMENT, SIZE, descriptor)
        self.line, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.settimeout(5.0)
        worker.open_lane(protocol.OpenLaneOrder(lane=1, segment=SEGMENT), other)
        worker.rule_lane(protocol.TicketOrder(lane=1, ticket=1, runs=9, lasts_s=60.0))

    def send(self, *, offset=64, payload_bytes=5, body=b"body"):
        self.line.send(laneprotocol.encode(laneprotocol.LaneRequest(b"k" * 24, 1, body, offset, payload_bytes, None)))

    def receive(self):
        packet = self.line.recv(laneprotocol.PACKET_MAX_BYTES)
        return msgspec.msgpack.decode(packet, type=laneprotocol.LaneDone | laneprotocol.LanePass)

    def ask(self, **how):
        self.send(**how)
        return self.receive()

    def end(self):
        """Leave, and see that the daemon is told; returns how many runs were."""
        self.line.close()
        while not isinstance(word := answer(self.near), protocol.LaneEnded):
            assert word == protocol.LaneBegun(lane=1, ticket=1)
        assert word.is_closed
        return len(word.runs)


@pytest.fixture
def program(bench):
    worker, near, _, _ = bench
    made = Program(worker, near)
    yield made
    made.line.close()


def test_a_lanes_payload_is_read_in_the_programs_memory(bench, program):
    _, _, model, _ = bench
    done = program.ask()
    assert (done.key, done.body, done.payload) == (b"k" * 24, b"body", b"")
    assert model.payloads == [(b"frame", True)]
    assert program.end() == 1


@pytest.mark.parametrize(
    ("offset", "payload_bytes"),
    [(1, 5), (SIZE, 0), (SIZE - 64, 1), (64, SIZE), (2**62, 2**62), (0, 2**63)],
    ids=["not aligned", "at the end", "no margin", "too long", "far away", "far too long"],
)
def test_what_does_not_lie_in_that_memory_is_unfit_and_never_read(bench, program, offset, payload_bytes):
    _, _, model, _ = bench
    assert program.ask(offset=offset, payload_bytes=payload_bytes).is_unfit
    assert model.payloads == []
    assert isinstance(program.ask(offset=SIZE - 128, payload_bytes=64), laneprotocol.LaneDone)
    assert program.end() == 1


@pytest.mark.parametrize("fault", [BadInputError("odd"), RuntimeError("odd")])
def test_a_request_that_the_model_refuses_or_fails_at_is_unfit(bench, program, fault):
    _, _, model, _ = bench
    model.fault = fault
    assert program.ask().is_unfit
    model.fault = None
    assert isinstance(program.ask(), laneprotocol.LaneDone)
    assert program.end() == 1


def test_a_lane_that_is_closed_ends_the_run_in_its_hand(bench, program):
    worker, _, model, _ = bench
    model.may_end.clear()
    program.send()
    assert model.begun.acquire(timeout=5.0)
    assert not model.options[-1].terminate
    worker.rule_lane(protocol.CloseLaneOrder(lane=1))
    assert model.options[-1].terminate
    model.may_end.set()
    assert program.line.recv(1) == b""
    assert program.end() == 1


def test_orders_about_a_lane_that_has_ended_are_nothing(bench, program):
    worker, near, _, _ = bench
    program.end()
    assert worker._lanes == {}
    worker.rule_lane(protocol.TicketOrder(lane=1, ticket=2, runs=9, lasts_s=60.0))
    worker.rule_lane(protocol.RevokeOrder(lane=1, ticket=2))
    worker.rule_lane(protocol.CloseLaneOrder(lane=1))
    send(near, 0)
    assert isinstance(answer(near), protocol.Done), "the worker lives on"


def test_a_ticket_that_is_taken_back_is_worth_nothing(bench, program):
    worker, _, _, _ = bench
    worker.rule_lane(protocol.RevokeOrder(lane=1, ticket=1))
    assert program.ask() == laneprotocol.LanePass(b"k" * 24, is_unfit=False)
    assert program.end() == 0


def test_a_run_by_a_lane_is_company_for_the_daemons(bench, program):
    _, near, model, _ = bench
    model.may_end.clear()
    program.send()
    assert model.begun.acquire(timeout=5.0)
    send(near, 0)
    assert model.begun.acquire(timeout=5.0)
    model.may_end.set()
    assert isinstance(program.receive(), laneprotocol.LaneDone)
    assert model.alone == [True, False]
    assert answer(near) == protocol.LaneBegun(lane=1, ticket=1)
    assert isinstance(answer(near), protocol.Done)
    assert program.end() == 1
