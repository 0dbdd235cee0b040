"""Who gets tickets: a real core, driver and hands, with a worker and programs played by the test."""

import os
import random

import msgspec
import pytest
import trio
import trio.testing

from gridnode.control import OpenLane
from gridnode.driver import Driver
from gridnode.hands import DaemonHands
from gridnode.jobtable import Answer, JobEntry, JobTable
from gridnode.lanes import (
    FAR_TAKES_MAX_S,
    LASTS_S,
    RUNS,
    RUNS_BEFORE,
    SERVICE_MAX_S,
    SOLE_DEPTH,
    SOLE_LASTS_S,
    SOLE_RUNS,
    LaneDesk,
    Standing,
)
from gridnode.recording import Machine, Recorder
from gridnode.report import Report
from gridnode.sandbox import _jump
from gridnode.simulation.recorded import read_recording
from gridnode.tracefile import MemoryTraceFile
from gridnode.tracerecords import ANSWERED, Header
from models.executor import RunOutcome
from models.workerprotocol import LaneEnded, LaneRun
from scheduler import actions
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import AdvertReceived, JobArrived, ModelChanged, ReplyReceived, TableReceived
from scheduler.types import Capability, CapabilityTable, Job, PeerState, ServiceTimes

MODEL, SMALL, LARGE = "a" * 64, "b" * 64, "c" * 64
OTHERS = None
"""Whoever has no lane."""


class Lane:
    """A lane of the worker's; writes down what it is told."""

    def __init__(self, name, log, on_word):
        self.name = name
        self.log = log
        self.on_word = on_word
        self.takes_orders = True

    def give(self, ticket, *, runs, lasts_s):
        if self.takes_orders:
            self.log.append(f"{self.name}: ticket {ticket} for {runs} runs in {lasts_s} s")
        return self.takes_orders

    def revoke(self, ticket):
        self.log.append(f"{self.name}: revoke {ticket}")

    def close(self):
        self.log.append(f"{self.name}: close")

    def tell(self, ticket, *, runs=(), was_cut=False, is_closed=False):
        self.on_word(LaneEnded(lane=1, ticket=ticket, runs=tuple(runs), was_cut=was_cut, is_closed=is_closed))


class Worker:
    """An executor whose runs end when the test says so."""

    def __init__(self, log):
        self.log = log
        self.on_ends = []
        self.has_room = True
        self.names = iter("pqrstu")

    def begin(self, digest, request, on_end):
        self.on_ends.append(on_end)
        return lambda: None

    def end(self, service_s=0.001):
        self.on_ends.pop(0)(RunOutcome(body=b"", payload=bytearray(), service_s=service_s))

    def open_lane(self, digest, segment, descriptor, on_word):
        os.close(descriptor)
        return Lane(next(self.names), self.log, on_word) if self.has_room else None


class Far:
    """Opens lanes to peers."""

    def __init__(self, log):
        self.log = log

    def open(self, peer, model, segment, descriptor, on_word):
        os.close(descriptor)
        self.log.append(f"far: lane to {peer} for {model[:1]}")
        return Lane("f", self.log, on_word)


class Peers:
    """Takes what is sent to peers; answers when the test says so."""

    def __init__(self):
        self.errands = []

    def start(self, action, entry):
        self.errands.append((action, entry))


class Program(Standing):
    """Requests of one kind of one program."""

    @property
    def lane(self):
        """Its first lane."""
        return self.tracks[0].lane if self.tracks else None


class Asker:
    """Whoever waits for a job."""

    def __init__(self, name, log, standing):
        self.name = name
        self.log = log
        self.standing = standing
        if standing is not None:
            standing.open += 1

    def answer(self, answer, state):
        self.end("answer")

    def fail(self, failure, state, *, estimate_s):
        self.end(failure.reason)

    def end(self, how):
        self.log.append(f"{self.name}: {how}")
        if self.standing is not None:
            self.standing.open -= 1


class Desk:
    def __init__(self, nursery, *, recorder=None, **config):
        self.log = []
        """What workers and programs were told, but for plain answers."""
        self.jobs, self.report, self.worker, self.peers = JobTable(), Report(), Worker(self.log), Peers()
        self.core = Core(msgspec.convert(config, CoreConfig), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        self.driver = Driver(self.core)
        self.lanes = LaneDesk(
            node="n",
            core=self.core,
            driver=self.driver,
            executor=self.worker,
            report=self.report,
            recorder=recorder,
            default_deadline_s=10.0,
            slots=config.get("queue", {}).get("slots", 1),
        )
        self.lanes.far = Far(self.log)
        self.hands = DaemonHands(
            node="n",
            jobs=self.jobs,
            driver=self.driver,
            executor=self.worker,
            outbound=self.peers,
            inbound=self,
            residents=None,
            mouth=self,
            report=self.report,
            lanes=self.lanes,
            nursery=nursery,
            on_drained=None,
        )

    def advertise(self, action):
        """Serve as the hands' mouth."""

    pull_table = probe = advertise

    def rule(self, action):
        """Serve as the hands' inbound."""
        self.log.append("peer: accepted")

    def open(self, *, models=(MODEL,), executor="n"):
        """Open a lane for one more program."""
        log = self.log
        words = OpenLane(lane=0, model="street", rungs=True, priority=2, tenant="shop")
        standing = Program(
            words, models, executor=executor, client=bytes(16), say=lambda ticket: log.append(told(ticket))
        )
        assert self.open_lane(standing, 0)
        return standing

    def open_lane(self, standing, number):
        """Open one more lane; returns whether there is one."""
        return self.lanes.open(standing, number, None, os.open("/dev/null", os.O_RDONLY))

    def submit(self, standing, *, models=(MODEL,)):
        handle, now_s = self.jobs.mint(), trio.current_time()
        key = handle.to_bytes(24, "big")
        job = Job(key=key, entry="n", input_bytes=1, arrival_s=now_s, deadline_s=now_s + 5.0, models=models)
        name = "others" if standing is None else standing.lane.name if standing.lane else "gone"
        asker = Asker(name, self.log, standing)
        entry = JobEntry(
            handle=handle, job=job, body=b"", payload=(b"x",), responder=asker, is_hasty=True, lane=standing
        )
        self.jobs.add(entry)
        self.driver.post(JobArrived(handle=handle, job=job, origin=None))

    def meet(self, *peers, model=LARGE, mean_s=0.01):
        """Have the core know peers that run a model; the large one does not run here."""
        entry = Capability(model=model, mean_s=mean_s, p95_s=mean_s, memory_bytes=1, load_s=0.0)
        for name in peers:
            state = PeerState(
                node_id=name,
                epoch=1,
                sequence=1,
                backlog_s=0.0,
                slots=1,
                running_until_s=0.0,
                slow_down=1.0,
                warm=1,
                memory_free_bytes=0,
                draining=False,
                power_class=0,
                table_digest=name.encode().ljust(8, b"-"),
            )
            self.driver.post(AdvertReceived(state=state))
            table = CapabilityTable(node_id=name, digest=state.table_digest, entries=(entry,))
            self.driver.post(TableReceived(table=table))

    async def ask_afar(self, standing, count=1, *, service_s=0.001, took_s=0.002, takes_lanes=True, **changes):
        """Have a program ask for one thing after another, which a peer runs; returns as ask()."""
        before = len(self.log)
        for _ in range(count):
            self.submit(standing, models=(LARGE,))
            await trio.sleep(took_s)
            self.end_afar(service_s=service_s, takes_lanes=takes_lanes, **changes)
        return [line for line in self.log[before:] if not line.endswith("answer")]

    def end_afar(self, *, service_s=0.001, takes_lanes=True, **changes):
        action, entry = self.peers.errands.pop(0)
        fields = {"model": LARGE, "node": action.peer, "hops": 1, "waiting_s": 0.0, "service_s": service_s}
        answer = Answer(**fields | changes, body=b"", payload=b"")
        entry.is_answered = True
        self.lanes.ending_afar(entry, answer, takes_lanes)
        entry.responder.answer(answer, None)
        times = ServiceTimes(waiting_s=0.0, service_s=service_s)
        self.driver.post(
            ReplyReceived(command=action.command, model=LARGE, failure=None, state=None, times=times), answer
        )

    def ask(self, standing, count=1, *, service_s=0.001, models=(MODEL,)):
        """Have a program ask for one thing after another; returns what was said to anybody, but for the answers."""
        before = len(self.log)
        for _ in range(count):
            self.submit(standing, models=models)
            self.worker.end(service_s)
        return [line for line in self.log[before:] if not line.endswith("answer")]


def told(ticket):
    words = (
        f"program: ticket {ticket.ticket} for {ticket.runs} runs in {ticket.lasts_s} s, from {ticket.least_budget_s} s"
    )
    if (ticket.lane, ticket.depth, ticket.lanes) != (0, 1, 1):
        words += f", by lane {ticket.lane} of {ticket.lanes}, {ticket.depth} at once"
    return words


def at_desk(scenario, *, is_sole=False, **config):
    """Play a scenario; unless it is the sole one, there is a peer that could run the models, but is slow."""

    async def main():
        async with trio.open_nursery() as nursery:
            desk = Desk(nursery, **config)
            nursery.start_soon(desk.driver.run, desk.hands)
            await trio.testing.wait_all_tasks_blocked()
            entries = [Capability(model=m, mean_s=0.01, p95_s=0.01, memory_bytes=1, load_s=0.0) for m in (MODEL, SMALL)]
            table = ModelChanged(table_digest=b"t" * 8, capabilities=tuple(entries), loaded=frozenset([MODEL, SMALL]))
            desk.driver.post(table)
            if not is_sole:
                desk.meet("slow", model=MODEL, mean_s=9.0)
            await scenario(desk)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


FIRST = [
    f"p: ticket 1 for {RUNS} runs in {LASTS_S} s",
    f"program: ticket 1 for {RUNS} runs in {LASTS_S} s, from 0.02 s",
]
SECOND = [line.replace("ticket 1", "ticket 2") for line in FIRST]


# ---------------------------------------------------------------- how a ticket is earned


def test_a_row_of_jobs_earns_a_ticket_which_leaves_before_the_answer():
    async def scenario(desk):
        program = desk.open()
        assert desk.ask(program, RUNS_BEFORE - 1) == []
        del desk.log[:]
        desk.ask(program)
        assert desk.log == [*FIRST, "p: answer"]

    at_desk(scenario)


def test_a_ticket_that_was_used_up_is_followed_by_the_next():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        program.lane.tell(1)
        assert desk.ask(program) == SECOND

    at_desk(scenario)


def test_a_program_that_asks_the_daemon_while_it_has_a_ticket_gets_a_new_one():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        assert desk.ask(program) == ["p: revoke 1", *SECOND]

    at_desk(scenario)


def test_others_work_takes_the_ticket_back_and_begins_the_row_anew():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        assert desk.ask(OTHERS) == ["p: revoke 1"]
        assert desk.ask(program, RUNS_BEFORE - 1) == []
        assert desk.ask(program) == SECOND

    at_desk(scenario)


def test_others_work_in_between_ends_a_row():
    async def scenario(desk):
        program = desk.open()
        for _ in range(3):
            assert desk.ask(program, RUNS_BEFORE - 1) == []
            assert desk.ask(OTHERS) == []
        assert desk.ask(program, RUNS_BEFORE) == FIRST

    at_desk(scenario)


def test_two_programs_that_take_turns_get_no_ticket():
    async def scenario(desk):
        one, other = desk.open(), desk.open()
        for _ in range(2 * RUNS_BEFORE):
            assert desk.ask(one) + desk.ask(other) == []
        assert desk.ask(one, RUNS_BEFORE) == FIRST
        assert desk.ask(other) == ["p: revoke 1"]

    at_desk(scenario)


def test_what_is_accepted_from_a_peer_takes_tickets_back():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        del desk.log[:]
        state = desk.core.state_record(trio.current_time())
        desk.hands.carry_out(actions.Accept(offer=1, expires_s=1.0, state=state, reason="room"), None)
        assert desk.log == ["p: revoke 1", "peer: accepted"]

    at_desk(scenario)


def test_tickets_are_taken_back_once():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        del desk.log[:]
        desk.lanes.begun(None)
        assert desk.log == ["p: revoke 1"]
        desk.lanes.begun(None)
        assert desk.log == ["p: revoke 1"]

    at_desk(scenario)


def test_a_ticket_that_was_cut_begins_the_row_anew():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        program.lane.tell(1, was_cut=True)
        assert desk.ask(program, RUNS_BEFORE - 1) == []
        assert desk.ask(program) == SECOND

    at_desk(scenario)


def test_a_late_account_of_an_older_ticket_is_not_the_end_of_the_newest():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        desk.ask(program)
        program.lane.tell(1)
        assert desk.ask(OTHERS) == ["p: revoke 2"]

    at_desk(scenario)


def test_a_ticket_that_is_over_need_not_be_taken_back():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        program.lane.tell(1)
        assert desk.ask(OTHERS) == []

    at_desk(scenario)


# ---------------------------------------------------------------- where nobody else could run it


def sole(lane, ticket, name):
    return [
        f"{name}: ticket {ticket} for {SOLE_RUNS} runs in {SOLE_LASTS_S} s",
        f"program: ticket {ticket} for {SOLE_RUNS} runs in {SOLE_LASTS_S} s, from 0.02 s, by lane {lane} of 2, "
        f"{SOLE_DEPTH} at once",
    ]


def at_sole_desk(scenario):
    at_desk(scenario, is_sole=True, queue={"slots": 2})


def flood(desk, program, count, *, window=6):
    """Keep so many jobs in flight until so many have ended; returns what was said, but for the answers."""
    before = len(desk.log)
    while program.open < window:
        desk.submit(program)
    for _ in range(count):
        desk.worker.end()
        desk.submit(program)
    return [line for line in desk.log[before:] if not line.endswith("answer")]


def test_where_no_peer_has_the_model_tickets_are_good_for_more():
    async def scenario(desk):
        program = desk.open()
        assert desk.ask(program, RUNS_BEFORE) == sole(0, 1, "p")
        program.lane.tell(1)
        assert desk.ask(program) == sole(0, 2, "p")

    at_sole_desk(scenario)


def test_a_program_with_many_jobs_at_once_gets_a_ticket_for_each_of_its_lanes():
    async def scenario(desk):
        program = desk.open()
        assert flood(desk, program, RUNS_BEFORE - 1) == []
        assert flood(desk, program, 1) == sole(0, 1, "p")
        assert flood(desk, program, 1) == [], "it has a ticket"
        assert desk.open_lane(program, 7)
        assert flood(desk, program, 1) == sole(7, 1, "q")
        assert flood(desk, program, RUNS_BEFORE - 2) == []
        program.tracks[1].lane.tell(1)
        assert flood(desk, program, 1) == sole(7, 2, "q")
        assert desk.lanes.in_use == 2

    at_sole_desk(scenario)


def test_there_are_no_more_lanes_for_one_kind_than_slots():
    async def scenario(desk):
        program = desk.open()
        assert desk.open_lane(program, 1)
        assert not desk.open_lane(program, 2)
        program.tracks[0].lane.tell(0, is_closed=True)
        assert desk.open_lane(program, 3)
        assert [track.number for track in program.tracks] == [1, 3]

    at_sole_desk(scenario)


def test_a_lane_that_seems_to_have_lost_its_ticket_gets_another():
    async def scenario(desk):
        program = desk.open()
        assert desk.open_lane(program, 1)
        assert flood(desk, program, RUNS_BEFORE) == sole(0, 1, "p")
        assert flood(desk, program, 1) == sole(1, 1, "q")
        assert flood(desk, program, RUNS_BEFORE - 1) == []
        assert flood(desk, program, 1) == sole(0, 2, "p")
        assert flood(desk, program, RUNS_BEFORE - 1) == []
        assert flood(desk, program, 1) == sole(1, 2, "q"), "the one with fewer"

    at_sole_desk(scenario)


def test_others_work_takes_all_tickets_of_a_flood_back():
    async def scenario(desk):
        program = desk.open()
        assert desk.open_lane(program, 1)
        flood(desk, program, RUNS_BEFORE + 1)
        del desk.log[:]
        desk.submit(OTHERS)
        assert desk.log == [], "it waits"
        while not any(line.endswith("revoke 1") for line in desk.log):
            desk.worker.end()
        assert sorted(line for line in desk.log if "revoke" in line) == ["p: revoke 1", "q: revoke 1"]
        assert desk.lanes.in_use == 0
        before = len(desk.log)
        while program.open or desk.worker.on_ends:
            desk.worker.end()
        assert not [line for line in desk.log[before:] if "ticket" in line]

    at_sole_desk(scenario)


def test_a_flood_that_peers_could_help_with_gets_no_ticket_and_no_lane():
    async def scenario(desk):
        program = desk.open()
        assert flood(desk, program, 3 * RUNS_BEFORE) == []
        assert not desk.open_lane(program, 1)
        while program.open:
            desk.worker.end()
        assert desk.open_lane(program, 1)

    at_desk(scenario, queue={"slots": 2})


def test_a_first_peer_that_gets_the_model_ends_the_privilege_with_the_next_ticket():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        assert program.is_sole
        desk.meet("slow", model=MODEL, mean_s=9.0)
        program.lane.tell(1)
        assert desk.ask(program) == SECOND
        assert desk.ask(program)[0] == "p: revoke 2", "it does not wait for its answers"

    at_sole_desk(scenario)


def test_somebody_elses_job_in_hand_ends_a_row_of_a_flood():
    async def scenario(desk):
        program = desk.open()
        assert flood(desk, program, RUNS_BEFORE - 1) == []
        desk.submit(OTHERS)
        assert flood(desk, program, 1) == []
        while "others: answer" not in desk.log:
            assert flood(desk, program, 1) == []
        assert flood(desk, program, RUNS_BEFORE - 1) == []

    at_sole_desk(scenario)


# ---------------------------------------------------------------- who gets none


@pytest.mark.parametrize(("service_s", "least_s"), [(0.0005, 0.02), (0.005, 0.05), (SERVICE_MAX_S, 0.1)])
def test_requests_with_little_time_for_the_run_stay_with_the_daemon(service_s, least_s):
    async def scenario(desk):
        program = desk.open()
        assert desk.ask(program, RUNS_BEFORE, service_s=service_s)[-1].endswith(f"from {least_s} s")

    at_desk(scenario)


def test_slow_models_get_no_ticket():
    async def scenario(desk):
        program = desk.open()
        assert desk.ask(program, 2 * RUNS_BEFORE, service_s=SERVICE_MAX_S + 0.001) == []

    at_desk(scenario)


def test_a_smaller_model_than_the_lanes_earns_none():
    async def scenario(desk):
        program = desk.open(models=(LARGE, MODEL))
        assert desk.ask(program, 2 * RUNS_BEFORE, models=(LARGE, MODEL)) == []
        ladder = desk.open(models=(MODEL, SMALL))
        assert desk.ask(ladder, RUNS_BEFORE, models=(MODEL, SMALL)) != []

    at_desk(scenario)


def test_a_program_with_two_jobs_at_once_gets_none():
    async def scenario(desk):
        program = desk.open()
        before = len(desk.log)
        desk.submit(program)
        for _ in range(3 * RUNS_BEFORE):
            desk.submit(program)
            desk.worker.end()
        desk.worker.end()
        assert set(desk.log[before:]) == {"p: answer"}

    at_desk(scenario)


def test_a_node_with_something_else_in_hand_gives_none_and_begins_the_row_anew():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE - 1)
        desk.submit(program)
        desk.submit(program)
        assert len(desk.worker.on_ends) == 2
        before = len(desk.log)
        desk.worker.end()
        assert desk.log[before:] == ["p: answer"]
        desk.worker.end()
        assert desk.ask(program, RUNS_BEFORE - 2) == []
        assert desk.ask(program) == FIRST

    at_desk(scenario, queue={"slots": 2})


def test_a_policy_that_moves_jobs_without_a_gain_gives_none():
    async def scenario(desk):
        assert desk.ask(desk.open(), 2 * RUNS_BEFORE) == []

    at_desk(scenario, is_sole=True, placement={"policy": "max_spare"})


def test_a_draining_node_takes_its_tickets_back_and_gives_no_more():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        del desk.log[:]
        desk.lanes.drain()
        assert desk.log == ["p: revoke 1"]
        assert desk.ask(program, 2 * RUNS_BEFORE) == []

    at_desk(scenario)


def test_a_worker_that_cannot_be_told_means_no_ticket():
    async def scenario(desk):
        program = desk.open()
        program.lane.takes_orders = False
        assert desk.ask(program, RUNS_BEFORE) == []
        program.lane.takes_orders = True
        assert desk.ask(program) == FIRST, "no number is left out"

    at_desk(scenario)


# ---------------------------------------------------------------- lanes to peers

FAR_FIRST = [
    f"f: ticket 1 for {RUNS} runs in {LASTS_S} s",
    f"program: ticket 1 for {RUNS} runs in {LASTS_S} s, from 1.0 s",
]
FAR_SECOND = [line.replace("ticket 1", "ticket 2") for line in FAR_FIRST]


def open_afar(desk):
    desk.meet("b")
    program = desk.open(models=(LARGE,), executor="b")
    assert desk.log == ["far: lane to b for c"]
    return program


def test_one_lane_of_a_kind_leads_to_a_peer_however_many_slots_there_are_here():
    async def scenario(desk):
        program = open_afar(desk)
        assert not desk.open_lane(program, 1)
        program.lane.tell(0, is_closed=True)
        assert desk.open_lane(program, 2)

    at_desk(scenario, queue={"slots": 2})


def test_a_row_of_jobs_that_a_peer_runs_earns_a_ticket_which_leaves_before_the_answer():
    async def scenario(desk):
        program = open_afar(desk)
        assert await desk.ask_afar(program, RUNS_BEFORE - 1) == []
        del desk.log[:]
        await desk.ask_afar(program)
        assert desk.log == [*FAR_FIRST, "f: answer"]
        program.lane.tell(1)
        assert await desk.ask_afar(program) == FAR_SECOND

    at_desk(scenario)


def test_a_program_that_asks_the_daemon_while_it_has_a_ticket_to_a_peer_gets_a_new_one():
    async def scenario(desk):
        program = open_afar(desk)
        await desk.ask_afar(program, RUNS_BEFORE)
        assert await desk.ask_afar(program) == ["f: revoke 1", *FAR_SECOND]

    at_desk(scenario)


@pytest.mark.parametrize("others", ["here", "at a peer"])
def test_others_work_takes_a_ticket_to_a_peer_back_and_begins_the_row_anew(others):
    async def scenario(desk):
        program = open_afar(desk)
        await desk.ask_afar(program, RUNS_BEFORE)
        told = desk.ask(OTHERS) if others == "here" else await desk.ask_afar(OTHERS)
        assert told == ["f: revoke 1"]
        assert await desk.ask_afar(program, RUNS_BEFORE - 1) == []
        assert await desk.ask_afar(program) == FAR_SECOND

    at_desk(scenario)


def test_what_others_send_to_a_peer_takes_tickets_here_back():
    async def scenario(desk):
        desk.meet("b")
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        assert await desk.ask_afar(OTHERS) == ["p: revoke 1"]

    at_desk(scenario)


@pytest.mark.parametrize(
    "how",
    [
        {"took_s": FAR_TAKES_MAX_S + 0.001},
        {"service_s": SERVICE_MAX_S + 0.001},
        {"takes_lanes": False},
        {"hops": 2},
        {"hops": 0},
    ],
    ids=str,
)
def test_no_ticket_is_given_for_jobs_of_another_kind_of_way_but_the_row_goes_on(how):
    async def scenario(desk):
        program = open_afar(desk)
        assert await desk.ask_afar(program, 2 * RUNS_BEFORE, **how) == []
        assert await desk.ask_afar(program) == FAR_FIRST

    at_desk(scenario)


@pytest.mark.parametrize("how", [{"took_s": FAR_TAKES_MAX_S * 0.99}, {"service_s": SERVICE_MAX_S}], ids=str)
def test_a_ticket_is_given_up_to_the_bounds(how):
    async def scenario(desk):
        assert await desk.ask_afar(open_afar(desk), RUNS_BEFORE, **how) == FAR_FIRST

    at_desk(scenario)


def test_another_models_answers_earn_no_ticket():
    async def scenario(desk):
        program = open_afar(desk)
        assert await desk.ask_afar(program, 2 * RUNS_BEFORE, model=SMALL) == []
        assert await desk.ask_afar(program, RUNS_BEFORE - 1) == []
        assert await desk.ask_afar(program) == FAR_FIRST

    at_desk(scenario)


@pytest.mark.parametrize("node", ["n", "c"])
def test_an_answer_from_elsewhere_ends_a_lane_to_a_peer(node):
    async def scenario(desk):
        program = open_afar(desk)
        await desk.ask_afar(program, RUNS_BEFORE - 1)
        assert await desk.ask_afar(program, node=node) == ["f: close"]
        assert await desk.ask_afar(program, RUNS_BEFORE - 1) == []

    at_desk(scenario)


def test_an_answer_from_a_peer_ends_a_lane_here():
    async def scenario(desk):
        desk.meet("b")
        program = desk.open(models=(LARGE,))
        assert await desk.ask_afar(program, 1) == ["p: close"]
        program.lane.tell(0, is_closed=True)
        assert await desk.ask_afar(program, RUNS_BEFORE) == []

    at_desk(scenario)


def test_an_answer_of_this_node_ends_a_lane_to_a_peer():
    async def scenario(desk):
        desk.meet("b")
        assert desk.ask(desk.open(executor="b")) == ["f: close"]

    at_desk(scenario)


def test_with_a_job_at_a_peer_and_another_here_no_ticket_is_given():
    async def scenario(desk):
        program = open_afar(desk)
        await desk.ask_afar(program, RUNS_BEFORE - 1)
        desk.submit(OTHERS)
        assert await desk.ask_afar(program) == []
        desk.worker.end()
        assert await desk.ask_afar(program, RUNS_BEFORE - 1) == []
        assert await desk.ask_afar(program) == FAR_FIRST

    at_desk(scenario)


def test_a_program_with_two_jobs_at_a_peer_gets_no_ticket():
    async def scenario(desk):
        program = open_afar(desk)
        before = len(desk.log)
        desk.submit(program, models=(LARGE,))
        for _ in range(2 * RUNS_BEFORE):
            desk.submit(program, models=(LARGE,))
            desk.end_afar()
        assert set(desk.log[before:]) == {"f: answer"}
        desk.end_afar()

    at_desk(scenario)


def test_a_job_without_a_lane_earns_nothing():
    async def scenario(desk):
        open_afar(desk)
        assert await desk.ask_afar(OTHERS, 2 * RUNS_BEFORE) == []

    at_desk(scenario)


def test_a_lane_to_a_peer_that_takes_no_ticket_is_not_said_to_have_one():
    async def scenario(desk):
        program = open_afar(desk)
        program.lane.takes_orders = False
        assert await desk.ask_afar(program, RUNS_BEFORE) == []
        await desk.lanes.settle()
        program.lane.takes_orders = True
        assert await desk.ask_afar(program) == FAR_FIRST

    at_desk(scenario)


def test_runs_by_a_lane_to_a_peer_are_counted_as_offloaded_and_can_be_explained():
    async def scenario(desk):
        program = open_afar(desk)
        await desk.ask_afar(program, RUNS_BEFORE)
        was, report = desk.core.statistics(), desk.report.snapshot()
        program.lane.tell(1, runs=[run(100, transfer_s=0.25), run(101)])
        now, seen = desk.core.statistics(), desk.report.snapshot()
        assert now.jobs_arrived - was.jobs_arrived == 2
        assert now.jobs_offloaded - was.jobs_offloaded == 2
        assert now.jobs_executed == was.jobs_executed
        assert now.replies - was.replies == 2
        assert (seen.offloaded - report.offloaded, seen.by_lane, seen.executed) == (2, 2, 0)
        assert desk.report.sojourn.sum == pytest.approx(RUNS_BEFORE * 0.002 + 0.75 + 0.5)
        decision = desk.core.decisions()[-1]
        assert (decision.key, decision.chosen, decision.model) == (run(101).key, "b", LARGE)
        assert decision.reason == "by a lane, on a ticket"

    at_desk(scenario)


def test_the_account_of_a_far_ticket_ends_what_is_owed():
    async def scenario(desk):
        program = open_afar(desk)
        await desk.ask_afar(program, RUNS_BEFORE)
        del desk.log[:]
        begun_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.lanes.settle)
            await trio.testing.wait_all_tasks_blocked()
            assert desk.log == ["f: revoke 1"]
            program.lane.tell(1, runs=[run(100)], was_cut=True)
        assert trio.current_time() == begun_s
        assert await desk.ask_afar(program, RUNS_BEFORE - 1) == [], "the row begins anew"
        assert await desk.ask_afar(program) == FAR_SECOND

    at_desk(scenario)


def test_an_account_that_comes_from_within_the_taking_back_is_taken():
    async def scenario(desk):
        program = open_afar(desk)
        await desk.ask_afar(program, RUNS_BEFORE)
        lane = program.lane
        lane.revoke = lambda ticket: lane.tell(ticket, runs=[run(100)], was_cut=True)
        desk.submit(OTHERS)
        assert desk.report.by_lane == 1
        assert desk.core.decisions()[-1].key == run(100).key
        desk.worker.end()
        await desk.lanes.settle()
        assert desk.ask(OTHERS) == []

    at_desk(scenario)


# ---------------------------------------------------------------- the end of a lane


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_lane_that_has_ended_gets_no_ticket_and_no_word(is_lost):
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        lane = program.lane
        if is_lost:
            lane.on_word(None)
        else:
            lane.tell(0, is_closed=True)
        assert program.lane is None
        assert desk.ask(OTHERS) + desk.ask(program, 2 * RUNS_BEFORE) == []
        desk.lanes.close(program)

    at_desk(scenario)


def test_a_program_that_leaves_ends_its_lane():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE - 1)
        lane = program.lane
        del desk.log[:]
        desk.submit(program)
        desk.lanes.close(program)
        desk.worker.end()
        assert desk.log == ["p: close", "p: answer"]
        lane.tell(0, is_closed=True)
        assert desk.ask(OTHERS) == []

    at_desk(scenario)


def test_a_worker_without_room_means_no_lane():
    async def scenario(desk):
        desk.worker.has_room = False
        words = OpenLane(lane=0, model="street", rungs=True, priority=2, tenant="")
        standing = Standing(words, (MODEL,), executor="n", client=bytes(16), say=desk.log.append)
        assert not desk.open_lane(standing, 0)
        assert standing.tracks == []

    at_desk(scenario)


# ---------------------------------------------------------------- accounts


def run(number, *, age_s=2.0, service_s=0.5, budget_s=None, transfer_s=0.0):
    return LaneRun(
        key=number.to_bytes(24, "big"),
        age_s=age_s,
        service_s=service_s,
        transfer_s=transfer_s,
        input_bytes=7,
        output_bytes=9,
        budget_s=budget_s,
    )


def test_runs_by_a_lane_are_counted_like_others_and_can_be_explained():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        was, answered = desk.core.statistics(), desk.report.snapshot().answered
        assert answered == RUNS_BEFORE
        program.lane.tell(1, runs=[run(100), run(101)])
        now = desk.core.statistics()
        assert now.jobs_arrived - was.jobs_arrived == 2
        assert now.jobs_executed - was.jobs_executed == 2
        assert now.replies - was.replies == 2
        seen = desk.report.snapshot()
        assert (seen.answered, seen.executed, seen.by_lane) == (answered + 2, answered + 2, 2)
        assert (desk.report.service.sum, desk.report.sojourn.count) == (pytest.approx(1.008), answered + 2)
        first, second = desk.core.decisions()[-2:]
        assert (first.key, second.key) == (run(100).key, run(101).key)
        assert (first.chosen, first.model, first.candidates) == ("n", MODEL, ())
        assert first.reason == "by a lane, on a ticket"

    at_desk(scenario)


def test_runs_under_keys_of_others_are_not_told_and_end_the_lane():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        foreign = msgspec.structs.replace(run(101), key=b"f" * 24)
        program.lane.tell(1, runs=[run(100), foreign])
        assert [decision.key for decision in desk.core.decisions()][-1] == run(100).key
        assert desk.report.snapshot().by_lane == 1
        assert desk.log[-1] == "p: close"

    at_desk(scenario)


def test_the_account_of_a_lane_whose_program_has_left_counts_too():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        lane = program.lane
        desk.lanes.close(program)
        lane.tell(1, runs=[run(100)], is_closed=True)
        assert desk.report.by_lane == 1

    at_desk(scenario)


def test_runs_by_a_lane_are_recorded_as_if_the_daemon_had_seen_them(tmp_path):
    file = MemoryTraceFile()

    recorder = Recorder(
        file,
        limit_bytes=1 << 20,
        header=Header(
            node="n", name="board0", software="0", epoch=1, grid_s=0.0, clock_s=0.0, policy="capd", executor="emulated"
        ),
        machine=lambda: Machine(slots=1, cpu_share=1.0, threads=1, slow_down=1.0, models=(), rtts_s={}),
        model_name={MODEL: "street"}.__getitem__,
        node_name=str,
        grid_s=lambda: 5000.0,
        secret=b"secret",
        clock=trio.current_time,
    )
    clock = trio.testing.MockClock()

    async def main():
        async with trio.open_nursery() as around:
            around.start_soon(_jump, clock)
            async with trio.open_nursery() as nursery:
                desk = Desk(nursery, recorder=recorder)
                nursery.start_soon(recorder.serve)
                await trio.sleep(10.0)
                program = desk.open()
                program.lane.tell(1, runs=[run(100, budget_s=0.75), run(101, age_s=1.0, service_s=0.25)])
                desk.meet("b")
                afar = desk.open(executor="b")
                afar.lane.tell(1, runs=[run(102, age_s=0.5, service_s=0.125, transfer_s=0.25)])
                nursery.cancel_scope.cancel()
            around.cancel_scope.cancel()

    trio.run(main, clock=clock)
    path = tmp_path / "read.trace"
    path.write_bytes(file.data)
    first, second, afar = read_recording(path).jobs
    assert second.at_s - first.at_s == pytest.approx(1.0)
    assert (first.budget_s, second.budget_s) == (0.75, 10.0)
    assert (first.input_bytes, first.output_bytes, first.priority, first.models) == (7, 9, 2, ("street",))
    assert (first.service_s, first.sojourn_s, first.waiting_s) == (0.5, 0.5, 0.0)
    assert (first.executor, first.model, first.hops, first.outcome) == ("n", "street", 0, ANSWERED)
    assert (afar.executor, afar.model, afar.hops, afar.outcome) == ("b", "street", 1, ANSWERED)
    assert (afar.service_s, afar.sojourn_s) == (0.125, 0.375)


def test_who_wants_the_accounts_waits_for_those_of_tickets_in_use():
    async def scenario(desk):
        program = desk.open()
        desk.ask(program, RUNS_BEFORE)
        del desk.log[:]
        begun_s, ended_s = trio.current_time(), []

        async def settle():
            await desk.lanes.settle()
            ended_s.append(trio.current_time() - begun_s)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle)
            await trio.sleep(0.05)
            assert (desk.log, ended_s) == (["p: revoke 1"], [])
            program.lane.tell(1, was_cut=True)
        assert ended_s == [pytest.approx(0.05)]
        await desk.lanes.settle()
        assert trio.current_time() - begun_s == pytest.approx(0.05), "nothing is owed"

    at_desk(scenario)


def test_accounts_of_tickets_that_nobody_uses_are_waited_for_no_longer_than_one_lasts():
    async def scenario(desk):
        desk.ask(desk.open(), RUNS_BEFORE)
        begun_s = trio.current_time()
        await desk.lanes.settle()
        assert trio.current_time() - begun_s == pytest.approx(2 * LASTS_S)

    at_desk(scenario)
