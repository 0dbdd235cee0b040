"""The worker's threads and orders, without a process and without a model."""

import socket
import threading

import msgspec
import pytest

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
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()

    def answer(self, body, payload, output, options, *, is_shared, is_alone):
        self.alone.append(is_alone)
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


def test_a_run_knows_whether_it_is_alone_and_the_first_company_is_prepared_for_once(bench):
    _, near, model, prepared = bench
    send(near, 0)
    answer(near)
    assert not prepared.acquire(blocking=False)
    for first in (1, 3):
        model.may_end.clear()
        model.begun = threading.Semaphore(0)
        for run in (first, first + 1):
            send(near, run)
            assert model.begun.acquire(timeout=5.0)
        model.may_end.set()
        assert {answer(near).run, answer(near).run} == {first, first + 1}
    assert model.alone == [True, True, False, True, False]
    assert prepared.acquire(timeout=5.0)
    assert not prepared.acquire(blocking=False)
