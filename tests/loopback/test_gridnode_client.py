"""Both clients against a small daemon that speaks the control protocol over a real Unix socket."""

import contextlib
import itertools
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
import zlib
from pathlib import Path
from time import monotonic

import anyio
import msgspec
import numpy as np
import pytest
from PIL import Image

from gridnode import carrier, channel
from gridnode.carrier import Carrier
from gridnode.client import AsyncGrid, Grid, default_sockets
from gridnode.control import (
    VERSION,
    Answer,
    CancelJob,
    ClientHello,
    DetectionRecord,
    Goodbye,
    JobDone,
    JobError,
    Query,
    RequestBody,
    ResultBody,
    ServerHello,
    Share,
    Submit,
    TensorHeader,
    decode_client,
    decode_prefix,
    encode_frame,
)
from gridnode.errors import (
    DaemonUnreachableError,
    DrainingError,
    GridError,
    InvalidInputError,
    JobCancelledError,
    JobDeadlineError,
    JobFailedError,
    JobRejectedError,
    ProtocolError,
    UnknownModelError,
)
from gridnode.link import PING_S
from gridnode.session import Session
from models.segments import check_memory

ROOT = Path(__file__).resolve().parents[2]
FRAME = np.zeros((36, 64, 3), np.uint8)


class Peer:
    """One client's connection at the daemon."""

    def __init__(self, sock):
        self.socket = sock
        self.lock = threading.Lock()
        self.memory = None
        self._data = bytearray()
        self._descriptors = []

    def read(self, count):
        """Read exactly so many bytes, or fewer at the end, and keep the descriptors that come along."""
        while len(self._data) < count:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 4)
            self._descriptors += descriptors
            if not data:
                break
            self._data += data
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken

    def adopt(self, message):
        (descriptor,) = self._descriptors
        self._descriptors.clear()
        check_memory(descriptor, message.segment_bytes)
        self.memory = mmap.mmap(descriptor, message.segment_bytes, prot=mmap.PROT_READ)
        os.close(descriptor)

    def payload_of(self, message, payload):
        """Return a request's payload from where it lies."""
        if message.place is None:
            return payload
        assert payload == b""
        return self.memory[message.place : message.place + message.place_bytes]

    def close(self):
        self.socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        if self.memory is not None:
            self.memory.close()

    def say(self, message, payload=b""):
        with self.lock, contextlib.suppress(OSError):
            self.socket.sendall(encode_frame(message, len(payload)) + bytes(payload))

    def say_raw(self, data):
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def hang_up(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


def done(key, *, payload=b"", body=None, node="n1"):
    body = body or ResultBody(
        detections=(DetectionRecord(class_index=0, class_name="vehicle", score=0.9, box=(1, 2, 30, 20)),),
        image_width=64,
        image_height=36,
    )
    return JobDone(
        key=key,
        model="street",
        model_digest="d" * 64,
        node="id-" + node,
        node_name=node,
        hops=1,
        waiting_s=0.001,
        service_s=0.002,
        transfer_s=0.003,
        total_s=0.006,
        body=msgspec.msgpack.encode(body),
    )


def answer(peer, message, payload):
    peer.say(done(message.key))


class Daemon:
    """Accepts clients and hands their messages to ``on_submit``; all else it does by itself."""

    def __init__(self, path, on_submit=answer, *, hello=None, entries=(), on_share=Peer.adopt):
        self.path = str(path)
        self.on_submit = on_submit
        self.on_share = on_share
        self.hello = hello or ServerHello(version=VERSION, node="id", name="n1", grid="g", entries=entries)
        self.submits = []
        self.cancels = []
        self.peers = []
        self.changed = threading.Condition()
        self._threads = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._spawn(self._accept)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        Path(self.path).unlink(missing_ok=True)
        for peer in self.peers:
            peer.hang_up()
        for thread in self._threads:
            thread.join(10)

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, 10)

    def _spawn(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(sock)
            self.peers.append(peer)
            self._spawn(self._serve, peer)

    def _serve(self, peer):
        with contextlib.closing(peer), contextlib.suppress(OSError):
            while len(prefix := peer.read(8)) == 8:
                header, payload = decode_prefix(prefix)
                self._handle(peer, decode_client(peer.read(header)), peer.read(payload))

    def _handle(self, peer, message, payload):
        match message:
            case ClientHello():
                peer.say(self.hello)
            case Share():
                self.on_share(peer, message)
            case Submit():
                payload = peer.payload_of(message, payload)
                with self.changed:
                    self.submits.append((message, payload))
                    self.changed.notify_all()
                self.on_submit(peer, message, payload)
            case CancelJob():
                with self.changed:
                    self.cancels.append(message.key)
                    self.changed.notify_all()
                peer.say(JobError(key=message.key, reason="cancelled", message="cancelled"))
            case Query(what="explain", argument=argument):
                peer.say(Answer(number=message.number, document=msgspec.json.encode({"key": argument})))
            case Query(what="revoke"):
                peer.say(Answer(number=message.number, error="you are no revoker"))
            case Query():
                peer.say(Answer(number=message.number, document=msgspec.json.encode({"asked": message.what})))


def refuse(reason, **fields):
    return lambda peer, message, payload: peer.say(JobError(key=message.key, reason=reason, message="no", **fields))


def silent(peer, message, payload):
    pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.sock"


@pytest.fixture(params=["asyncio", "trio"])
def run(request):
    return lambda main: anyio.run(main, backend=request.param)


@pytest.fixture(params=["shared", "sent"])
def way(request, monkeypatch):
    """Have payloads travel in shared memory, or over the socket."""
    if request.param == "sent":
        monkeypatch.setattr(channel, "SHARED_MIN_BYTES", 1 << 40)
    return request.param


# ---------------------------------------------------------------- one call


def test_infer_gives_a_typed_result(path):
    with Daemon(path) as daemon, Grid(path, tenant="cam") as grid:
        result = grid.infer("street", FRAME, deadline_s=5, priority=0, rungs=False, score_threshold=0.5)
        submit, payload = daemon.submits[0]
    assert result.detections[0].class_name == "vehicle"
    assert result.detections[0].box.x1 == 30
    assert (result.node, result.node_id, result.hops, result.image_size) == ("n1", "id-n1", 1, (64, 36))
    assert result.timings.queue_s == 0.001
    assert result.timings.client_s > 0
    assert result.tensors == {}
    assert (submit.model, submit.priority, submit.rungs, submit.tenant) == ("street", 0, False, "cam")
    assert 4 < submit.budget_s <= 5
    assert payload == FRAME.tobytes()
    body = msgspec.msgpack.decode(submit.body, type=RequestBody)
    assert (body.kind, body.width, body.height, body.score_threshold) == ("array", 64, 36, 0.5)


def test_tensors_travel_both_ways(path, way):
    def double(peer, message, payload):
        values = np.frombuffer(payload, "<f4") * 2
        headers = (TensorHeader(name="out", dtype="float32", shape=(500, 1000)),)
        peer.say(done(message.key, body=ResultBody(tensors=headers)), values.tobytes())

    values = np.arange(500_000, dtype=np.float32).reshape(500, 1000)
    with Daemon(path, double), Grid(path) as grid:
        result = grid.infer("street", {"in": values}, raw_outputs=True)
    assert np.array_equal(result.tensors["out"], values * 2)


def test_queries_are_answered(path):
    with Daemon(path), Grid(path) as grid:
        assert grid.status() == {"asked": "status"}
        assert grid.peers() == {"asked": "peers"}
        assert grid.models() == {"asked": "models"}
        assert grid.explain(b"\x01" * 24) == {"key": "01" * 24}
        with pytest.raises(GridError, match="no revoker"):
            grid.ask("revoke", "x")


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("deadline", JobDeadlineError),
        ("expired", JobDeadlineError),
        ("queue_full", JobRejectedError),
        ("no_room", JobRejectedError),
        ("superseded", JobRejectedError),
        ("unknown_model", UnknownModelError),
        ("cancelled", JobCancelledError),
        ("bad_input", InvalidInputError),
        ("poison", JobFailedError),
        ("model_failed", JobFailedError),
        ("lost", JobFailedError),
        ("some_new_reason", JobFailedError),
    ],
)
def test_each_reason_has_its_error(path, reason, error):
    with Daemon(path, refuse(reason, estimate_s=0.7)), Grid(path) as grid:
        with pytest.raises(error) as caught:
            grid.infer("street", FRAME)
        assert type(caught.value) is error
        if isinstance(caught.value, JobRejectedError):
            assert (caught.value.reason, caught.value.estimate_s) == (reason, 0.7)


def test_a_result_that_does_not_fit_its_payload_is_a_protocol_error(path):
    def lie(peer, message, payload):
        headers = (TensorHeader(name="out", dtype="float32", shape=(10,)),)
        peer.say(done(message.key, body=ResultBody(tensors=headers)), b"1234")

    with Daemon(path, lie), Grid(path) as grid, pytest.raises(ProtocolError, match="40 bytes"):
        grid.infer("street", FRAME)


# ---------------------------------------------------------------- deadlines, cancel, handles


def test_a_spent_deadline_is_refused_before_anything_is_sent(path):
    with Daemon(path) as daemon, Grid(path) as grid:
        for spent in (0, -1, float("nan")):
            with pytest.raises(JobDeadlineError):
                grid.infer("street", FRAME, deadline_s=spent)
        assert daemon.submits == []


def test_the_client_keeps_the_deadline_when_the_daemon_does_not(path):
    with Daemon(path, silent), Grid(path) as grid, pytest.raises(JobDeadlineError, match="has the job"):
        grid.infer("street", FRAME, deadline_s=0.05)


def test_a_handle_can_be_waited_for_asked_and_cancelled(path):
    release = threading.Event()

    def hold(peer, message, payload):
        if message.model == "held":
            assert release.wait(10)
        if message.model != "never":
            peer.say(done(message.key))

    with Daemon(path, hold) as daemon, Grid(path) as grid:
        held = grid.submit("held", FRAME)
        assert not held.done()
        with pytest.raises(TimeoutError, match="goes on"):
            held.result(timeout_s=0.02)
        release.set()
        assert held.result(timeout_s=10).key == held.key
        assert held.done()
        assert not held.cancel()
        never = grid.submit("never", FRAME)
        assert never.cancel()
        with pytest.raises(JobCancelledError):
            never.result()
        daemon.wait(lambda: daemon.cancels == [never.key])
        assert grid.infer("street", FRAME).node == "n1"
        assert grid.late_answers == 0


def test_a_late_answer_is_dropped_and_counted(path):
    late = []

    def hold(peer, message, payload):
        late.append(message.key)
        if len(late) == 2:
            for key in late:
                peer.say(done(key))

    with Daemon(path, hold), Grid(path) as grid:
        with pytest.raises(JobDeadlineError):
            grid.infer("street", FRAME, deadline_s=0.02)
        assert grid.infer("street", FRAME).key.endswith(b"\x02")
        assert grid.late_answers == 1


def test_nothing_of_an_answered_job_is_kept(path):
    with Daemon(path), Grid(path) as grid:
        frame = np.zeros((36, 64, 3), np.uint8)
        is_alive = weakref.ref(frame)
        grid.infer("street", {"x": frame})
        del frame
        assert is_alive() is None


def test_many_threads_share_one_connection(path):
    with Daemon(path) as daemon, Grid(path) as grid:
        keys = []

        def work():
            for _ in range(20):
                keys.append(grid.infer("street", FRAME, deadline_s=20).key)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(keys) == len(set(keys)) == 160
        assert len(daemon.peers) == 1


def test_an_answer_that_came_while_nobody_looked_is_in_time(path, monkeypatch):
    answered = threading.Event()

    def note(peer, message, payload):
        peer.say(done(message.key))
        answered.set()

    with Daemon(path, note), Grid(path) as grid:
        handle = grid.submit("street", FRAME, deadline_s=1)
        assert answered.wait(10)
        monkeypatch.setattr(carrier, "monotonic", lambda: monotonic() + 100)
        assert handle.result().key == handle.key


def test_an_interrupt_while_reading_drops_the_connection_and_the_job(path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with Daemon(path) as daemon, Grid(path) as grid:
        grid.infer("street", FRAME)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "received", interrupt)
            with pytest.raises(KeyboardInterrupt):
                grid.infer("street", FRAME)
        assert not grid._session.is_open
        assert grid.infer("street", FRAME).node == "n1"
        assert len(daemon.peers) == 2


@pytest.mark.parametrize("frame", [FRAME, np.zeros((2000, 2000, 3), np.uint8)])
def test_a_leading_thread_wakes_for_what_others_need(path, frame, way):
    with Daemon(path, silent) as daemon, Grid(path) as grid:
        held = grid.submit("street", FRAME)
        leader = threading.Thread(target=wait_for_end, args=(held,))
        leader.start()
        while not grid._carrier.is_led:
            os.sched_yield()
        began_s = monotonic()
        with pytest.raises(JobDeadlineError):
            grid.infer("street", frame, deadline_s=0.3)
        assert monotonic() - began_s < PING_S - 0.1
        assert len(daemon.submits) == 2
        held.cancel()
        leader.join(10)
        assert not leader.is_alive()


def test_threads_that_wait_sleep_until_their_own_wait_is_over(path, monkeypatch):
    turns = []

    def follow(self, *args):
        turns.append(threading.get_ident())
        follow_once(self, *args)

    follow_once = Carrier._follow
    monkeypatch.setattr(Carrier, "_follow", follow)
    count = 12
    with Daemon(path, silent) as daemon, Grid(path) as grid:
        handles = [grid.submit("street", FRAME) for _ in range(count)]
        threads = [threading.Thread(target=handle.result) for handle in handles]
        for thread in threads:
            thread.start()
        while not grid._carrier.is_led or len(grid._carrier._followers) < count - 1:
            os.sched_yield()
        for handle, thread in reversed(list(zip(handles, threads, strict=True))):
            daemon.peers[0].say(done(handle.key))
            thread.join(10)
            assert not thread.is_alive()
    assert len(turns) < 2 * count


@pytest.mark.parametrize("number", [0, 1])
def test_a_cancel_ends_the_wait_of_another_thread_though_the_daemon_is_mute(path, number):
    class Mute(Daemon):
        def _handle(self, peer, message, payload):
            if not isinstance(message, CancelJob):
                super()._handle(peer, message, payload)

    with Mute(path, silent), Grid(path) as grid:
        handles = [grid.submit("street", FRAME) for _ in range(2)]
        threads = [threading.Thread(target=wait_for_end, args=(handle,)) for handle in handles]
        threads[0].start()
        while not grid._carrier.is_led:
            os.sched_yield()
        threads[1].start()
        while not grid._carrier._followers:
            os.sched_yield()
        handles[number].cancel()
        threads[number].join(PING_S / 2)
        assert not threads[number].is_alive()
        handles[1 - number].cancel()
        threads[1 - number].join(PING_S / 2)
        assert not threads[1 - number].is_alive()


def wait_for_end(handle):
    with contextlib.suppress(JobCancelledError):
        handle.result()


def test_large_payloads_flow_both_ways_at_once(path, way):
    def echo(peer, message, payload):
        headers = (TensorHeader(name="out", dtype="uint8", shape=(len(payload),)),)
        peer.say(done(message.key, body=ResultBody(tensors=headers)), payload)

    frame = np.random.default_rng(1).integers(0, 255, (1000, 1000, 3), np.uint8)
    with Daemon(path, echo), Grid(path) as grid:
        handles = [grid.submit("street", frame) for _ in range(8)]
        assert all(np.array_equal(handle.result().tensors["out"], frame.ravel()) for handle in handles)


def test_close_ends_open_jobs(path):
    with Daemon(path, silent):
        grid = Grid(path)
        handle = grid.submit("street", FRAME)
        ends = []

        def wait():
            try:
                handle.result()
            except JobCancelledError as error:
                ends.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        grid.close()
        waiter.join(10)
        grid.close()
        assert "closed" in str(ends[0])
        with pytest.raises(GridError, match="closed"):
            grid.infer("street", FRAME)


# ---------------------------------------------------------------- lost and draining daemons


def test_no_daemon_at_all_is_told_at_once_with_the_sockets_and_the_remedy(tmp_path):
    sockets = [tmp_path / "x.sock", tmp_path / "y.sock"]
    with Grid(sockets) as grid:
        for _ in range(2):
            with pytest.raises(DaemonUnreachableError) as caught:
                grid.infer("street", FRAME)
            assert all(str(path) in str(caught.value) for path in sockets)
            assert "gridnode run" in str(caught.value)
            assert "GRIDNODE_SOCKET" in str(caught.value)
        with pytest.raises(DaemonUnreachableError):
            grid.status()


def test_a_daemon_that_starts_later_is_found(path):
    with Grid(path) as grid:
        with pytest.raises(DaemonUnreachableError):
            grid.infer("street", FRAME)
        with Daemon(path):
            assert grid.infer("street", FRAME).node == "n1"


def test_a_lost_daemon_costs_no_job(tmp_path):
    first, second = tmp_path / "a.sock", tmp_path / "b.sock"
    with Daemon(second) as other, Daemon(first, silent, entries=(str(second),)) as daemon, Grid(first) as grid:
        handles = [grid.submit("street", FRAME, deadline_s=20) for _ in range(5)]
        daemon.wait(lambda: len(daemon.submits) == 5)
        daemon.stop()
        assert [handle.result().key for handle in handles] == [handle.key for handle in handles]
        assert [m.key for m, _ in other.submits] == [handle.key for handle in handles]
        assert all(message.budget_s < 20 for message, _ in other.submits)
        assert all(payload == FRAME.tobytes() for _, payload in other.submits)
        assert grid.resubmissions == 5


def test_a_restarted_daemon_gets_the_open_jobs_again(path):
    with Grid(path) as grid:
        with Daemon(path, silent) as daemon:
            handle = grid.submit("street", FRAME)
            daemon.wait(lambda: daemon.submits)
        with Daemon(path):
            assert handle.result().key == handle.key


def test_a_job_ends_when_its_daemon_does_not_come_back(path):
    with Grid(path, patience_s=0.1) as grid:
        with Daemon(path):
            grid.infer("street", FRAME)
        with pytest.raises(DaemonUnreachableError, match="cannot be connected to"):
            grid.infer("street", FRAME, deadline_s=0.1)
        with pytest.raises(DaemonUnreachableError):
            grid.infer("street", FRAME)


def test_a_job_given_back_by_a_draining_daemon_goes_to_another(tmp_path):
    first, second = tmp_path / "a.sock", tmp_path / "b.sock"
    give_back = refuse("draining", entries=(str(second),))
    with Daemon(second) as other, Daemon(first, give_back), Grid(first) as grid:
        result = grid.infer("street", FRAME)
        assert grid.infer("street", FRAME).node == "n1"
        assert other.submits[0][0].key == result.key
        assert len(other.submits) == 2


def test_goodbye_moves_new_jobs_on_and_lets_open_ones_finish(tmp_path):
    first, second = tmp_path / "a.sock", tmp_path / "b.sock"
    held = []

    def hold(peer, message, payload):
        peer.say(Goodbye(reason="draining", entries=(str(second),)))
        with daemon.changed:
            held.append((peer, message))
            daemon.changed.notify_all()

    with Daemon(second) as other, Daemon(first, hold) as daemon, Grid(first) as grid:
        handle = grid.submit("street", FRAME)
        daemon.wait(lambda: held)
        assert not handle.done()
        assert grid.infer("street", FRAME).key == other.submits[0][0].key
        held[0][0].say(done(handle.key, node="old"))
        assert handle.result().node == "old"
        assert len(other.submits) == 1
        assert grid.resubmissions == 0


def test_draining_everywhere_is_told_at_once(path):
    with Daemon(path, refuse("draining")), Grid(path) as grid:
        for _ in range(3):
            with pytest.raises(DrainingError, match="submit later"):
                grid.infer("street", FRAME, deadline_s=60.0)
        with pytest.raises(DrainingError):
            grid.status()


def test_an_option_that_there_is_not_is_a_type_error_before_anything_is_sent(path):
    with Daemon(path) as daemon, Grid(path, tenant="shop") as grid:
        for call in (grid.infer, grid.submit):
            with pytest.raises(TypeError, match="prioriti"):
                call("street", FRAME, prioriti=1)
        with pytest.raises(TypeError, match="prioriti"):
            grid.stream([FRAME], model="street", prioriti=1)
        assert not daemon.submits
        for tenant, told in ((None, "shop"), ("bakery", "bakery"), ("", "")):
            grid.infer("street", FRAME, tenant=tenant)
            assert daemon.submits[-1][0].tenant == told


def test_a_goodbye_that_nobody_read_before_the_daemon_went_is_read_then(path):
    def last_answer(peer, message, payload):
        answer(peer, message, payload)
        peer.say(Goodbye(reason="draining"))
        has_said_it.set()

    has_said_it = threading.Event()
    with Grid(path) as grid:
        with Daemon(path, last_answer):
            grid.submit("street", FRAME)
            assert has_said_it.wait(10)
        began_s = time.monotonic()
        with pytest.raises(DrainingError, match="is shutting down"):
            grid.infer("street", FRAME, deadline_s=60.0)
        assert time.monotonic() - began_s < 5.0


def test_async_draining_everywhere_is_told_at_once(path, run):
    async def main():
        async with AsyncGrid(path) as grid:
            for _ in range(3):
                with pytest.raises(DrainingError, match="submit later"):
                    await grid.infer("street", FRAME, deadline_s=60.0)

    with Daemon(path, refuse("draining")):
        run(main)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 64,
        b"\0\0\0\x05\0\0\0\0hello",
        encode_frame(Goodbye(reason="you broke the protocol")),
        encode_frame(done(b"\x07" * 24)),
    ],
)
def test_garbage_costs_a_connection_and_no_job(path, garbage):
    spoilt = itertools.count()

    def spoil(peer, message, payload):
        if next(spoilt) == 0:
            peer.say_raw(garbage)
        else:
            peer.say(done(message.key))

    with Daemon(path, spoil) as daemon, Grid(path) as grid:
        assert grid.infer("street", FRAME).node == "n1"
        assert len(daemon.peers) == 2


def test_a_job_that_takes_its_daemon_down_each_time_ends_as_lost(path):
    with Daemon(path, lambda peer, message, payload: peer.hang_up()), Grid(path) as grid:
        with pytest.raises(JobFailedError) as caught:
            grid.infer("street", FRAME)
        assert caught.value.reason == "lost"


def test_another_version_is_named(path):
    hello = ServerHello(version=3, node="id", name="n1", grid="g")
    with Daemon(path, hello=hello), Grid(path) as grid, pytest.raises(ProtocolError, match="version 3"):
        grid.infer("street", FRAME)


# ---------------------------------------------------------------- shared memory


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_large_payloads_lie_in_one_memory_and_small_ones_are_sent(path):
    shares = []

    def adopt(peer, message):
        shares.append(message)
        peer.adopt(message)

    with Daemon(path, on_share=adopt) as daemon, Grid(path) as grid:
        grid.infer("street", np.zeros((2, 2, 3), np.uint8))
        assert not shares
        for _ in range(3):
            grid.infer("street", FRAME)
        places = [message.place for message, _ in daemon.submits]
    assert places == [None, 0, 0, 0], "a block is used again once its job was answered"
    assert len(shares) == 1


@pytest.mark.parametrize("give_up", ["cancel", "deadline"])
def test_a_block_is_the_daemons_until_it_told_the_outcome(path, give_up):
    asked = threading.Event()
    release = threading.Event()

    def hold(peer, message, payload):
        if message.model != "held":
            peer.say(done(message.key))

    class Slow(Daemon):
        def _handle(self, peer, message, payload):
            if isinstance(message, CancelJob):
                asked.set()
                assert release.wait(10)
            super()._handle(peer, message, payload)

    with Slow(path, hold) as daemon, Grid(path) as grid:
        held = grid.submit("held", FRAME, deadline_s=0.05 if give_up == "deadline" else None)
        if give_up == "cancel":
            held.cancel()
        with pytest.raises(GridError):
            held.result()
        if give_up == "cancel":
            assert asked.wait(10)
            release.set()
            during = grid.submit("street", FRAME)
        else:
            during = grid.submit("street", FRAME)
            daemon.wait(lambda: len(daemon.submits) == 2)
            daemon.peers[0].say(JobError(key=held.key, reason="expired", message=""))
        during.result()
        grid.infer("street", FRAME)
        grid.infer("street", FRAME)
        places = [message.place for message, _ in daemon.submits]
    assert places[0] == 0
    assert places[1] != 0
    assert places[3] == 0


def test_a_job_sent_again_lies_in_the_memory_of_its_new_connection(tmp_path):
    first, second = tmp_path / "a.sock", tmp_path / "b.sock"
    frames = [np.full((40, 50, 3), number, np.uint8) for number in range(5)]
    with Daemon(second) as other, Daemon(first, silent, entries=(str(second),)) as daemon, Grid(first) as grid:
        handles = [grid.submit("street", frame) for frame in frames]
        daemon.wait(lambda: len(daemon.submits) == 5)
        daemon.stop()
        assert all(handle.result() for handle in handles)
        assert all(message.place is not None for message, _ in other.submits)
        assert [payload for _, payload in other.submits] == [frame.tobytes() for frame in frames]


def test_what_finds_no_room_in_memory_is_sent(path):
    frame = np.random.default_rng(2).integers(0, 255, (1000, 1400, 3), np.uint8)
    with Daemon(path, silent) as daemon, Grid(path) as grid:
        handles = [grid.submit("street", frame) for _ in range(9)]
        daemon.wait(lambda: len(daemon.submits) == 9)
        assert [message.place is None for message, _ in daemon.submits] == [False] * 7 + [True] * 2
        assert all(payload == frame.tobytes() for _, payload in daemon.submits)
        for handle in handles:
            handle.cancel()


def test_without_shared_memory_payloads_are_sent(path, monkeypatch):
    def refuse(*args):
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", refuse)
    with Daemon(path) as daemon, Grid(path) as grid:
        assert grid.infer("street", FRAME).node == "n1"
        assert [(message.place, payload) for message, payload in daemon.submits] == [(None, FRAME.tobytes())]


def test_a_daemon_that_cannot_take_memory_costs_one_connection(path):
    def refuse_memory(peer, message):
        peer.say(Goodbye(reason="shared memory cannot be mapped"))
        raise OSError("the daemon hangs up")

    with Daemon(path, on_share=refuse_memory) as daemon, Grid(path) as grid:
        assert grid.infer("street", FRAME).node == "n1"
        assert daemon.submits[-1][0].place is None
        assert len(daemon.peers) == 2


def test_threads_do_not_mix_their_payloads_up(path):
    def checksum(peer, message, payload):
        headers = (TensorHeader(name="sum", dtype="int64", shape=(1,)),)
        peer.say(done(message.key, body=ResultBody(tensors=headers)), zlib.crc32(payload).to_bytes(8, "little"))

    wrong = []

    def work(number):
        numbers = np.random.default_rng(number)
        for _ in range(15):
            values = numbers.integers(0, 255, numbers.integers(1, 60_000), np.uint8)
            found = grid.infer("street", {"x": values}, raw_outputs=True).tensors["sum"][0]
            if found != zlib.crc32(values.tobytes()):
                wrong.append(len(values))

    with Daemon(path, checksum), Grid(path) as grid:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_closed_grid_leaves_no_descriptor_behind(path, run):
    async def main():
        async with AsyncGrid(path) as grid:
            await grid.infer("street", FRAME)

    before = descriptors()
    with Daemon(path):
        with Grid(path) as grid:
            grid.infer("street", FRAME)
        run(main)
    assert descriptors() == before


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("mode", ["newest", "all"])
def test_a_stream_gives_each_frame_one_outcome_in_order(path, mode):
    with Daemon(path) as daemon, Grid(path) as grid:
        items = list(grid.stream([FRAME] * 30, model="street", mode=mode, in_flight=3))
        assert [item.frame for item in items] == list(range(30))
        assert all((item.result is not None) + (item.error is not None) + item.skipped == 1 for item in items)
        assert len(daemon.submits) == sum(not item.skipped for item in items)
        assert items[-1].result is not None
        if mode == "all":
            assert not any(item.skipped for item in items)
        assert len({message.stream for message, _ in daemon.submits}) == 1


def test_newest_skips_while_the_window_is_full(path):
    release = threading.Event()

    def hold(peer, message, payload):
        assert release.wait(10)
        peer.say(done(message.key))

    def source():
        for number in range(10):
            yield FRAME
            if number == 0:
                daemon.wait(lambda: daemon.submits)
        release.set()

    with Daemon(path, hold) as daemon, Grid(path) as grid:
        items = list(grid.stream(source(), model="street", mode="newest", in_flight=1))
    assert [item.frame for item in items if item.result] == [0, 9]
    assert [item.frame for item in items if item.skipped] == list(range(1, 9))


def test_a_stream_keeps_errors_with_their_frame(path):
    def picky(peer, message, payload):
        peer.say(
            JobError(key=message.key, reason="queue_full", message="") if message.frame == 1 else done(message.key)
        )

    frames = [FRAME, FRAME, np.zeros((2, 2), np.float32), 7, FRAME]
    with Daemon(path, picky), Grid(path) as grid:
        items = list(grid.stream(frames, model="street", mode="all"))
    kinds = [type(item.error) for item in items]
    assert kinds == [type(None), JobRejectedError, InvalidInputError, TypeError, type(None)]


def test_a_frame_superseded_in_the_grid_counts_as_skipped(path):
    with Daemon(path, refuse("superseded")), Grid(path) as grid:
        (item,) = grid.stream([FRAME], model="street")
        assert (item.frame, item.skipped, item.error, item.result) == (0, True, None, None)


def test_an_error_of_the_source_comes_after_its_frames(path):
    def source():
        yield FRAME
        raise RuntimeError("camera unplugged")

    with Daemon(path), Grid(path) as grid:
        stream = grid.stream(source(), model="street", mode="all")
        assert next(stream).result is not None
        with pytest.raises(RuntimeError, match="unplugged"):
            next(stream)


def test_leaving_a_stream_cancels_what_is_in_the_grid(path):
    def first_only(peer, message, payload):
        if message.frame == 0:
            peer.say(done(message.key))

    with Daemon(path, first_only) as daemon, Grid(path) as grid:
        stream = grid.stream(itertools.repeat(FRAME), model="street", mode="all", in_flight=2)
        assert next(stream).frame == 0
        daemon.wait(lambda: len(daemon.submits) == 3)
        stream.close()
        daemon.wait(lambda: len(daemon.cancels) >= 2)


def test_wrong_stream_arguments_are_refused_at_once(path):
    with Grid(path) as grid:
        with pytest.raises(ValueError, match="newest"):
            grid.stream([], model="street", mode="latest")
        with pytest.raises(ValueError, match="in_flight"):
            grid.stream([], model="street", in_flight=0)


# ---------------------------------------------------------------- async


def test_async_infer_and_queries(path, run):
    async def main():
        async with AsyncGrid(path) as grid:
            result = await grid.infer("street", FRAME, deadline_s=5)
            assert result.detections[0].class_name == "vehicle"
            assert await grid.status() == {"asked": "status"}
            assert await grid.explain(result.key) == {"key": result.key.hex()}
            with pytest.raises(JobDeadlineError):
                await grid.infer("street", FRAME, deadline_s=0)
            handle = await grid.submit("street", FRAME)
            assert (await handle.result()).key == handle.key
            assert handle.done()
            assert not handle.cancel()

    with Daemon(path):
        run(main)


def test_async_errors_leave_the_block_unwrapped(path, run):
    async def main():
        async with AsyncGrid(path) as grid:
            await grid.infer("street", FRAME)

    with Daemon(path, refuse("unknown_model")), pytest.raises(UnknownModelError):
        run(main)
    with pytest.raises(DaemonUnreachableError):
        run(main)


def test_async_cancellation_reaches_the_daemon_and_spares_the_connection(path, run, way):
    frame = np.zeros((1500, 1500, 3), np.uint8)

    def hold(peer, message, payload):
        if message.model == "street":
            peer.say(done(message.key))

    async def main():
        async with AsyncGrid(path) as grid:
            await grid.status()  # a job cancelled before the daemon's hello is never sent
            for _ in range(3):
                with anyio.move_on_after(0.02) as scope:
                    await grid.infer("never", frame)
                assert scope.cancelled_caught
            assert (await grid.infer("street", frame)).node == "n1"
            with anyio.fail_after(10):
                await anyio.to_thread.run_sync(daemon.wait, lambda: len(daemon.cancels) == 3)
            handle = await grid.submit("never", FRAME)
            with pytest.raises(TimeoutError):
                await handle.result(timeout_s=0.01)
            assert handle.cancel()
            with pytest.raises(JobCancelledError):
                await handle.result()

    with Daemon(path, hold) as daemon:
        run(main)
        assert len(daemon.peers) == 1
        assert all(len(payload) in (frame.nbytes, FRAME.nbytes) for _, payload in daemon.submits)


def test_async_calls_run_side_by_side(path, run, way):
    frame = np.zeros((600, 600, 3), np.uint8)

    async def main():
        keys = []

        async def work():
            keys.append((await grid.infer("street", frame, deadline_s=20)).key)

        async with AsyncGrid(path) as grid:
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(work)
            assert len(set(keys)) == 20

    with Daemon(path):
        run(main)


def test_async_deadline_is_kept_when_the_daemon_does_not(path, run):
    async def main():
        async with AsyncGrid(path) as grid:
            with pytest.raises(JobDeadlineError, match="has the job"):
                await grid.infer("street", FRAME, deadline_s=0.05)

    with Daemon(path, silent):
        run(main)


def test_async_deadline_sooner_than_all_before_is_kept(path, run):
    async def main():
        async with AsyncGrid(path) as grid:
            await grid.submit("street", FRAME)
            await anyio.to_thread.run_sync(daemon.wait, lambda: daemon.submits)
            began_s = monotonic()
            with pytest.raises(JobDeadlineError):
                await grid.infer("street", FRAME, deadline_s=0.05)
            assert monotonic() - began_s < PING_S - 0.1

    with Daemon(path, silent) as daemon:
        run(main)


def test_async_lost_daemon_costs_no_job(tmp_path, run):
    first, second = tmp_path / "a.sock", tmp_path / "b.sock"

    async def main():
        async with AsyncGrid([first, second]) as grid:
            handles = [await grid.submit("street", FRAME, deadline_s=20) for _ in range(5)]
            await anyio.to_thread.run_sync(daemon.wait, lambda: len(daemon.submits) == 5)
            await anyio.to_thread.run_sync(daemon.stop)
            assert [(await handle.result()).key for handle in handles] == [handle.key for handle in handles]
            assert grid.resubmissions == 5

    with Daemon(second), Daemon(first, silent) as daemon:
        run(main)


def test_async_draining_moves_on(tmp_path, run):
    first, second = tmp_path / "a.sock", tmp_path / "b.sock"

    async def main():
        async with AsyncGrid(first) as grid:
            assert (await grid.infer("street", FRAME)).node == "n1"

    with Daemon(second) as other, Daemon(first, refuse("draining", entries=(str(second),))):
        run(main)
        assert len(other.submits) == 1


@pytest.mark.parametrize("mode", ["newest", "all"])
@pytest.mark.parametrize("is_async", [True, False])
def test_async_stream_gives_each_frame_one_outcome_in_order(path, run, mode, is_async):
    async def source():
        for _ in range(30):
            yield FRAME
            await anyio.lowlevel.checkpoint()

    async def main():
        async with AsyncGrid(path) as grid:
            frames = source() if is_async else [FRAME] * 30
            items = [item async for item in grid.stream(frames, model="street", mode=mode, in_flight=3)]
        assert [item.frame for item in items] == list(range(30))
        assert all((item.result is not None) + (item.error is not None) + item.skipped == 1 for item in items)
        assert items[-1].result is not None
        if mode == "all":
            assert not any(item.skipped for item in items)

    with Daemon(path):
        run(main)


def test_async_stream_can_be_left_early(path, run):
    def first_only(peer, message, payload):
        if message.frame == 0:
            peer.say(done(message.key))

    async def source():
        while True:
            yield FRAME
            await anyio.lowlevel.checkpoint()

    async def main():
        async with AsyncGrid(path) as grid:
            async with grid.stream(source(), model="street", mode="all", in_flight=2) as stream:
                async for item in stream:
                    assert item.frame == 0
                    break
                await anyio.to_thread.run_sync(daemon.wait, lambda: len(daemon.submits) == 3)
            await anyio.to_thread.run_sync(daemon.wait, lambda: len(daemon.cancels) >= 2)
            assert await grid.status()

    with Daemon(path, first_only) as daemon:
        run(main)


def test_async_stream_hands_over_the_sources_error(path, run):
    async def source():
        yield FRAME
        raise RuntimeError("camera unplugged")

    async def main():
        async with AsyncGrid(path) as grid:
            stream = grid.stream(source(), model="street", mode="all")
            assert (await anext(stream)).result is not None
            with pytest.raises(RuntimeError, match="unplugged"):
                await anext(stream)

    with Daemon(path):
        run(main)


def test_async_grid_must_be_entered(run):
    async def main():
        with pytest.raises(GridError, match="async with"):
            await AsyncGrid("/nowhere").infer("street", FRAME)

    run(main)


# ---------------------------------------------------------------- as a program sees it


def test_default_sockets_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GRIDNODE_SOCKET", "/a.sock:/b.sock")
    assert default_sockets() == ("/a.sock", "/b.sock")
    monkeypatch.delenv("GRIDNODE_SOCKET")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert str(tmp_path / "gridnode.sock") in default_sockets()
    (tmp_path / "gridnode.sock").touch()
    assert str(tmp_path / "gridnode.sock") in default_sockets()


def test_the_client_works_beside_a_programs_own_modules_and_loads_nothing_heavy(path, tmp_path):
    for name in ("models", "scheduler", "transport", "simulator"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module was imported')\n")
    picture = tmp_path / "frame.jpg"
    Image.fromarray(FRAME).save(picture)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "from gridnode.client import Grid\n"
        f"with Grid({str(path)!r}) as grid:\n"
        "    print(len(grid.infer('street', 'frame.jpg').detections))\n"
        "heavy = {'numpy', 'PIL', 'trio', 'asyncio', 'anyio', 'ssl'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from gridnode.client import AsyncGrid\n"
        "assert AsyncGrid\n"
    )
    with Daemon(path):
        finished = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert finished.stdout == "1\n", finished.stderr
