"""Real daemons that are killed, stopped, cut off and restarted under load."""

import signal
import threading
import time
from collections import Counter

import pytest

from gridnode.client import Grid
from gridnode.errors import GridError

pytestmark = pytest.mark.slow

FIRST_SHARE = 0.3
SHARES = {"n1": FIRST_SHARE, "n2": 1.0, "n3": 0.15}
BUSY_S = 60.0
"""How long it may take until another node has answered a few frames: measurements on a noisy machine may be off at
first, and are corrected by what is seen."""


@pytest.fixture(scope="module")
def trio_of_nodes(real_grid):
    """Add two daemons; the last is the slow one that programs talk to."""
    for name in ("n2", "n3"):
        real_grid.join(name).start(share=SHARES[name])
    for name in ("n2", "n3"):
        real_grid[name].wait_ready()
    for name in ("n1", "n2", "n3"):
        real_grid[name].wait_peers(2)
    return real_grid


class Burst:
    """A program in a thread that submits a few frames at once, again and again, until it is told to stop."""

    def __init__(self, sockets, model_input, *, every_s=0.15, deadline_s=5.0):
        self._sockets = [str(socket) for socket in sockets]
        self._input = model_input
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._stop = threading.Event()
        self.sent = 0
        self.nodes = Counter()
        self.recent = []
        """(time, node) of each answer."""
        self.errors = Counter()
        self.late_answers = 0

    def __enter__(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.finish()

    def finish(self):
        self._stop.set()
        self._thread.join()

    def _run(self):
        with Grid(self._sockets) as grid:
            handles = []
            while not self._stop.wait(self._every_s):
                for _ in range(8):
                    handles.append(grid.submit("tiny", {"x": self._input}, deadline_s=self._deadline_s))
                    self.sent += 1
                handles = [handle for handle in handles if not self._take(handle)]
            for handle in handles:
                self._take(handle, wait=True)
            self.late_answers = grid.late_answers

    def _take(self, handle, *, wait=False):
        if not wait and not handle.done:
            return False
        try:
            result = handle.result()
        except GridError as error:
            self.errors[type(error).__name__, str(error)[:100]] += 1
        else:
            self.nodes[result.node] += 1
            self.recent.append((time.monotonic(), result.node))
        return True

    @property
    def outcomes(self):
        return sum(self.nodes.values()) + sum(self.errors.values())

    def busiest(self):
        """Return the node, other than the entry, that has answered most; None before it has answered a few."""
        name = max(("n1", "n2"), key=lambda name: self.nodes[name])
        return name if self.nodes[name] > 5 else None

    def nodes_since(self, moment_s):
        return {node for at_s, node in self.recent if at_s > moment_s}


def status_of(daemon, name):
    return next((peer["status"] for peer in daemon.ask("peers")["items"] if peer["name"] == name), "unknown")


def test_a_stopped_process_is_suspected_and_work_goes_elsewhere_until_it_is_back(
    trio_of_nodes, model_input, wait_until
):
    """What is stopped is where the work goes."""
    grid = trio_of_nodes
    for name in ("n1", "n3"):
        grid[name].wait_peers(2)
    with Burst([grid["n3"].socket], model_input, deadline_s=8.0) as burst:
        victim = wait_until(burst.busiest, BUSY_S)
        grid[victim].signal(signal.SIGSTOP)
        try:
            at_s = time.monotonic()
            wait_until(lambda: status_of(grid["n3"], victim) in ("suspect", "dead"), 10.0)
            suspected_s = time.monotonic() - at_s
            assert suspected_s < 6.0
            wait_until(lambda: time.monotonic() > at_s + suspected_s + 1.0)
        finally:
            grid[victim].signal(signal.SIGCONT)
        back_s = time.monotonic()
        wait_until(lambda: status_of(grid["n3"], victim) == "alive", 20.0)
        wait_until(lambda: victim in burst.nodes_since(back_s + 1.0), BUSY_S)
    assert burst.outcomes == burst.sent
    assert not burst.errors
    assert victim not in {node for at, node in burst.recent if at_s + suspected_s + 0.5 < at < back_s}
    assert grid["n3"].ask()["invariant_violations"] == 0


def test_no_frame_is_lost_when_an_executor_is_killed_under_load(trio_of_nodes, model_input, wait_until):
    grid = trio_of_nodes
    with Burst([grid["n3"].socket], model_input) as burst:
        victim = wait_until(burst.busiest, BUSY_S)
        other = "n1" if victim == "n2" else "n2"
        grid[victim].kill()
        at_s = time.monotonic()
        wait_until(lambda: time.monotonic() > at_s + 2.0)
    assert burst.outcomes == burst.sent
    assert not burst.errors
    assert burst.late_answers == 0
    assert victim not in burst.nodes_since(at_s + 1.0)
    for name in (other, "n3"):
        assert grid[name].ask()["invariant_violations"] == 0
    wait_until(lambda: status_of(grid[other], victim) == "dead", 20.0)
    grid[victim].start(share=SHARES[victim])
    grid[victim].wait_ready()
    wait_until(lambda: status_of(grid["n3"], victim) == "alive")


def test_a_killed_entry_node_costs_no_frame_of_a_program_that_knows_another(trio_of_nodes, model_input, wait_until):
    grid = trio_of_nodes
    with Burst([grid["n3"].socket, grid["n1"].socket], model_input) as burst:
        wait_until(lambda: burst.outcomes > 20)
        grid["n3"].kill()
        done = burst.outcomes
        wait_until(lambda: burst.outcomes > done + 50)
    assert burst.outcomes == burst.sent
    assert not burst.errors
    grid["n3"].start(share=SHARES["n3"])
    grid["n3"].wait_ready()
    assert grid["n3"].ask()["epoch"] == 2


def test_a_revoked_node_is_cut_off_everywhere_within_10_s(trio_of_nodes, wait_until):
    grid = trio_of_nodes
    grid["n3"].wait_peers(2)
    node = grid["n3"].ask()["node"]
    assert grid["n1"].ask("revoke", "n3") == {"revoked": node, "version": 1}
    began_s = time.monotonic()
    for name in ("n1", "n2"):
        wait_until(lambda name=name: status_of(grid[name], "n3") == "unknown", 10.0)
        wait_until(lambda name=name: grid[name].ask()["neighbours"] == 1, 10.0)
    assert time.monotonic() - began_s < 10.0
    # Alone it still serves its own programs, and nobody takes it in again.
    assert grid["n3"].infer().node == "n3"
    wait_until(lambda: time.monotonic() > began_s + 4.0)
    for name in ("n1", "n2"):
        assert status_of(grid[name], "n3") == "unknown"
        assert grid[name].ask()["neighbours"] == 1
    assert grid["n3"].ask()["neighbours"] == 0
    assert grid["n2"].infer().node in ("n1", "n2")
