"""Programs that ask for one thing after another speak to the worker itself, and notice nothing but the speed."""

import contextlib
import os
import signal
import socket
import threading

import numpy as np
import pytest

from gridnode.client import AsyncGrid
from gridnode.control import ClientHello, OpenLane, Query, encode_frame
from gridnode.localsocket import DESCRIPTORS_MAX
from gridnode.simulation.recorded import read_recording

pytestmark = pytest.mark.slow

SETTINGS = ("trace.path=jobs.trace", "runtime.threads=2")
MANY = 150
"""Requests that are enough for a lane, a few tickets and the way there."""


@pytest.fixture(scope="module")
def node(real_grid):
    return real_grid["n1"]


def ask(grid, frame, expected, count=1):
    """Ask for one thing after another; returns the keys."""
    keys = []
    for _ in range(count):
        result = grid.infer("tiny", {"x": frame}, deadline_s=10.0, raw_outputs=True)
        np.testing.assert_allclose(result.tensors["y"], expected, rtol=1e-3, atol=1e-4)
        keys.append(result.key)
    return keys


def by_lane(node):
    return node.ask()["by_lane"]


def reason_of(grid, key):
    return grid.explain(key)["items"][-1]["reason"]


def worker_of(node):
    [worker] = [each for each in node.workers() if "models.worker" in " ".join(each.cmdline())]
    return worker


def held(process):
    """Return how many programs' memories a process holds."""
    folder = f"/proc/{process.pid}/fd"
    links = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(os.readlink(f"{folder}/{name}"))
    return sum("gridnode-payloads" in link for link in links)


def test_a_program_that_leaves_takes_its_lane_with_it(node, real_grid, model_input, wait_until):
    worker = worker_of(node)
    rest = (worker.num_threads(), worker.num_fds(), held(node.process))
    for _ in range(3):
        with node.client() as grid:
            ask(grid, model_input, real_grid.expected, 60)
    assert by_lane(node) > 0
    wait_until(lambda: (worker.num_threads(), worker.num_fds(), held(node.process)) == rest)


def test_most_requests_of_a_row_come_by_the_lane_and_all_are_accounted_for(node, real_grid, model_input, wait_until):
    before = node.ask()
    with node.client() as grid:
        keys = ask(grid, model_input, real_grid.expected, MANY)
        wait_until(lambda: node.ask()["executed"] - before["executed"] == MANY)  # told at the ticket's end
        assert grid.resubmissions == grid.late_answers == 0
        assert reason_of(grid, keys[0]) != "by a lane, on a ticket"
        assert "by a lane, on a ticket" in [reason_of(grid, key) for key in keys[-40:]]
    status = node.ask()
    assert status["by_lane"] - before["by_lane"] > MANY / 3
    assert status["invariant_violations"] == 0


def test_requests_of_tiny_inputs_and_of_tasks_come_by_a_lane_too(node, real_grid, model_input, wait_until):
    import trio

    before = by_lane(node)

    async def main():
        async with AsyncGrid(str(node.socket)) as grid:
            for _ in range(MANY):
                result = await grid.infer("tiny", {"x": model_input}, deadline_s=10.0, raw_outputs=True)
                np.testing.assert_allclose(result.tensors["y"], real_grid.expected, rtol=1e-3, atol=1e-4)

    trio.run(main)
    wait_until(lambda: by_lane(node) - before > MANY / 3)


def test_a_run_by_a_lane_can_be_explained_at_once(node, real_grid, model_input):
    with node.client() as grid:
        keys = ask(grid, model_input, real_grid.expected, 60)
        assert {reason_of(grid, key) for key in keys[-3:]} <= {"arrived", "by a lane, on a ticket"}


def test_other_work_takes_the_ticket_back(node, real_grid, model_input, wait_until):
    with node.client() as one, node.client() as other:
        ask(one, model_input, real_grid.expected, MANY)
        start, done = by_lane(node), node.ask()["executed"]
        for _ in range(60):
            ask(other, model_input, real_grid.expected)
            ask(one, model_input, real_grid.expected)
        wait_until(lambda: node.ask()["executed"] >= done + 120)
    assert by_lane(node) - start < 40  # the ticket that one had, and no other


def test_a_worker_that_dies_under_a_lane_costs_no_request(node, real_grid, model_input, wait_until):
    stop = threading.Event()
    answered, faults = [], []

    def program():
        with node.client() as grid:
            try:
                while not stop.is_set():
                    answered.append(ask(grid, model_input, real_grid.expected)[0])
            except BaseException as error:
                faults.append(error)

    thread = threading.Thread(target=program)
    thread.start()
    try:
        for _ in range(2):
            start = by_lane(node)
            wait_until(lambda start=start: by_lane(node) > start + 50 or faults)
            os.kill(worker_of(node).pid, signal.SIGKILL)
        start = by_lane(node)
        wait_until(lambda: by_lane(node) > start + 50 or faults)
    finally:
        stop.set()
        thread.join(30)
    assert not faults
    assert len(set(answered)) == len(answered)


class RawProgram:
    """A program that says what it likes."""

    def __init__(self, node):
        self.line = socket.socket(socket.AF_UNIX)
        self.line.settimeout(10.0)
        self.line.connect(str(node.socket))
        self.line.sendall(encode_frame(ClientHello(client=bytes(16))))
        assert b"server_hello" in self.line.recv(65536)

    def send(self, message, *descriptors):
        socket.send_fds(self.line, [encode_frame(message)], descriptors)


WORDS = OpenLane(lane=0, model="tiny", rungs=True, priority=1, tenant="")


def test_a_lane_for_nothing_asked_before_is_closed(node, real_grid, model_input):
    program = RawProgram(node)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, program.line:
        program.send(WORDS, theirs.fileno())
        theirs.close()
        ours.settimeout(10.0)
        assert ours.recv(10) == b""
    with node.client() as grid:
        ask(grid, model_input, real_grid.expected)


@pytest.mark.parametrize("count", [0, DESCRIPTORS_MAX + 1])
def test_a_lane_without_its_descriptor_ends_the_connection(node, real_grid, model_input, count):
    program = RawProgram(node)
    with program.line, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(count):
            program.send(Query(number=1, what="status"), 0)
        program.send(WORDS)
        while program.line.recv(65536):
            pass
    with node.client() as grid:
        ask(grid, model_input, real_grid.expected)


def test_what_came_by_lanes_is_in_the_trace(node, check_log):
    status = node.ask()
    assert node.stop() == 0
    check_log(node)
    recording = read_recording(node.state.path / "jobs.trace")
    lane = [job for job in recording.jobs if job.waiting_s == 0.0]
    assert status["by_lane"] <= len(lane)
    assert all(job.budget_s == pytest.approx(10.0, abs=0.1) for job in lane)
