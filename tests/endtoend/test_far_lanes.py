"""Programs whose requests all run at one peer: lanes through their daemon, and nothing is noticed but the speed.

Daemon "entry" runs no model; "one" does, and for some tests "two", too; "n1" lets them in and has the models' bytes.
Model "peak" answers with the largest of the numbers that it is given: each request asks for another one, so an answer
tells which request it belongs to.
"""

import contextlib
import fcntl
import functools
import itertools
import operator
import os
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter, deque
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
import trio
from onnx import TensorProto, helper
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gridnode.client import AsyncGrid, Grid
from gridnode.control import (
    PREFIX_BYTES,
    ClientHello,
    JobDone,
    OpenLane,
    RequestBody,
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
from gridnode.errors import GridError
from gridnode.lanes import RUNS
from gridnode.simulation.recorded import read_recording
from models.golden import encode_golden
from models.laneprotocol import PASSED_MAX, LaneRequest
from models.manifest import CHUNK_SIZE_BYTES, Golden, Manifest, TensorSpec, canonical_bytes, describe_shard
from models.owner import OwnerRepository

pytestmark = pytest.mark.slow

SETTINGS = ('runtime.models=["tiny"]',)
ROLES = {
    "one": ('runtime.models=["tiny","peak","wide"]',),
    "two": ('runtime.models=["peak","wide"]',),
    "entry": ("runtime.models=[]", "trace.path=jobs.trace"),
    "other": ("runtime.models=[]",),
}
BY_LANE = "by a lane, on a ticket"
MANY = 150
"""Requests that are enough for a lane, a few tickets and the way there."""
SIZE = 150_000
"""Numbers in a request of 600 kB."""
WIDE = 20_000
"""Numbers in an answer that fits no packet."""
ANSWERED_S = 4.0
"""Longest that a request may take whose executor falls silent; 0.6 s on a machine that has nothing else to do."""
FLOWS_S = 30.0
"""How long a program may take to be given a lane: the core must see one peer as the best, again and again."""


# ---------------------------------------------------------------- models


def graph_of(name, output_shape, nodes, constants=()):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)
    graph = helper.make_graph(nodes, name, [x], [y], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


def peak():
    return graph_of("peak", [1], [helper.make_node("ReduceMax", ["x"], ["y"], keepdims=1)])


def wide():
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [WIDE])
    nodes = [helper.make_node("ReduceMax", ["x"], ["p"], keepdims=1), helper.make_node("Expand", ["p", "shape"], ["y"])]
    return graph_of("wide", [WIDE], nodes, [shape])


def trough():
    nodes = [helper.make_node("Neg", ["x"], ["m"]), helper.make_node("ReduceMax", ["m"], ["y"], keepdims=1)]
    return graph_of("trough", [1], nodes)


def describe(grid, name, model, output_size, *, version=1):
    """Give n1 the bytes of a model; returns its manifest."""
    x = np.array([-3, 0, 3], "f")  # whose extremes are alike
    shards = {
        f"{name}.onnx": model.SerializeToString(),
        "golden": encode_golden({"x": x}, {"y": np.full(output_size, 3.0, "f")}),
    }
    described = []
    grid["n1"].state.incoming.mkdir(exist_ok=True)
    for shard, data in shards.items():
        pieces = [data[start : start + CHUNK_SIZE_BYTES] for start in range(0, len(data), CHUNK_SIZE_BYTES)]
        described.append(describe_shard(shard, pieces))
        (grid["n1"].state.incoming / described[-1].sha256).write_bytes(data)
    return Manifest(
        name=name,
        version=version,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1,)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(output_size,)),),
        peak_memory_bytes=64 << 20,
        graph=f"{name}.onnx",
        golden=Golden(shard="golden"),
        shards=tuple(described),
    )


def publish(grid, *manifests):
    """Publish models, or new versions of them, by n1, which holds their bytes; returns their digests by name."""
    owner = OwnerRepository(grid.owner, grid.owner / "repository")
    digests = {each.name: owner.publish_model(canonical_bytes(each), time.time()) for each in manifests}
    grid["n1"].state.inbox.write_bytes(owner.publication())
    grid["n1"].ask("reload_trust")
    return digests


def state_of(daemon, digest):
    return next((model["state"] for model in daemon.ask("models")["items"] if model["digest"] == digest), None)


# ---------------------------------------------------------------- daemons


def looks_at(daemon, executor, model):
    """Say whether a daemon considers an executor for a request to a model."""
    with daemon.client() as grid:
        [result] = ask(grid, size=1, model=model)
        [decision] = grid.explain(result.key)["items"]
        return executor in {candidate["name"] for candidate in decision["candidates"]}


class Fleet:
    """The grid of this module."""

    def __init__(self, grid, wait_until):
        self.grid = grid
        self.wait_until = wait_until
        self.digests = {}
        self.entry = None

    def __getitem__(self, name):
        return self.grid[name]

    def add(self, name):
        daemon = self.grid.join(name)
        self.start(daemon)
        return daemon

    def start(self, daemon):
        """Start a daemon, and wait until it has its part: the models that it is to run, or peers that run them."""
        daemon.start(settings=ROLES[daemon.name])
        state = "ready" if daemon.name in ("one", "two") else "unwanted"
        for digest in self.digests.values():
            self.wait_until(lambda digest=digest: state_of(daemon, digest) == state, 40.0)
        lives = [each for each in self.grid.daemons.values() if each.is_alive()]
        for each in lives:
            each.wait_peers(len(lives) - 1)
        executors = {"one", "two"} & {each.name for each in lives}
        for entry, model, executor in itertools.product({daemon.name, "entry"} - executors, self.digests, executors):
            if entry in self.grid.daemons and self.grid[entry].is_alive():
                self.wait_until(functools.partial(looks_at, self.grid[entry], executor, model))

    def wait_row(self, program, count=60):
        """Wait until so many more of a program's requests have come by a lane."""
        start = self.entry.ask()["by_lane"]
        self.wait_until(lambda: self.entry.ask()["by_lane"] >= start + count or program.errors, FLOWS_S)
        assert not program.errors


@pytest.fixture(scope="module")
def fleet(real_grid, wait_until):
    fleet = Fleet(real_grid, wait_until)
    models = describe(real_grid, "peak", peak(), 1), describe(real_grid, "wide", wide(), WIDE)
    fleet.digests = publish(real_grid, *models)
    fleet.add("one")
    fleet.entry = fleet.add("entry")
    return fleet


def have(fleet, name):
    """Have a daemon that runs."""
    if name not in fleet.grid.daemons:
        fleet.add(name)
    elif not fleet[name].is_alive():
        fleet.start(fleet[name])
    return fleet[name]


@pytest.fixture
def second(fleet):
    """Have two executors."""
    have(fleet, "one")
    return have(fleet, "two")


@pytest.fixture
def alone(fleet):
    """Have one executor only."""
    one = have(fleet, "one")
    if "two" in fleet.grid.daemons and fleet["two"].is_alive():
        assert fleet["two"].stop() == 0
        fleet.wait_until(lambda: not looks_at(fleet.entry, "two", "peak"))
    return one


def worker_of(daemon, model="peak"):
    [worker] = [each for each in daemon.ask()["workers"] if each["model"] == model]
    return worker["pid"]


def difference(before, after, *names):
    return [after[name] - before[name] for name in names]


def metrics_of(daemon):
    address = daemon.ask()["metrics_address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


# ---------------------------------------------------------------- programs

NUMBERS = itertools.count(1)
"""What requests ask for; each one for another number, of which float32 has 16 million."""


def request(size=SIZE):
    """Return a request whose answer is its last number."""
    number = next(NUMBERS)
    x = np.zeros(size, "f")
    x[-1] = number
    return number, {"x": x}


def check(result, number, size=1):
    assert result.tensors["y"].shape == (size,)
    assert np.all(result.tensors["y"] == number)


def check_origin(result, name, node):
    """Check what an answer of a peer says of its way."""
    timings = result.timings
    assert (result.node, result.node_id, result.hops) == (name, node, 1)
    assert timings.transfer_s >= 0.0
    parts = timings.queue_s + timings.service_s + timings.transfer_s
    assert timings.total_s == pytest.approx(parts, abs=1e-6)


def ask(grid, count=1, *, size=SIZE, model="peak"):
    """Ask for one thing after another; returns the results."""
    results = []
    for _ in range(count):
        number, inputs = request(size)
        results.append(grid.infer(model, inputs, deadline_s=10.0))
        check(results[-1], number, WIDE if model == "wide" else 1)
    return results


class Load:
    """A program in a thread that keeps a node busy with runs of milliseconds."""

    AT_ONCE = 30
    """Jobs; at a slow node, too, they wait for less than it takes others' jobs for."""

    def __init__(self, daemon):
        self._socket = str(daemon.socket)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(60.0)

    def _run(self):
        x = np.zeros((1, 3, 128, 128), "f")
        jobs = deque()
        with Grid(self._socket) as grid:
            while jobs or not self._stop.is_set():
                while len(jobs) < self.AT_ONCE and not self._stop.is_set():
                    jobs.append(grid.submit("tiny", {"x": x}, deadline_s=60.0))
                jobs.popleft().result()
                self.answered += 1


class Program:
    """A program in a thread that asks for one thing after another until it is told to stop."""

    def __init__(self, *daemons, size=SIZE, deadline_s=10.0):
        self._sockets = [str(daemon.socket) for daemon in daemons]
        self._size = size
        self._deadline_s = deadline_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self.keys = []
        self.recent = []
        """(time, node, time taken) of each answer."""
        self.errors = []
        self.late_answers = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.finish()

    def finish(self):
        self._stop.set()
        self._thread.join(60.0)
        assert not self._thread.is_alive()

    def _run(self):
        with Grid(self._sockets) as grid:
            while not self._stop.is_set():
                number, inputs = request(self._size)
                begun_s = time.monotonic()
                self.sent += 1
                try:
                    result = grid.infer("peak", inputs, deadline_s=self._deadline_s)
                    check(result, number)
                except (GridError, AssertionError) as error:
                    self.errors.append(error)
                    if self._stop.wait(0.05):  # nobody may be there for a while
                        break
                else:
                    now_s = time.monotonic()
                    self.keys.append(result.key)
                    self.recent.append((now_s, result.node, now_s - begun_s))
            self.late_answers = grid.late_answers

    @property
    def nodes(self):
        return Counter(node for _, node, _ in self.recent)

    def check(self):
        """Check that each request had one answer, and the right one."""
        assert not self.errors
        assert len(self.recent) == self.sent
        assert len(set(self.keys)) == len(self.keys)


# ---------------------------------------------------------------- a row of requests


@pytest.mark.parametrize("size", [1, SIZE, 1_000_000], ids=["4 bytes", "600 kB", "4 MB"])
def test_most_requests_of_a_row_come_by_the_lane_and_both_nodes_account_for_them(fleet, alone, size):
    entry = fleet.entry
    with entry.client() as grid:
        ask(grid, size=SIZE)  # memory is shared for this one
        before, at_peer = entry.ask(), alone.ask()
        results = ask(grid, MANY, size=size)
        fleet.wait_until(lambda: entry.ask()["answered"] - before["answered"] == MANY)  # told at the ticket's end
        assert grid.resubmissions == grid.late_answers == 0
        chosen = [grid.explain(result.key)["items"][-1] for result in results[-RUNS:]]
    for result in results:
        check_origin(result, alone.name, at_peer["node"])
    assert {decision["chosen"] for decision in chosen} == {alone.name}
    assert BY_LANE in {decision["reason"] for decision in chosen}
    status, afterwards = entry.ask(), alone.ask()
    assert difference(before, status, "answered", "offloaded", "executed", "received") == [MANY, MANY, 0, 0]
    [by_lane] = difference(before, status, "by_lane")
    assert by_lane > MANY / 3
    assert difference(at_peer, afterwards, "executed", "received", "by_lane") == [MANY, MANY, by_lane]
    assert status["invariant_violations"] == afterwards["invariant_violations"] == 0


def test_requests_of_tasks_come_by_the_lane_too(fleet, alone):
    before, node = fleet.entry.ask(), alone.ask()["node"]

    async def main():
        async with AsyncGrid(str(fleet.entry.socket)) as grid:
            for _ in range(MANY):
                number, inputs = request()
                result = await grid.infer("peak", inputs, deadline_s=10.0)
                check(result, number)
                check_origin(result, alone.name, node)

    trio.run(main)
    fleet.wait_until(lambda: difference(before, fleet.entry.ask(), "answered", "offloaded") == [MANY, MANY])
    assert difference(before, fleet.entry.ask(), "by_lane")[0] > MANY / 3


def test_answers_that_fit_no_packet_are_the_daemons(fleet, alone):
    before = fleet.entry.ask()
    with fleet.entry.client() as grid:
        for result in ask(grid, MANY, model="wide"):
            assert (result.node, result.hops) == (alone.name, 1)
        fleet.wait_until(lambda: difference(before, fleet.entry.ask(), "answered", "by_lane") == [MANY, 0])
        assert grid.resubmissions == grid.late_answers == 0
    with fleet.entry.client() as grid:
        ask(grid, 60)
    fleet.wait_until(lambda: fleet.entry.ask()["by_lane"] > before["by_lane"])


def test_metrics_of_both_nodes_tell_of_lanes(fleet, alone):
    names = ("gridnode_jobs_by_lane_total",), ("gridnode_jobs_answered_total", "peer")
    before, at_peer = metrics_of(fleet.entry), metrics_of(alone)
    with fleet.entry.client() as grid:
        ask(grid, MANY)
        grid.explain(b"")  # whatever it was, it is accounted for now
    after, afterwards = metrics_of(fleet.entry), metrics_of(alone)
    by_lane, answered = (after[name] - before[name] for name in names)
    assert answered == MANY
    assert by_lane > MANY / 3
    assert afterwards[names[0]] - at_peer[names[0]] == by_lane


def test_a_run_by_a_lane_can_be_explained_at_once(fleet, alone):
    with fleet.entry.client() as grid:
        reasons = Counter()
        for result in ask(grid, 60):
            [decision] = grid.explain(result.key)["items"]
            assert decision["chosen"] == alone.name
            reasons[decision["reason"]] += 1
        assert set(reasons) <= {"arrived", BY_LANE}


# ---------------------------------------------------------------- others


def test_a_second_program_at_the_entry_takes_the_ticket_back(fleet, alone):
    entry = fleet.entry
    with entry.client() as one, entry.client() as other:
        ask(one, MANY)
        start, done = (entry.ask()[name] for name in ("by_lane", "answered"))
        for _ in range(60):
            ask(other)
            ask(one)
        fleet.wait_until(lambda: entry.ask()["answered"] >= done + 120)
    assert entry.ask()["by_lane"] - start <= 2 * RUNS  # the ticket that one had, and what is told of the one before


def test_work_of_the_executors_own_comes_first_and_all_is_answered(fleet, alone):
    with Program(fleet.entry) as program:
        fleet.wait_row(program)
        with Load(alone) as load:
            fleet.wait_until(lambda: load.answered > 2 * Load.AT_ONCE)
            start = fleet.entry.ask()
            fleet.wait_until(lambda: fleet.entry.ask()["answered"] > start["answered"] + 40 or program.errors)
            while_busy = difference(start, fleet.entry.ask(), "answered", "by_lane")
        fleet.wait_row(program)
    program.check()
    assert while_busy[1] <= 20, while_busy


def test_two_entries_share_an_executor(fleet, alone):
    other = have(fleet, "other")
    received = alone.ask()["received"]
    with Program(fleet.entry) as one, Program(other) as two:
        for program in (one, two):
            fleet.wait_until(lambda program=program: len(program.recent) > 300 or program.errors)
    for program in (one, two):
        program.check()
    sent = one.sent + two.sent
    fleet.wait_until(lambda: alone.ask()["received"] - received == sent)
    assert all(node.ask()["invariant_violations"] == 0 for node in (fleet.entry, other, alone))
    assert other.stop() == 0


# ---------------------------------------------------------------- programs that leave, or say what they like


class RawProgram:
    """A program that says what it likes, with a lane of its own."""

    def __init__(self, daemon):
        self.client = os.urandom(16)
        self.count = 0
        self.ticket = None
        self.segment = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.segment, SEGMENT)
        fcntl.fcntl(self.segment, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.line = socket.socket(socket.AF_UNIX)
        self.line.settimeout(10.0)
        self.line.connect(str(daemon.socket))
        self.lane, self._other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lane.settimeout(10.0)
        self.say(ClientHello(client=self.client))
        self.hear()
        self.say(Share(segment_bytes=SEGMENT), self.segment)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for end in (self.line, self.lane, self._other):
            end.close()
        os.close(self.segment)

    def say(self, message, *descriptors):
        socket.send_fds(self.line, [encode_frame(message)], descriptors)

    def hear(self):
        """Return the next message of the daemon, and its payload."""
        header_bytes, payload_bytes = decode_prefix(self._receive(PREFIX_BYTES))
        return decode_server(self._receive(header_bytes)), self._receive(payload_bytes)

    def _receive(self, size):
        data = b""
        while len(data) < size:
            data += self.line.recv(size - len(data)) or pytest.fail("the daemon closed the connection")
        return data

    def put(self):
        """Put a request into memory; returns its key and the number that answers it."""
        self.count += 1
        os.pwrite(self.segment, np.float32(self.count).tobytes(), 0)
        return make_key(self.client, self.count), self.count

    def ask(self, key=None, number=None):
        """Ask the daemon, and check its answer; a ticket is kept."""
        if key is None:
            key, number = self.put()
        self.say(Submit(key=key, model="peak", budget_s=9.0, body=BODY, place=0, place_bytes=4))
        while True:
            message, payload = self.hear()
            if isinstance(message, Ticket):
                self.ticket = message.ticket
                continue
            assert isinstance(message, JobDone), message
            assert message.key == key
            assert np.frombuffer(payload, "f")[0] == number
            return

    def earn(self):
        """Open a lane, and ask until it has a ticket."""
        self.ask()
        self.say(OpenLane(lane=1, model="peak", rungs=True, priority=1, tenant=""), self._other.fileno())
        self._other.close()
        self.earn_again()

    def earn_again(self):
        self.ticket = None
        until_s = time.monotonic() + FLOWS_S
        while self.ticket is None:
            assert time.monotonic() < until_s
            self.ask()

    def request(self, key, **changes):
        """Return a packet for the lane."""
        fields = {"key": key, "ticket": self.ticket, "body": BODY, "offset": 0, "payload_bytes": 4, "budget_s": 9.0}
        return msgspec.msgpack.encode(LaneRequest(**fields | changes))

    def run(self):
        """Send a request by the lane; returns what comes back as a list."""
        key, number = self.put()
        self.lane.send(self.request(key))
        word = msgspec.msgpack.decode(self.lane.recv(1 << 16))
        if word[0] == "done":
            assert np.frombuffer(word[3], "f")[0] == number
        else:
            assert word == ["pass", key, False]
            self.ask(key, number)
        return word[0]


SEGMENT = 1 << 16
BODY = encode_body(RequestBody(kind="tensors", tensors=(TensorHeader(name="x", dtype="float32", shape=(1,)),)))


@pytest.fixture
def raw(fleet, alone):
    with RawProgram(fleet.entry) as program:
        program.earn()
        yield program


def is_over(lane):
    with contextlib.suppress(ConnectionResetError):
        while lane.recv(1 << 16):
            pass
    return True


def check_unharmed(fleet, raw):
    """Check that the daemon answers this program and others as ever, and gives others lanes."""
    raw.ask()
    by_lane = fleet.entry.ask()["by_lane"]
    with fleet.entry.client() as grid:
        ask(grid, 60)
    fleet.wait_until(lambda: fleet.entry.ask()["by_lane"] > by_lane)
    for name in ("entry", "one"):
        assert fleet[name].ask()["invariant_violations"] == 0


@pytest.mark.parametrize(
    "packet",
    [b"\xc1", b"\x80", b"\x91" * 1000, bytes(60_000), msgspec.msgpack.encode(["k" * 24, 1, b"", 0, 0, None])],
    ids=["no msgpack", "a map", "nested", "large", "another type"],
)
def test_a_malformed_packet_ends_the_lane_and_nothing_else(fleet, raw, packet):
    assert raw.run() == "done"
    raw.lane.send(packet)
    assert is_over(raw.lane)
    check_unharmed(fleet, raw)


def test_a_second_request_before_the_answer_ends_the_lane_and_nothing_else(fleet, raw):
    keys = [raw.put() for _ in range(40)]
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for key, _ in keys:
            raw.lane.send(raw.request(key))
    assert is_over(raw.lane)
    raw.ask(*keys[-1])
    check_unharmed(fleet, raw)


@pytest.mark.parametrize(
    "changes",
    [{"ticket": 7_000}, {"ticket": 0}, {"offset": SEGMENT}, {"offset": 1 << 62}, {"payload_bytes": SEGMENT + 1}],
    ids=["ticket", "no ticket", "after the end", "far away", "too long"],
)
def test_what_cannot_be_run_is_passed(fleet, raw, changes):
    key, number = raw.put()
    raw.lane.send(raw.request(key, **changes))
    assert msgspec.msgpack.decode(raw.lane.recv(1 << 16))[:2] == ["pass", key]
    raw.ask(key, number)
    check_unharmed(fleet, raw)


def test_a_request_that_the_model_does_not_take_is_passed_as_unfit(fleet, raw):
    key, number = raw.put()
    body = encode_body(RequestBody(kind="tensors", tensors=(TensorHeader(name="z", dtype="float32", shape=(1,)),)))
    raw.lane.send(raw.request(key, body=body))
    assert msgspec.msgpack.decode(raw.lane.recv(1 << 16)) == ["pass", key, True]
    raw.ask(key, number)
    check_unharmed(fleet, raw)


def test_requests_in_vain_end_the_lane_and_nothing_else(fleet, raw):
    key, number = raw.put()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(PASSED_MAX):
            raw.lane.send(raw.request(key, ticket=0))
            assert msgspec.msgpack.decode(raw.lane.recv(1 << 16)) == ["pass", key, False]
        raw.lane.send(raw.request(key, ticket=0))
    assert is_over(raw.lane)
    raw.ask(key, number)
    check_unharmed(fleet, raw)


def test_a_ticket_is_good_for_so_many_runs_and_the_next_is_earned(fleet, raw):
    before = fleet.entry.ask()["by_lane"]
    words = [raw.run() for _ in range(RUNS + 1)]
    assert words[-1] == "pass"
    raw.earn_again()
    words.append(raw.run())
    assert words[-1] == "done"
    raw.lane.close()
    fleet.wait_until(lambda: fleet.entry.ask()["by_lane"] == before + words.count("done"))


def test_nobody_is_told_of_runs_under_anothers_key(fleet, raw):
    before = fleet.entry.ask()
    raw.lane.send(raw.request(bytes(24)))
    assert msgspec.msgpack.decode(raw.lane.recv(1 << 16))[0] == "done"
    raw.line.sendall(b"")
    assert is_over(raw.lane)
    assert "lane_misused" in fleet.entry.log_text()
    assert fleet.entry.ask()["by_lane"] == before["by_lane"]
    check_unharmed(fleet, raw)


def held(daemon):
    """Return what a daemon's process holds: descriptors other than of TCP, and programs' memories."""
    process = psutil.Process(daemon.process.pid)
    folder = f"/proc/{process.pid}/fd"
    links = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(os.readlink(f"{folder}/{name}"))
    peers = len(process.net_connections("tcp"))
    memories = Path(f"/proc/{process.pid}/maps").read_text().count("memfd")
    return len(links) - peers, memories


def test_programs_that_leave_take_their_lanes_with_them(fleet, alone):
    with fleet.entry.client() as grid:
        ask(grid, 20)  # what peers share is made by the first
    rest = *held(fleet.entry), *held(alone)  # of those before some may not have been let go yet
    for _ in range(6):
        with fleet.entry.client() as grid:
            ask(grid, 60)
        with RawProgram(fleet.entry) as program:  # in the middle of a run
            program.earn()
            program.lane.send(program.request(program.put()[0]))

    def is_given_back():
        now = *held(fleet.entry), *held(alone)
        assert all(map(operator.le, now, rest)), (now, rest)
        return True

    fleet.wait_until(is_given_back)


# ---------------------------------------------------------------- faults


def executor_of(fleet, program):
    """Return the daemon that a program's lane leads to, and the other one."""
    name = program.recent[-1][1]
    return fleet[name], fleet["one" if name == "two" else "two"]


def test_a_worker_that_dies_at_the_executor_costs_no_request(fleet, second):
    with Program(fleet.entry) as program:
        for _ in range(2):
            fleet.wait_row(program)
            victim, _ = executor_of(fleet, program)
            os.kill(worker_of(victim), signal.SIGKILL)
            fleet.wait_until(lambda victim=victim: worker_of(victim))
        fleet.wait_row(program)
    program.check()
    assert all(daemon.ask()["invariant_violations"] == 0 for daemon in (fleet.entry, fleet["one"], fleet["two"]))


def test_an_executor_that_is_killed_under_the_lane_costs_no_request(fleet, second):
    with Program(fleet.entry) as program:
        for _ in range(2):
            fleet.wait_row(program)
            victim, other = executor_of(fleet, program)
            victim.kill()
            killed_s = time.monotonic()
            fleet.wait_row(program)
            assert {node for at_s, node, _ in program.recent if at_s > killed_s + 1.0} <= {other.name}
            fleet.start(victim)
    program.check()
    assert program.late_answers == 0
    assert max(took_s for _, _, took_s in program.recent) < ANSWERED_S
    for daemon in (fleet.entry, fleet["one"], fleet["two"]):
        assert daemon.ask()["invariant_violations"] == 0


def test_an_executor_that_falls_silent_under_the_lane_delays_one_request(fleet, second):
    with Program(fleet.entry) as program:
        fleet.wait_row(program)
        victim, other = executor_of(fleet, program)
        victim.signal(signal.SIGSTOP)
        try:
            stopped_s = time.monotonic()
            fleet.wait_row(program)
            assert {node for at_s, node, _ in program.recent if at_s > stopped_s + ANSWERED_S} <= {other.name}
        finally:
            victim.signal(signal.SIGCONT)
        fleet.wait_until(lambda: looks_at(fleet.entry, victim.name, "peak"))
        fleet.wait_row(program)
    program.check()
    assert max(took_s for _, _, took_s in program.recent) < ANSWERED_S
    for daemon in (fleet.entry, victim, other):
        assert daemon.ask()["invariant_violations"] == 0


def test_an_executor_that_drains_under_the_lane_costs_no_request(fleet, second):
    with Program(fleet.entry) as program:
        fleet.wait_row(program)
        victim, other = executor_of(fleet, program)
        assert victim.stop() == 0
        stopped_s = time.monotonic()
        fleet.wait_row(program)
    program.check()
    assert {node for at_s, node, _ in program.recent if at_s > stopped_s} == {other.name}
    fleet.start(victim)


def test_an_entry_that_drains_under_the_lane_costs_a_program_that_knows_another_nothing(fleet, alone):
    with Program(fleet.entry, alone) as program:
        fleet.wait_row(program)
        assert fleet.entry.stop() == 0
        answered = len(program.recent)
        fleet.wait_until(lambda: len(program.recent) > answered + 50)
    program.check()
    fleet.start(fleet.entry)


def test_an_entry_that_drains_under_the_lane_answers_or_names_the_fault(fleet, alone):
    received = alone.ask()["received"]
    with Program(fleet.entry, size=1_000_000, deadline_s=1.5) as program:
        fleet.wait_row(program)
        assert fleet.entry.stop() == 0
        fleet.wait_until(lambda: program.errors)
        overdue = fleet.entry.log_text().count("lane_run_overdue")
        assert alone.ask()["received"] - received <= len(program.recent) + overdue, "what was run was not answered"
        fleet.start(fleet.entry)
        answered = len(program.recent)
        fleet.wait_until(lambda: len(program.recent) > answered + 100)
    assert len(program.recent) + len(program.errors) == program.sent
    assert all(isinstance(error, GridError) and str(error) for error in program.errors)


# ---------------------------------------------------------------- accounts


def test_the_entrys_trace_has_every_job_with_its_executor_once(fleet, alone, check_log):
    entry = fleet.entry
    assert entry.stop() == 0
    for path in entry.state.path.glob("jobs.trace*"):
        path.unlink()
    fleet.start(entry)
    with entry.client() as grid:
        results = ask(grid, MANY) + ask(grid, 20, model="wide")
        by_lane = entry.ask()["by_lane"]
    node = alone.ask()["node"]
    assert entry.stop() == 0
    check_log(entry)
    jobs = read_recording(entry.state.path / "jobs.trace").jobs
    jobs = [job for job in jobs if job.input_bytes == 4 * SIZE]  # start() asked for others
    assert len(jobs) == len(results)
    assert {(job.executor, job.hops, job.outcome) for job in jobs} == {(node, 1, "answered")}
    assert all(job.budget_s == pytest.approx(10.0, abs=0.1) for job in jobs)
    assert all(job.sojourn_s >= job.service_s for job in jobs)
    assert sum(job.waiting_s == 0.0 for job in jobs) >= by_lane > 0
    fleet.start(entry)


# ---------------------------------------------------------------- what cannot be undone


def test_a_peer_that_is_revoked_under_the_lane_gets_nothing_more(fleet, second):
    """The bound is that of test_faults: within 10 s everybody has cut it off."""
    for daemon in (fleet["n1"], fleet.entry):
        fleet.wait_until(lambda daemon=daemon: daemon.ask()["neighbours"] == 3)  # whom the news goes by
    with Program(fleet.entry) as program, Load(fleet["one"]):  # so that "two" is chosen
        fleet.wait_until(lambda: Counter(node for _, node, _ in program.recent[-50:])["two"] == 50)
        fleet.wait_row(program)
        assert program.recent[-1][1] == "two"
        fleet["n1"].ask("revoke", "two")
        revoked_s = time.monotonic()
        fleet.wait_until(lambda: "two" not in {peer["name"] for peer in fleet.entry.ask("peers")["items"]}, 10.0)
        received, answered = second.ask()["received"], len(program.recent)
        cut_off_s = time.monotonic()
        fleet.wait_until(lambda: len(program.recent) > answered + 100)
        assert second.ask()["received"] == received
    program.check()
    assert cut_off_s - revoked_s < 10.0
    assert "two" not in {node for at_s, node, _ in program.recent if at_s > cut_off_s}
    assert fleet.entry.ask()["invariant_violations"] == 0


def test_a_new_version_of_the_model_takes_the_place_of_the_one_that_the_lane_runs(fleet, alone):
    """Version 2 answers with the least number, negated: each answer is of the version that it names."""
    old = fleet.digests["peak"]
    answers = Counter()
    with fleet.entry.client() as grid:

        def ask_either():
            number, inputs = request(size=8)
            inputs["x"][0] = -number - 0.5
            try:
                result = grid.infer("peak", inputs, deadline_s=10.0)
            except GridError as error:  # the entry knows of the version before the executor has it
                answers[str(error)[:60]] += 1
            else:
                assert result.tensors["y"] == [number if result.model_digest == old else number + 0.5]
                answers[result.model_digest] += 1
            return dict(answers)

        ask(grid, 60)
        [new] = publish(fleet.grid, describe(fleet.grid, "peak", trough(), 1, version=2)).values()
        fleet.wait_until(lambda: ask_either().get(new, 0) > 60)
        by_lane = fleet.entry.ask()["by_lane"]
        fleet.wait_until(lambda: ask_either() and fleet.entry.ask()["by_lane"] > by_lane + 2 * RUNS)
    for daemon in (fleet.entry, alone):
        assert daemon.ask()["invariant_violations"] == 0
