"""A machine takes the time that draws, warm-up, heat, memory, batches and messages say."""

import math

import pytest

from scheduler.actions import Execute
from scheduler.config import CoreConfig, QueueConfig
from scheduler.events import LoadSampled, ModelChanged, ServiceFailed, ServiceFinished, ServiceStarted
from scheduler.types import Capability, Job, Reason
from simulator.answers import Failure
from simulator.config import Heat, MachineConfig
from simulator.distributions import Constant
from simulator.engine import Engine, stream
from simulator.entries import Entry
from simulator.machine import Machine
from simulator.specs import ModelProfile


class Node:
    """Stands where a SimNode does: notes what its core would be told."""

    def __init__(self, config=None, *, warm_up=1.0, batch=(), service_s=0.1):
        self.name = "a"
        self.engine = Engine()
        self.jobs = {}
        self.told = []
        profiles = {
            model: ModelProfile(
                capability=Capability(model=model, mean_s=service_s, p95_s=service_s, memory_bytes=100, load_s=1.0),
                service=Constant(service_s),
                warm_up=warm_up,
                batch=batch,
            )
            for model in ("m", "n")
        }
        rng = stream("7", "service", "a")
        self.machine = Machine(self, profiles, frozenset(["m"]), rng=rng, config=config)

    def post(self, event, attachment=None):
        self.told.append((self.engine.now_s, event, attachment))

    def execute(self, command, *deadlines_s, model="m"):
        """Begin an execution of one request per deadline."""
        handles = []
        for deadline_s in deadlines_s:
            handle = len(self.jobs) + 1
            job = Job(
                key=handle.to_bytes(24, "big"),
                entry="a",
                input_bytes=0,
                output_bytes=0,
                arrival_s=self.engine.now_s,
                deadline_s=deadline_s,
                models=(model,),
            )
            self.jobs[handle] = Entry(handle, job, body_bytes=0, answerer=None)
            handles.append(handle)
        self.machine.execute(
            Execute(command=command, handles=tuple(handles), model=model, deadline_s=max(deadlines_s), reason="test")
        )

    def ends(self):
        """Return (time, service time) of each execution that ended well."""
        return [(at, each.service_s) for at, each, _ in self.told if isinstance(each, ServiceFinished)]

    def events(self, kind):
        return [(at, each) for at, each, _ in self.told if isinstance(each, kind)]


def test_an_execution_takes_what_is_drawn():
    node = Node()
    node.execute(1, math.inf)
    node.engine.run()
    assert [at for at, _ in node.events(ServiceStarted)] == [0.0]
    assert node.ends() == [(0.1, 0.1)]


def test_only_the_first_execution_after_a_load_is_slower():
    node = Node(warm_up=7.0)
    node.machine.load("n")
    node.engine.run()
    for command in (1, 2):
        node.execute(command, math.inf, model="n")
        node.engine.run()
    node.execute(3, math.inf)
    node.engine.run()
    assert [service_s for _, service_s in node.ends()] == pytest.approx([0.7, 0.1, 0.1])


def test_a_model_that_finds_no_memory_is_not_loaded_and_the_core_hears_of_it():
    node = Node(MachineConfig(memory_bytes=150))
    node.machine.load("n")
    node.engine.run()
    assert node.machine.loads_failed == 1
    assert node.events(ModelChanged)[-1][1].loaded == {"m"}
    node.machine.evict("m")
    node.machine.load("n")
    node.engine.run()
    assert node.events(ModelChanged)[-1][1].loaded == {"n"}


def test_messages_take_their_time_from_what_runs_and_from_nothing_else():
    node = Node()
    node.machine.burden(5.0)
    node.execute(1, math.inf)
    node.engine.at(0.05, node.machine.burden, 0.02)
    node.engine.at(0.11, node.machine.burden, 0.01)
    node.engine.run()
    node.execute(2, math.inf)
    node.engine.run()
    assert [service_s for _, service_s in node.ends()] == pytest.approx([0.13, 0.1])


def test_two_executions_at_once_both_lose_the_time():
    node = Node()
    node.execute(1, math.inf)
    node.engine.at(0.02, node.execute, 2, math.inf)
    node.engine.at(0.05, node.machine.burden, 0.02)
    node.engine.run()
    assert [at for at, _ in node.ends()] == pytest.approx([0.12, 0.14])


def test_what_messages_take_may_cost_the_deadline():
    node = Node()
    node.execute(1, 0.11)
    node.engine.at(0.05, node.machine.burden, 0.02)
    node.engine.run()
    (at_s, event), *_ = node.events(ServiceFailed)
    assert at_s == pytest.approx(0.11)
    assert event.reason is Reason.EXPIRED


def test_a_batch_with_a_curve_ends_together():
    node = Node(batch=(1.0, 1.2, 1.5))
    node.execute(1, math.inf, math.inf, math.inf)
    node.engine.run()
    assert node.ends() == [(pytest.approx(0.15), pytest.approx(0.15))]
    node = Node(batch=(1.0, 1.2))
    node.execute(1, math.inf, 0.11)
    node.engine.run()
    _, _, outcomes = node.told[-1]
    assert not isinstance(outcomes[1], Failure)
    assert isinstance(outcomes[2], Failure), "it was late when the batch ended"


def test_a_batch_without_a_curve_is_served_one_after_the_other():
    node = Node()
    node.execute(1, math.inf, math.inf)
    node.engine.run()
    assert node.ends() == [(pytest.approx(0.2), pytest.approx(0.2))]


def test_heat_follows_the_load_and_slows_down_up_to_its_factor():
    heat = Heat(factor=2.0, threshold=0.5, lag_s=10.0)
    assert [heat.slow_down(warmth) for warmth in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 1.5, 2.0]
    node = Node(MachineConfig(heat=heat))

    def work(command):
        if node.engine.now_s < 60.0:
            node.execute(command, math.inf)
            node.engine.at(node.engine.now_s + 1.0, wait, command)

    def wait(command):
        work(command + 1)

    # busy 10 to 20 % of the time: never warm enough
    work(1)
    node.engine.run()
    assert {service_s for _, service_s in node.ends()} == {0.1}
    node.told.clear()
    for command in range(1000, 1800):
        node.execute(command, math.inf)
        node.engine.run()
    times = [service_s for _, service_s in node.ends()]
    assert times[0] == pytest.approx(0.1)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(0.2, rel=0.01)
    told = [event.slow_down for _, event in node.events(LoadSampled)]
    assert told == sorted(told)
    assert 1.7 < told[-1] <= 2.0
    rest_s = node.engine.now_s + 100.0
    node.engine.at(rest_s, node.execute, 9999, math.inf)
    node.engine.run()
    assert node.ends()[-1][1] == pytest.approx(0.1, rel=0.01)
    assert node.events(LoadSampled)[-1][1].slow_down == pytest.approx(1.0)


def test_a_stopped_machine_ends_nothing():
    node = Node()
    node.execute(1, math.inf)
    node.machine.load("n")
    node.machine.stop()
    node.engine.run()
    assert not node.ends()
    assert not node.events(ModelChanged)


def test_a_pace_and_a_fast_clock_multiply():
    node = Node()
    node.machine.set_pace(3.0)
    node.machine.set_clock_rate(2.0)
    node.execute(1, math.inf)
    node.engine.run()
    assert node.ends() == [(pytest.approx(0.6), pytest.approx(0.6))]


def test_heat_without_a_meaning_is_refused():
    for wrong in ({"factor": 0.5}, {"threshold": 1.0}, {"lag_s": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            Heat(**wrong)


def test_slots_are_the_cores_business():
    """The machine serves whatever it is told at once: QueueConfig.slots bounds it."""
    assert CoreConfig(queue=QueueConfig(slots=3)).queue.slots == 3
    node = Node()
    for command in (1, 2, 3):
        node.execute(command, math.inf)
    node.engine.run()
    assert [at for at, _ in node.ends()] == [0.1, 0.1, 0.1]
