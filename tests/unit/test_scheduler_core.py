"""Single rules of the core, with literal times. Whole courses of events are in tests/transcripts."""

import itertools
import random

import msgspec
import pytest

from scheduler import actions as act
from scheduler import events as ev
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.types import Capability, CapabilityTable, Job, LinkSample, PeerState, Reason, ServiceTimes


class Bench:
    """One core `a` with a model of 0.5 s, and peers on demand."""

    def __init__(self, *, mean_s=0.5, max_batch=1, models=("m",), **tree):
        tree.setdefault("steal", {"enabled": False})
        self.core = Core(msgspec.convert(tree, CoreConfig), node_id="a", epoch=1, rng=random.Random("7/a"), now_s=0.0)
        self.sequences = {}
        self.handle = 0
        capabilities = tuple(
            Capability(model=model, mean_s=mean_s, p95_s=mean_s, memory_bytes=1, load_s=1.0, max_batch=max_batch)
            for model in models
        )
        self.has_begun = False
        self.feed(0.0, ev.ModelChanged(table_digest=b"a", capabilities=capabilities, loaded=frozenset(models)))

    def feed(self, now_s, event):
        if not self.has_begun and now_s > 0.0:
            self.timers(min(now_s, 0.25))  # the first record is told by then
        return self.core.handle(event, now_s=now_s)

    def state(self, name, **fields):
        self.sequences[name] = self.sequences.get(name, 0) + 1
        values = {
            "backlog_s": 0.0,
            "slots": 1,
            "running_until_s": 0.1 if fields.get("backlog_s") else 0.0,
            "slow_down": 1.0,
            "warm": 1,
            "memory_free_bytes": 0,
            "draining": False,
            "power_class": 0,
            "table_digest": name.encode().ljust(8, b"-"),
        }
        return PeerState(node_id=name, epoch=1, sequence=self.sequences[name], **{**values, **fields})

    def peer(self, name, mean_s=0.02, *, now_s=0.0, **fields):
        state = self.state(name, **fields)
        entry = Capability(model="m", mean_s=mean_s, p95_s=mean_s, memory_bytes=1, load_s=1.0)
        self.feed(now_s, ev.AdvertReceived(state=state))
        table = CapabilityTable(node_id=name, digest=state.table_digest, entries=(entry,))
        self.feed(now_s, ev.TableReceived(table=table))

    def job(self, now_s, *, origin=None, offer=None, stolen=False, estimate_s=None, budget_s=4.0, **fields):
        self.handle += 1
        job = make_job(now_s, budget_s=budget_s, key=self.handle, origin=origin, **fields)
        event = ev.JobArrived(
            handle=self.handle,
            job=job,
            origin=origin,
            offer=offer,
            stolen=stolen,
            sender_estimate_s=estimate_s,
        )
        return self.feed(now_s, event)

    def timers(self, until_s):
        """Let all timers up to a time fire; return (time, action) pairs."""
        self.has_begun = until_s >= 0.25
        found = []
        while (due_s := self.core.next_deadline_s()) is not None and due_s <= until_s:
            found += [(due_s, action) for action in self.core.handle(ev.TimerFired(), now_s=due_s)]
        return found

    def reply(self, now_s, command, *, name="b", service_s=0.02, waiting_s=0.0, **fields):
        return self.feed(
            now_s,
            ev.ReplyReceived(
                command=command,
                model="m",
                failure=None,
                state=self.state(name, **fields),
                times=ServiceTimes(waiting_s=waiting_s, service_s=service_s),
            ),
        )


def make_job(now_s, *, budget_s=4.0, key=0, origin=None, **fields):
    values = {
        "entry": origin or "a",
        "hops": 1 if origin else 0,
        "visited": (origin,) if origin else (),
        "input_bytes": 1000,
        "models": ("m",),
    }
    return Job(key=key.to_bytes(24, "big"), arrival_s=now_s, deadline_s=now_s + budget_s, **{**values, **fields})


def only(actions, kind):
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]


def of(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


# The interface.


def test_time_never_goes_back():
    bench = Bench()
    bench.job(1.0)
    with pytest.raises(AssertionError, match="time went back"):
        bench.job(0.5)


def test_a_handle_is_minted_once():
    bench = Bench()
    bench.job(1.0)
    bench.handle = 0
    with pytest.raises(ValueError, match="handle 1 is in use"):
        bench.job(1.0)


def test_an_endless_deadline_becomes_the_default():
    bench = Bench(placement={"default_deadline_s": 5.0})
    execute = only(bench.job(1.0, budget_s=float("inf")), act.Execute)
    assert execute.deadline_s == 6.0


def test_answers_to_unknown_commands_are_counted_and_their_states_used():
    bench = Bench()
    bench.peer("b")
    for event in (
        ev.Accepted(command=99, state=bench.state("b")),
        ev.Progressed(command=99, state=None),
        ev.Nacked(command=99, reason=Reason.QUEUE_FULL, state=None),
        ev.OfferAnswered(command=99, state=None),
        ev.SendFailed(command=99, connected=True),
        ev.ServiceFinished(command=99, service_s=0.1),
        ev.ServiceFailed(command=99, reason=Reason.LOST),
        ev.StealAnswered(command=99, granted=0, state=None),
    ):
        assert not of(bench.feed(1.0, event), act.Reply | act.Reject | act.Nack | act.Send)
    bench.reply(1.0, 99, backlog_s=3.0)
    assert bench.core.statistics().late_answers == 9
    assert only(bench.job(1.0, budget_s=2.0), act.Execute)


def test_a_late_cancel_is_nothing():
    assert Bench().feed(1.0, ev.CancelRequested(handle=5)) == []


def test_the_own_record_of_a_later_life_raises_the_epoch():
    bench = Bench()
    assert bench.core.epoch == 1
    bench.feed(1.0, ev.AdvertReceived(state=msgspec.structs.replace(bench.state("a"), epoch=4, sequence=9)))
    assert bench.core.epoch == 5
    state = bench.core.state_record(1.0)
    assert (state.epoch, state.sequence) == (5, 1)
    bench.feed(1.0, ev.AdvertReceived(state=msgspec.structs.replace(bench.state("a"), epoch=5, sequence=70)))
    assert bench.core.state_record(1.0).sequence == 71


# Choosing.


def test_a_job_moves_only_for_a_tenth():
    bench = Bench(mean_s=0.1, estimate={"rtt_prior_s": 0.001})
    bench.peer("b", 0.0885)  # with 1.4 ms on the way just below 90 ms
    assert only(bench.job(1.0), act.Send).peer == "b"
    bench = Bench(mean_s=0.1, estimate={"rtt_prior_s": 0.001})
    bench.peer("b", 0.0895)
    assert only(bench.job(1.0), act.Execute)


def test_without_hysteresis_any_gain_will_do():
    bench = Bench(mean_s=0.1, estimate={"rtt_prior_s": 0.001}, placement={"hysteresis": 0.0})
    bench.peer("b", 0.0980)
    assert only(bench.job(1.0), act.Send)


def test_own_jobs_on_the_way_count_at_the_peer():
    """Hyper-scalable load balancing (arXiv:1903.02337): plus one per job sent, until an update covers it."""
    bench = Bench(mean_s=0.3, placement={"wait_weight": 0})
    bench.peer("b", 0.1)
    where = [type(of(bench.job(1.0), act.Send | act.Execute)[0]) for _ in range(3)]
    assert where == [act.Send, act.Send, act.Execute]
    blind = Bench(mean_s=0.3, placement={"wait_weight": 0, "inflight_correction": False})
    blind.peer("b", 0.1)
    where = [type(of(blind.job(1.0), act.Send | act.Execute)[0]) for _ in range(3)]
    assert where == [act.Send, act.Send, act.Send]


def test_a_wait_counts_for_those_behind_too():
    """The second job would be done sooner at b, behind the first; the idle slower node here costs others less."""
    bench = Bench(mean_s=0.3)
    bench.peer("b", 0.1)
    where = [type(of(bench.job(1.0), act.Send | act.Execute)[0]) for _ in range(2)]
    assert where == [act.Send, act.Execute]


def test_no_job_moves_to_a_later_finish_however_short_the_wait():
    bench = Bench(mean_s=0.3, placement={"wait_weight": 10.0})
    bench.peer("b", 0.7)
    bench.job(1.0)
    # Here: 0.3 s of wait and 0.3 s of service, a cost of 3.6 s; there 0.7 s without a wait.
    assert not of(bench.job(1.0), act.Send)
    assert of(bench.job(1.0), act.Send)


def test_a_state_made_after_their_arrival_covers_jobs_on_the_way():
    bench = Bench(mean_s=0.3, placement={"wait_weight": 0})
    bench.peer("b", 0.1)
    bench.job(1.0)
    command = only(bench.job(1.0), act.Send).command
    bench.reply(1.1, command - 1, backlog_s=0.1, service_s=0.1)
    # One is open there and counted in the backlog; counted twice it would make 0.3 s there, not 0.2 s.
    estimate_s = only(bench.job(1.1), act.Send).estimate_s
    assert estimate_s == pytest.approx(0.2, abs=0.01)


def test_states_on_answers_can_be_left_unused():
    bench = Bench(mean_s=0.3, placement={"piggyback": False})
    bench.peer("b", 0.1)
    command = only(bench.job(1.0), act.Send).command
    bench.reply(1.1, command, backlog_s=9.0, service_s=0.1)
    assert only(bench.job(1.1), act.Send)


def test_a_full_window_keeps_jobs_away():
    bench = Bench(mean_s=0.5, window={"initial": 2})
    bench.peer("b", 0.01)
    sends = [of(bench.job(1.0, budget_s=60.0), act.Send) for _ in range(3)]
    assert [len(each) for each in sends] == [1, 1, 0]


def test_a_cold_model_costs_its_load_time():
    bench = Bench(mean_s=0.5)
    bench.peer("b", 0.01, warm=0)
    assert only(bench.job(1.0), act.Execute)


def test_a_slowed_down_peer_is_as_slow_as_it_says():
    bench = Bench(mean_s=0.5)
    bench.peer("b", 0.1, slow_down=6.0)
    assert only(bench.job(1.0), act.Execute)


def test_a_free_slot_means_no_wait():
    bench = Bench(mean_s=0.5)
    bench.peer("b", 0.1, slots=4, backlog_s=0.6, running_until_s=0.0)
    assert only(bench.job(1.0), act.Send).estimate_s == pytest.approx(0.1, abs=0.01)


def test_the_own_uplink_is_a_queue():
    bench = Bench(mean_s=0.5, estimate={"goodput_prior_bytes_s": 1e6}, offer={"enabled": False})
    bench.peer("b", 0.01)
    first = only(bench.job(1.0, input_bytes=200_000), act.Send)
    second = only(bench.job(1.0, input_bytes=200_000), act.Send)
    assert first.estimate_s == pytest.approx(0.22, abs=0.01)
    assert second.estimate_s == pytest.approx(0.43, abs=0.01)


def test_a_late_peer_loses_its_share_at_once():
    bench = Bench(mean_s=0.5)
    bench.peer("b", 0.01)
    command = only(bench.job(1.0), act.Send).command
    bench.reply(2.5, command, service_s=0.01)
    assert only(bench.job(2.6), act.Execute)


def test_an_answer_is_awaited_from_the_sending_to_the_first_outcome():
    bench = Bench(mean_s=0.5)
    bench.peer("b", 0.01)
    command = only(bench.job(1.0), act.Send).command
    assert bench.core.awaits(command)
    assert not bench.core.awaits(command + 1)
    assert only(bench.reply(1.1, command), act.Reply)
    assert not bench.core.awaits(command)


def test_link_samples_move_the_offer_threshold():
    bench = Bench(mean_s=0.5)
    bench.peer("b", 0.01)
    command = only(bench.job(1.0, input_bytes=60_000), act.Send).command
    link = LinkSample(rtt_s=0.001, sent_bytes=60_000, sent_s=0.06)
    times = ServiceTimes(waiting_s=0.0, service_s=0.01)
    bench.feed(
        1.1,
        ev.ReplyReceived(command=command, model="m", failure=None, state=bench.state("b"), times=times, link=link),
    )
    assert only(bench.job(1.2, input_bytes=60_000), act.Offer)
    assert only(bench.job(1.3, input_bytes=10_000), act.Send)


def test_an_endangered_job_gets_a_look_at_all_eligible_peers():
    bench = Bench(mean_s=5.0, placement={"sample": 1})
    for number in range(20):
        bench.peer(f"busy{number:02d}", 0.01, backlog_s=3.0)
    bench.peer("free", 0.4)
    assert only(bench.job(1.0, budget_s=0.8), act.Send).peer == "free"


def test_a_job_is_promised_nothing_on_the_hope_that_a_queue_went_back_to_its_mean():
    """By the mean of its records b is idle again; by the last one, its queue is longer than the job may take."""
    bench = Bench(mean_s=5.0)
    bench.peer("b", 0.01)
    for tenth in range(1, 100):
        bench.feed(tenth / 10, ev.AdvertReceived(state=bench.state("b")))
    bench.feed(10.0, ev.AdvertReceived(state=bench.state("b", backlog_s=2.0)))
    assert only(bench.job(11.0, budget_s=1.0), act.Reject).why is Reason.DEADLINE
    assert only(bench.job(11.0, budget_s=4.0), act.Send).estimate_s < 0.1


def test_decisions_are_kept_for_explanation():
    bench = Bench(decisions=2)
    bench.peer("b")
    for _ in range(3):
        bench.job(1.0)
    decisions = bench.core.decisions()
    assert [decision.handle for decision in decisions] == [2, 3]
    assert [candidate.verdict for candidate in decisions[-1].candidates] == ["later", "chosen"]


def test_nothing_is_explained_when_it_is_off():
    bench = Bench(explain=False)
    bench.peer("b")
    assert only(bench.job(1.0), act.Send).reason == "arrived"
    assert bench.core.decisions() == []


# Admission.


def test_the_queue_is_bounded_in_seconds():
    bench = Bench(mean_s=0.5)
    outcomes = [bench.job(1.0, budget_s=60.0) for _ in range(7)]
    assert [len(of(actions, act.Reject)) for actions in outcomes] == [0, 0, 0, 0, 0, 1, 1]
    reject = only(outcomes[-1], act.Reject)
    assert reject.why is Reason.QUEUE_FULL


def test_jobs_at_a_node_are_bounded_in_number():
    bench = Bench(mean_s=0.001, queue={"jobs": 3})
    outcomes = [bench.job(1.0) for _ in range(4)]
    assert only(outcomes[3], act.Reject).why is Reason.QUEUE_FULL


def test_shedding_can_be_switched_off():
    bench = Bench(mean_s=0.5, placement={"shedding": False})
    assert only(bench.job(1.0, budget_s=0.1), act.Execute)


def test_a_wait_may_use_a_share_of_the_time_to_spare():
    """With slack 0.75 a wait of 0.5 s needs 0.667 s beside the service: it is the wait that may turn out longer."""
    for budget_s, kind in ((1.16, act.Reject), (1.17, type(None))):
        bench = Bench(mean_s=0.5)
        assert only(bench.job(1.0, budget_s=0.51), act.Execute)
        outcome = of(bench.job(1.0, budget_s=budget_s), act.Reject)
        assert isinstance(outcome[0] if outcome else None, kind)


def test_without_slack_the_whole_budget_may_be_used():
    bench = Bench(mean_s=0.5, placement={"slack": 1.0})
    bench.job(1.0)
    assert not of(bench.job(1.0, budget_s=1.0), act.Reject)


def test_a_full_window_yields_where_it_is_the_only_obstacle():
    bench = Bench(mean_s=0.5, models=("other",), window={"initial": 1})
    bench.peer("b", 0.1)
    assert [len(of(bench.job(1.0), act.Send)) for _ in range(6)] == [1] * 6
    other = Bench(mean_s=0.5, window={"initial": 1})
    other.peer("b", 0.1)
    assert [len(of(other.job(1.0), act.Send)) for _ in range(3)] == [1, 0, 0]


def test_an_expired_job_is_refused_as_such():
    assert only(Bench().job(1.0, budget_s=0.0), act.Reject).why is Reason.EXPIRED


def test_a_job_that_accepts_no_model_is_refused():
    assert only(Bench().job(1.0, models=()), act.Reject).why is Reason.UNKNOWN_MODEL


# Second copies.


def hedging(**hedge):
    """Return a bench that knows how late b's answers come, with a job just sent there, and its command."""
    bench = Bench(mean_s=5.0, hedge={"share": 0.5, **hedge})
    bench.peer("b", 0.1)
    bench.peer("c", 1.0)
    for number in range(25):
        at_s = 1.0 + number
        bench.timers(at_s)
        command = only(bench.job(at_s), act.Send).command
        answer_s = at_s + 0.11 + 0.02 * (number % 3)
        bench.timers(answer_s)
        bench.reply(answer_s, command, service_s=0.1)
    bench.timers(40.0)
    send = only(bench.job(40.0), act.Send)
    assert send.peer == "b"
    return bench, send.command


def test_a_job_that_is_late_gets_a_second_copy_and_the_first_outcome_wins():
    bench, first = hedging()
    (at_s, copy), *more = [each for each in bench.timers(40.3) if isinstance(each[1], act.Send)]
    assert not more
    assert 40.13 < at_s < 40.2
    assert copy.peer == "c"
    assert copy.job.attempt == 1
    actions = bench.reply(40.3, copy.command, name="c", service_s=0.1)
    assert only(actions, act.Reply).command == copy.command
    assert only(actions, act.Cancel).command == first


def test_no_copy_is_made_when_the_answer_is_in_time():
    bench, first = hedging()
    bench.timers(40.11)
    bench.reply(40.11, first, service_s=0.1)
    assert not [each for each in bench.timers(41.0) if isinstance(each[1], act.Send)]


def test_no_copy_is_made_while_the_grid_is_busy():
    bench, _ = hedging(busy_below=0.5)
    bench.feed(40.01, ev.AdvertReceived(state=bench.state("b", backlog_s=1.0)))
    assert not [each for each in bench.timers(40.25) if isinstance(each[1], act.Send)]


def test_copies_are_off_by_default():
    bench, _ = hedging(share=0)
    assert not [each for each in bench.timers(40.25) if isinstance(each[1], act.Send)]


# Execution.


def test_slots_run_at_once():
    bench = Bench(queue={"slots": 2})
    executes = [len(of(bench.job(1.0), act.Execute)) for _ in range(3)]
    assert executes == [1, 1, 0]
    state = bench.core.state_record(1.0)
    assert state.backlog_s == pytest.approx(0.75)
    assert state.running_until_s == pytest.approx(0.5)


def test_jobs_of_one_model_that_wait_share_a_batch():
    bench = Bench(mean_s=0.1, max_batch=3, queue={"batch_jobs": 8})
    for _ in range(5):
        bench.job(1.0)
    finished = bench.feed(1.1, ev.ServiceFinished(command=1, service_s=0.1))
    assert only(finished, act.Execute).handles == (2, 3, 4)
    finished = bench.feed(1.2, ev.ServiceFinished(command=2, service_s=0.1))
    assert [reply.handle for reply in of(finished, act.Reply)] == [2, 3, 4]


def batching(**queue):
    """Return a bench whose batches of three were seen to take half the time, at rest, and the time."""
    bench, now_s = Bench(mean_s=0.1, max_batch=3, queue=queue), 0.0
    for _ in range(20):
        now_s += 1.0
        bench.timers(now_s)
        waiting = [action for _ in range(4) for action in of(bench.job(now_s), act.Execute)]
        left = 4
        while left:
            if not waiting:
                waiting = [action for _, action in bench.timers(now_s + 0.01) if isinstance(action, act.Execute)]
                now_s += 0.01
            run = waiting.pop(0)
            left -= len(run.handles)
            service_s = 0.1 * (1.0 + 0.25 * (len(run.handles) - 1))
            now_s += service_s
            bench.timers(now_s)
            waiting += of(bench.feed(now_s, ev.ServiceFinished(command=run.command, service_s=service_s)), act.Execute)
    bench.timers(now_s + 1.0)
    return bench, now_s + 1.0


def test_a_free_slot_can_be_told_to_wait_for_a_batch_that_pays():
    bench, now_s = batching(batch_wait_s=0.005)
    assert not of(bench.job(now_s), act.Execute)
    assert not of(bench.job(now_s + 0.001), act.Execute)
    assert len(only(bench.job(now_s + 0.002), act.Execute).handles) == 3


def test_a_batch_is_closed_when_its_first_job_has_waited_enough():
    for budget_s, wait_s in ((4.0, 0.005), (0.17, 0.002)):
        bench, now_s = batching(batch_wait_s=0.005)
        assert not of(bench.job(now_s, budget_s=budget_s), act.Execute)
        fired = [at_s for at_s, action in bench.timers(now_s + 0.1) if isinstance(action, act.Execute)]
        assert [at_s - now_s for at_s in fired] == [pytest.approx(wait_s, abs=0.0005)]


def test_a_free_slot_takes_what_is_there():
    bench, now_s = batching()
    assert of(bench.job(now_s), act.Execute)


def test_jobs_are_served_one_by_one_where_a_batch_was_seen_to_take_as_long():
    bench = Bench(mean_s=0.1, max_batch=3)
    for _ in range(6):
        bench.job(1.0)
    assert len(only(bench.feed(1.1, ev.ServiceFinished(command=1, service_s=0.1)), act.Execute).handles) == 3
    finished = bench.feed(1.4, ev.ServiceFinished(command=2, service_s=0.3))
    assert only(finished, act.Execute).handles == (5,)


def test_batches_can_be_switched_off():
    bench = Bench(mean_s=0.1, max_batch=3, queue={"batch_jobs": 1})
    for _ in range(3):
        bench.job(1.0)
    finished = bench.feed(1.1, ev.ServiceFinished(command=1, service_s=0.1))
    assert only(finished, act.Execute).handles == (2,)


def test_each_job_of_a_failed_batch_gets_a_run_of_its_own():
    bench = Bench(mean_s=0.1, max_batch=3)
    for _ in range(4):
        bench.job(1.0)
    bench.feed(1.1, ev.ServiceFinished(command=1, service_s=0.1))
    failed = bench.feed(1.2, ev.ServiceFailed(command=2, reason=Reason.MODEL_FAILED))
    assert not of(failed, act.Reject)
    assert only(failed, act.Execute).handles == (2,)
    failed = bench.feed(1.3, ev.ServiceFailed(command=3, reason=Reason.MODEL_FAILED))
    assert only(failed, act.Reject).handle == 2
    assert only(failed, act.Execute).handles == (3,)


def test_the_service_time_is_learned_and_divided_by_the_slow_down():
    bench = Bench(mean_s=0.1, estimate={"alpha": 1.0, "prior_weight": 0.0})
    bench.feed(0.5, ev.LoadSampled(slow_down=2.0, memory_free_bytes=7, power_class=1))
    bench.job(1.0)
    bench.feed(1.6, ev.ServiceFinished(command=1, service_s=0.6))
    bench.job(2.0)
    state = bench.core.state_record(2.0)
    assert state.backlog_s == pytest.approx(0.6)
    assert (state.memory_free_bytes, state.power_class, state.slow_down) == (7, 1, 2.0)


def test_a_run_past_its_expected_end_is_not_a_free_slot():
    bench = Bench(mean_s=0.5)
    bench.job(1.0)
    state = bench.core.state_record(1.9)
    assert state.backlog_s == state.running_until_s == pytest.approx(0.05)


def test_a_cancelled_run_holds_its_slot_until_the_worker_answers():
    bench = Bench()
    bench.job(1.0)
    bench.job(1.0)
    cancelled = bench.feed(1.1, ev.CancelRequested(handle=1))
    assert only(cancelled, act.Cancel).command == 1
    assert not of(cancelled, act.Execute)
    assert only(bench.feed(1.2, ev.ServiceFailed(command=1, reason=Reason.CANCELLED)), act.Execute).handles == (2,)


def test_a_model_that_leaves_sends_its_waiting_jobs_elsewhere():
    bench = Bench(models=("m", "n"))
    bench.job(1.0, models=("m",))
    bench.job(1.0, models=("m", "n"))
    keep = Capability(model="n", mean_s=0.2, p95_s=0.2, memory_bytes=1, load_s=1.0)
    bench.feed(1.1, ev.ModelChanged(table_digest=b"b", capabilities=(keep,), loaded=frozenset(["n"])))
    execute = only(bench.feed(1.5, ev.ServiceFinished(command=1, service_s=0.5)), act.Execute)
    assert (execute.handles, execute.model) == ((2,), "n")


# Jobs of peers.


def test_the_origin_hears_at_50_ms_and_then_every_half_second():
    bench = Bench(mean_s=1.5)
    bench.job(1.0, origin="b")
    told = [
        (round(time_s, 3), type(action).__name__)
        for time_s, action in bench.timers(2.4)
        if isinstance(action, act.Acknowledge | act.Progress)
    ]
    assert told == [(1.05, "Acknowledge"), (1.55, "Progress"), (2.05, "Progress")]


def test_the_way_back_counts_against_the_deadline():
    bench = Bench(mean_s=0.5, estimate={"rtt_prior_s": 0.1, "goodput_prior_bytes_s": 1e6})
    bench.peer("b", 9.0)
    assert only(bench.job(1.0, origin="b", budget_s=0.62, output_bytes=100_000), act.Nack).why is Reason.DEADLINE
    assert only(bench.job(1.0, origin="b", budget_s=0.66, output_bytes=100_000), act.Execute)


def test_a_job_may_always_come_home():
    bench = Bench()
    actions = bench.job(1.0, origin="c", entry="a", hops=3, visited=("a", "b", "c"))
    assert only(actions, act.Execute)


def test_a_stolen_job_is_served_and_never_passed_on():
    bench = Bench(mean_s=0.5)
    bench.peer("c", 0.001)
    assert only(bench.job(1.0, origin="b", stolen=True, estimate_s=0.01), act.Execute)


def test_jobs_of_a_lost_origin_are_dropped():
    bench = Bench()
    bench.peer("b", 9.0)
    bench.job(1.0, origin="b")
    bench.job(1.0, origin="b")
    lost = bench.feed(1.1, ev.PeerLost(peer="b"))
    assert [reject.handle for reject in of(lost, act.Reject)] == [1, 2]
    assert only(lost, act.Cancel).command == 1


def test_a_failure_at_the_executor_ends_the_job_with_its_reason():
    bench = Bench()
    bench.peer("b")
    command = only(bench.job(1.0), act.Send).command
    failed = ev.ReplyReceived(command=command, model=None, failure=Reason.MODEL_FAILED, state=None, times=None)
    assert only(bench.feed(1.1, failed), act.Reject).why is Reason.MODEL_FAILED


def test_a_worker_lost_at_the_executor_is_a_lost_executor():
    bench = Bench()
    bench.peer("b")
    command = only(bench.job(1.0), act.Send).command
    failed = ev.ReplyReceived(command=command, model=None, failure=Reason.LOST, state=None, times=None)
    assert only(bench.feed(1.1, failed), act.Execute)
    assert bench.core.statistics().executors_lost == 1


# Offers.


def offer(bench, number, now_s, **fields):
    job = make_job(now_s, origin="b", **{"input_bytes": 1000, **fields})
    return bench.feed(now_s, ev.OfferReceived(offer=number, peer="b", job=job))


def test_accepted_payloads_share_one_budget():
    bench = Bench(mean_s=0.01, queue={"receive_budget_bytes": 2500})
    kinds = [type(offer(bench, number, 1.0)[0]).__name__ for number in (1, 2, 3)]
    assert kinds == ["Accept", "Accept", "NackOffer"]
    assert bench.core.statistics().reserved_bytes == 2000
    bench.timers(9.0)
    assert bench.core.statistics().reserved_bytes == 0


def test_reserved_service_counts_as_backlog():
    bench = Bench(mean_s=0.5)
    assert only(offer(bench, 1, 1.0), act.Accept).state.backlog_s == pytest.approx(0.5)
    assert only(offer(bench, 2, 1.0, budget_s=0.9), act.NackOffer).why is Reason.DEADLINE


def test_an_offer_that_the_sender_misjudged_is_refused_with_the_estimate():
    bench = Bench(mean_s=0.5)
    job = make_job(1.0, origin="b")
    actions = bench.feed(1.0, ev.OfferReceived(offer=1, peer="b", job=job, sender_estimate_s=0.1))
    refusal = only(actions, act.NackOffer)
    assert (refusal.why, refusal.estimate_s) == (Reason.QUEUE_FULL, pytest.approx(0.5, abs=0.001))


def test_an_offer_is_not_refused_for_a_way_that_its_sender_has_measured():
    bench = Bench(mean_s=0.01)
    bench.peer("b", 0.01)
    payload = 50 * 2**20  # seconds by the prior of the link, which has never been used from here
    job = make_job(1.0, origin="b", input_bytes=payload, budget_s=0.2)
    actions = bench.feed(1.0, ev.OfferReceived(offer=1, peer="b", job=job, sender_estimate_s=0.05))
    assert only(actions, act.Accept).offer == 1


def test_an_accepted_offer_is_served_even_where_the_sender_would_be_thought_wrong():
    bench = Bench(mean_s=0.5)
    bench.peer("c", 0.001)
    offer(bench, 1, 1.0)
    assert only(bench.job(1.1, origin="b", offer=1, estimate_s=0.01), act.Execute)


# Silence, loss and retries.


def test_quarantine_doubles_with_each_silence_and_ends_with_an_answer():
    bench = Bench(mean_s=0.5)
    bench.peer("b", 0.01)
    sent_at_s = []
    for now_s in (1.0, 1.9, 2.5, 3.5, 4.6, 5.5):
        bench.timers(now_s)
        placed = bench.job(now_s, budget_s=60.0)
        if of(placed, act.Send):
            sent_at_s.append(now_s)
            placed = [action for _, action in bench.timers(now_s + 0.3)]
        # Not answered within 0.27 s, it runs here; with its end the command at the silent peer is closed.
        command = only(placed, act.Execute).command
        bench.feed(now_s + 0.4, ev.ServiceFinished(command=command, service_s=0.1))
    # Silent at 1.27 for 1 s, at 2.77 for 2 s, at 5.77 for 4 s.
    assert sent_at_s == [1.0, 2.5, 5.5]
    bench.timers(9.8)
    command = only(bench.job(9.8, budget_s=60.0), act.Send).command
    bench.timers(10.1)
    bench.feed(10.1, ev.Accepted(command=command, state=bench.state("b")))
    assert bench.core.statistics().executors_silent == 4
    assert bench.core._ledger.view.get("b").is_placeable(10.2)


def test_retries_other_than_losses_take_tokens():
    bench = Bench(mean_s=0.5, retry={"burst": 1.0, "ratio": 0.0})
    for name in ("b", "c", "d"):
        bench.peer(name, 0.01)
    first = only(bench.job(1.0), act.Send).command
    moved = bench.feed(1.01, ev.Nacked(command=first, reason=Reason.QUEUE_FULL, state=None))
    assert only(moved, act.Send)
    second = only(bench.job(2.0), act.Send).command
    stayed = bench.feed(2.01, ev.Nacked(command=second, reason=Reason.QUEUE_FULL, state=None))
    assert only(stayed, act.Execute)


def test_a_job_given_back_by_a_draining_peer_costs_nothing():
    bench = Bench(mean_s=0.5, retry={"burst": 0.0, "ratio": 0.0})
    bench.peer("b", 0.01)
    bench.peer("c", 0.01)
    command = only(bench.job(1.0), act.Send).command
    assert only(bench.feed(1.01, ev.Nacked(command=command, reason=Reason.DRAINING, state=None)), act.Send)


def test_all_jobs_of_a_dead_peer_are_placed_again_without_tokens():
    bench = Bench(mean_s=5.0, retry={"burst": 0.0, "ratio": 0.0}, window={"initial": 50})
    bench.peer("b", 0.01)
    for _ in range(20):
        bench.job(1.0)
    bench.peer("c", 0.01, now_s=1.0)
    lost = bench.feed(1.1, ev.PeerLost(peer="b"))
    assert [send.handle for send in of(lost, act.Send)] == list(range(1, 21))
    assert {send.job.attempt for send in of(lost, act.Send)} == {1}


def test_a_peer_not_reached_is_left_alone_and_is_no_loss():
    bench = Bench(mean_s=0.5)
    bench.peer("b", 0.01)
    command = only(bench.job(1.0), act.Send).command
    assert only(bench.feed(1.01, ev.SendFailed(command=command, connected=False)), act.Execute)
    statistics = bench.core.statistics()
    assert (statistics.executors_lost, statistics.executors_silent) == (0, 0)
    assert not of(bench.job(1.5), act.Send)


def test_a_job_without_another_place_is_left_with_the_silent_peer():
    bench = Bench(mean_s=0.5, models=())
    bench.peer("b", 0.01)
    command = only(bench.job(1.0), act.Send).command
    fired = bench.timers(4.0)
    assert not of([action for _, action in fired], act.Reject)
    assert only(bench.reply(4.1, command), act.Reply)


def test_a_job_lost_to_silence_says_so_at_its_deadline():
    bench = Bench(mean_s=0.5, models=())
    bench.peer("b", 0.01)
    bench.job(1.0)
    rejects = [(time_s, action.why) for time_s, action in bench.timers(6.0) if isinstance(action, act.Reject)]
    assert rejects == [(5.0, Reason.LOST)]


# Stealing.


def steal(bench, now_s, *, name="b", room=4, models=("m",)):
    event = ev.StealRequested(request=1, peer=name, state=bench.state(name), models=models, room=room)
    return only(bench.feed(now_s, event), act.GrantLease)


def loaded_bench(**fields):
    bench = Bench(mean_s=0.3)
    bench.peer("b", 0.3, backlog_s=5.0)
    for _ in range(6):
        bench.job(1.0, **fields)
    return bench


def test_the_tail_is_granted_and_at_most_half_of_the_queue():
    grant = steal(loaded_bench(), 1.0)
    assert [handle for _, handle in grant.grants] == [6, 5, 4]
    assert [job.hops for job in grant.jobs] == [1, 1, 1]
    assert grant.state.backlog_s == pytest.approx(0.9)


def test_grants_stop_where_the_thief_would_be_later():
    bench = loaded_bench()
    grant = steal(bench, 1.0, room=9)
    assert len(grant.grants) == 3
    slow = Bench(mean_s=0.3)
    slow.peer("b", 1.4, backlog_s=5.0)
    for _ in range(6):
        slow.job(1.0, budget_s=9.0)
    assert len(steal(slow, 1.0).grants) == 1


def test_a_thief_without_the_model_gets_nothing():
    assert steal(loaded_bench(), 1.0, models=("other",)).grants == ()


def test_jobs_that_moved_enough_or_were_there_are_not_granted():
    bench = Bench(mean_s=0.3)
    bench.peer("b", 0.3, backlog_s=5.0)
    bench.job(1.0)
    bench.job(1.0, origin="c", hops=2, visited=("d", "c"), entry="d")
    bench.job(1.0, origin="c", hops=2, visited=("b", "c"), entry="b")
    bench.job(1.0, origin="c", hops=2, visited=("d", "b"), entry="d")
    grant = steal(bench, 1.0)
    assert [handle for _, handle in grant.grants] == [3]


def test_stolen_jobs_are_not_granted_on():
    bench = Bench(mean_s=0.3)
    bench.peer("b", 0.3, backlog_s=5.0)
    bench.job(1.0)
    for _ in range(3):
        bench.job(1.0, origin="c", stolen=True, entry="c")
    assert steal(bench, 1.0).grants == ()


def test_only_a_gain_of_two_is_worth_a_question():
    bench = Bench(mean_s=0.3, steal={"enabled": True})
    bench.peer("b", 0.3, backlog_s=0.55, running_until_s=0.1, now_s=0.5)
    assert not [action for _, action in bench.timers(3.0) if isinstance(action, act.Steal)]
    bench.peer("b", 0.3, backlog_s=0.65, running_until_s=0.1, now_s=3.0)
    steals = [action for _, action in bench.timers(5.0) if isinstance(action, act.Steal)]
    assert steals[0].victim == "b"


def test_a_peer_with_nothing_waiting_is_not_asked():
    bench = Bench(mean_s=0.01, steal={"enabled": True})
    bench.peer("b", 0.5, backlog_s=0.5, running_until_s=0.5)
    assert not [action for _, action in bench.timers(3.0) if isinstance(action, act.Steal)]


def test_unanswered_questions_back_off():
    bench = Bench(mean_s=0.01, steal={"enabled": True})
    bench.peer("b", 0.5, backlog_s=2.0, running_until_s=0.5)
    times = [time_s for time_s, action in bench.timers(12.0) if isinstance(action, act.Steal)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) > 4
    assert gaps[-1] > 1.5
    assert bench.core.statistics().steals_asked == len(times)


# Advertising.


def test_records_share_a_budget_with_the_whole_grid():
    bench = Bench(mean_s=0.01)
    for number in range(79):
        bench.peer(f"p{number}", 9.0)
    sent = 0
    for tenth in range(10, 1010):
        now_s = tenth / 10
        sent += sum(1 for _, action in bench.timers(now_s) if isinstance(action, act.Advertise))
        started = bench.job(now_s)
        sent += len(of(started, act.Advertise))
        sent += sum(1 for _, action in bench.timers(now_s + 0.01) if isinstance(action, act.Advertise))
        command = only(started, act.Execute).command
        sent += len(of(bench.feed(now_s + 0.01, ev.ServiceFinished(command=command, service_s=0.01)), act.Advertise))
    assert sent <= 2 + 8 / 80 * 100 + 1
    assert sent >= 8


@pytest.mark.parametrize("on_change", [True, False])
def test_a_change_of_the_load_is_told_at_once_unless_that_is_switched_off(on_change):
    bench = Bench(advert={"on_change": on_change})
    bench.timers(20.0)
    assert bool(of(bench.job(20.1), act.Advertise)) is on_change
    assert [action for _, action in bench.timers(40.0) if isinstance(action, act.Advertise)], "and once per period"


def test_periods_are_jittered():
    bench = Bench()
    times = [time_s for time_s, action in bench.timers(100.0) if isinstance(action, act.Advertise)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 1.8
    assert max(gaps) <= 2.2
    assert len({round(gap, 6) for gap in gaps}) > 20


# Drain.


def test_a_drain_is_told_once_and_beyond_any_budget():
    bench = Bench()
    assert only(bench.feed(1.0, ev.DrainRequested()), act.Drained)
    assert bench.feed(1.1, ev.DrainRequested()) == []
    assert bench.core.state_record(1.2).draining


def test_a_payload_of_an_offer_accepted_before_the_drain_goes_back():
    bench = Bench()
    offer(bench, 1, 1.0)
    bench.feed(1.1, ev.DrainRequested())
    assert only(bench.job(1.2, origin="b", offer=1), act.Nack).why is Reason.DRAINING


# Found missing by breaking the code on purpose.


def test_a_refusal_does_not_hide_that_an_executor_was_lost_before():
    bench = Bench(mean_s=0.5, models=())
    bench.peer("b", 0.01)
    bench.peer("c", 0.02)
    first = only(bench.job(1.0), act.Send)
    second = only(bench.feed(1.1, ev.SendFailed(command=first.command, connected=True)), act.Send)
    refused = bench.feed(1.2, ev.Nacked(command=second.command, reason=Reason.QUEUE_FULL, state=None))
    assert only(refused, act.Reject).why is Reason.LOST


def test_a_drain_gives_up_the_room_kept_for_offers():
    bench = Bench()
    offer(bench, 1, 1.0)
    bench.feed(1.1, ev.DrainRequested())
    statistics = bench.core.statistics()
    assert (statistics.reserved_bytes, statistics.backlog_s) == (0, 0.0)


def test_jobs_that_fall_silent_together_are_one_silence():
    bench = Bench(mean_s=5.0)
    bench.peer("b", 0.01)
    for tenth in range(3):
        bench.job(1.0 + tenth / 100)
    bench.timers(1.5)
    assert bench.core.statistics().executors_silent == 3
    assert bench.core._ledger.view.get("b").quarantine_s == 1.0


def test_a_model_in_use_is_not_evicted():
    cold = {"queue": {"model_memory_bytes": 1}}
    bench = Bench(mean_s=0.5, models=("m",), **cold)
    capabilities = tuple(
        Capability(model=model, mean_s=0.5, p95_s=0.5, memory_bytes=1, load_s=0.1) for model in ("m", "n")
    )
    bench.feed(0.1, ev.ModelChanged(table_digest=b"b", capabilities=capabilities, loaded=frozenset("m")))
    bench.job(1.0)
    refused = bench.job(1.1, models=("n",))
    assert not of(refused, act.EvictModel | act.LoadModel)
    assert only(refused, act.Reject).why is Reason.QUEUE_FULL
    bench.feed(1.5, ev.ServiceFinished(command=1, service_s=0.5))
    assert only(bench.job(1.6, models=("n",)), act.EvictModel).model == "m"


def test_a_model_on_its_way_out_is_not_used_while_its_worker_still_shows():
    bench = Bench(mean_s=0.5, models=("m",), queue={"model_memory_bytes": 1})
    capabilities = tuple(
        Capability(model=model, mean_s=0.5, p95_s=0.5, memory_bytes=1, load_s=0.1) for model in ("m", "n")
    )
    both = ev.ModelChanged(table_digest=b"b", capabilities=capabilities, loaded=frozenset("m"))
    bench.feed(0.1, both)
    assert only(bench.job(1.0, models=("n",)), act.EvictModel).model == "m"
    bench.feed(1.1, both)
    assert not of(bench.job(1.2, models=("m",)), act.Execute)


# Lanes: runs that the core hears of when they are over.


def test_one_run_of_one_job_is_all_there_is_in_hand():
    bench = Bench(queue={"slots": 2})
    assert not bench.core.is_at_rest_but_for_one, "there is none"
    first = only(bench.job(1.0), act.Execute)
    assert bench.core.is_at_rest_but_for_one
    second = only(bench.job(1.1), act.Execute)
    assert not bench.core.is_at_rest_but_for_one
    bench.job(1.2)
    bench.feed(1.5, ev.ServiceFinished(command=first.command, service_s=0.5))
    assert not bench.core.is_at_rest_but_for_one, "the one that waited runs now"
    bench.feed(1.6, ev.ServiceFinished(command=second.command, service_s=0.5))
    assert bench.core.is_at_rest_but_for_one


def test_one_job_that_is_away_is_all_there_is_in_hand():
    bench = Bench(models=("n",))
    bench.peer("b", now_s=1.0)
    send = only(bench.job(1.0), act.Send)
    assert bench.core.is_at_rest_but_for_one
    other = only(bench.job(1.1), act.Send)
    assert not bench.core.is_at_rest_but_for_one
    bench.reply(1.2, send.command)
    assert bench.core.is_at_rest_but_for_one
    bench.reply(1.3, other.command)
    assert not bench.core.is_at_rest_but_for_one


def test_a_job_that_waits_beside_one_that_is_away_is_something_else_in_hand():
    bench = Bench(models=("m", "n"), queue={"slots": 1})
    bench.peer("b", now_s=1.0)
    only(bench.job(1.0), act.Send)
    bench.job(1.0, models=("n",))
    bench.job(1.0, models=("n",))
    assert not bench.core.is_at_rest_but_for_one


def test_a_job_that_waits_beside_one_that_runs_is_something_else_in_hand():
    bench = Bench()
    only(bench.job(1.0), act.Execute)
    assert bench.core.is_at_rest_but_for_one
    assert not of(bench.job(1.1), act.Execute)
    assert not bench.core.is_at_rest_but_for_one


def test_a_job_that_is_away_twice_is_not_decided_like_the_next():
    bench = Bench(models=("n",))
    bench.peer("b", now_s=1.0)
    only(bench.job(1.0), act.Send)
    bench.core._ledger.shipments[99] = None  # a hedge
    assert not bench.core.is_at_rest_but_for_one


def test_a_job_that_is_away_is_something_else_in_hand():
    bench = Bench()
    only(bench.job(1.0), act.Execute)
    bench.peer("b", now_s=1.0)
    only(bench.job(1.0), act.Send)
    assert not bench.core.is_at_rest_but_for_one


def test_room_kept_for_a_peers_job_is_something_else_in_hand():
    bench = Bench()
    bench.job(1.0)
    assert bench.core.is_at_rest_but_for_one
    job = make_job(1.0, key=50, origin="b")
    assert only(bench.feed(1.0, ev.OfferReceived(offer=1, peer="b", job=job)), act.Accept)
    assert not bench.core.is_at_rest_but_for_one


def test_a_draining_node_is_not_at_rest():
    bench = Bench()
    bench.job(1.0)
    bench.feed(1.1, ev.DrainRequested())
    assert not bench.core.is_at_rest_but_for_one


@pytest.mark.parametrize(
    ("policy", "is_decided_alike"), [("capd", True), ("local_only", True), ("max_spare", False), ("jiq", False)]
)
def test_the_next_job_is_decided_alike_where_jobs_move_only_for_a_gain(policy, is_decided_alike):
    bench = Bench(placement={"policy": policy})
    only(bench.job(1.0), act.Execute)
    assert bench.core.is_at_rest_but_for_one is is_decided_alike


def test_jobs_that_only_this_node_can_run_are_all_that_is_in_hand():
    bench = Bench()
    assert bench.core.serves_only(0, ("m",))
    for number in (1, 2, 3):
        bench.job(1.0)
        assert bench.core.jobs_in_hand == number
        assert bench.core.serves_only(number, ("m",))
        assert not bench.core.serves_only(number - 1, ("m",)), "one is somebody else's"


def test_a_peer_that_has_the_model_could_run_the_next_job_whatever_its_state():
    bench = Bench()
    bench.peer("b", mean_s=9.0)
    bench.job(1.0)
    assert not bench.core.serves_only(1, ("m",))
    assert not bench.core.serves_only(1, ("n", "m"))
    assert bench.core.serves_only(1, ("n",))
    bench.feed(1.1, ev.PeerSuspected(peer="b"))
    assert not bench.core.serves_only(1, ("m",)), "it may be back in a moment"
    bench.feed(1.2, ev.PeerLost(peer="b"))
    assert bench.core.serves_only(1, ("m",))


def test_a_peer_whose_table_is_not_known_may_have_any_model():
    bench = Bench()
    bench.feed(1.0, ev.AdvertReceived(state=bench.state("b")))
    assert not bench.core.serves_only(0, ("m",))
    table = CapabilityTable(node_id="b", digest=b"b-------", entries=())
    bench.feed(1.1, ev.TableReceived(table=table))
    assert bench.core.serves_only(0, ("m",))
    bench.feed(1.2, ev.AdvertReceived(state=bench.state("b", table_digest=b"changed-")))
    assert not bench.core.serves_only(0, ("m",))
    bench.feed(1.3, ev.AdvertReceived(state=bench.state("b", table_digest=b"")))
    assert bench.core.serves_only(0, ("m",)), "it says that it has none"


@pytest.mark.parametrize(
    "why", ["draining", "room is kept", "a job waits for its model", "a job is away", "other policy"]
)
def test_with_something_else_to_do_a_node_does_not_only_serve_these_jobs(why):
    bench = Bench(placement={"policy": "jiq" if why == "other policy" else "capd"})
    if why == "draining":
        bench.feed(1.0, ev.DrainRequested())
    elif why == "room is kept":
        bench.job(1.0)
        job = make_job(1.0, key=50, origin="b")
        assert only(bench.feed(1.0, ev.OfferReceived(offer=1, peer="b", job=job)), act.Accept)
    elif why == "a job waits for its model":
        capability = Capability(model="m", mean_s=0.5, p95_s=0.5, memory_bytes=1, load_s=0.1)
        bench.feed(0.5, ev.ModelChanged(table_digest=b"b", capabilities=(capability,), loaded=frozenset()))
        assert only(bench.job(1.0), act.LoadModel)
    elif why == "a job is away":
        only(bench.job(1.0), act.Execute)
        bench.peer("b", now_s=1.0)
        only(bench.job(1.0), act.Send)
    assert not bench.core.serves_only(bench.core.jobs_in_hand, ("n",))


def test_runs_by_a_lane_are_counted_and_can_be_explained():
    bench = Bench(decisions=2)
    keys = tuple(number.to_bytes(24, "big") for number in (7, 8, 9))
    assert bench.feed(1.0, ev.LaneRan(model="m", keys=keys)) == []
    seen = bench.core.statistics()
    assert (seen.jobs_arrived, seen.jobs_executed, seen.replies) == (3, 3, 3)
    first, second = bench.core.decisions()
    assert (first.key, second.key) == keys[1:]
    assert (first.at_s, first.handle, first.model, first.chosen, first.candidates) == (1.0, 0, "m", "a", ())
    assert first.reason == "by a lane, on a ticket"


def test_runs_by_a_lane_to_a_peer_are_counted_as_offloaded_and_explained_by_its_name():
    bench = Bench()
    assert bench.feed(1.0, ev.LaneRan(model="n", keys=(bytes(24), b"k" * 24), executor="b")) == []
    seen = bench.core.statistics()
    assert (seen.jobs_arrived, seen.jobs_offloaded, seen.replies) == (2, 2, 2)
    assert (seen.jobs_received, seen.jobs_executed) == (0, 0)
    decision = bench.core.decisions()[-1]
    assert (decision.at_s, decision.key, decision.handle, decision.model) == (1.0, b"k" * 24, 0, "n")
    assert (decision.chosen, decision.candidates, decision.reason) == ("b", (), "by a lane, on a ticket")


def test_runs_of_a_peers_lane_are_counted_as_received_and_explained_as_run_here():
    bench = Bench()
    assert bench.feed(1.0, ev.LaneRan(model="m", keys=(b"k" * 24,), origin="b")) == []
    seen = bench.core.statistics()
    assert (seen.jobs_received, seen.jobs_executed, seen.replies) == (1, 1, 1)
    assert (seen.jobs_arrived, seen.jobs_offloaded) == (0, 0)
    [decision] = bench.core.decisions()
    assert (decision.key, decision.chosen, decision.model) == (b"k" * 24, "a", "m")
    assert (decision.candidates, decision.reason) == ((), "by a peer's lane")


@pytest.mark.parametrize(("executor", "evicted"), [(None, "n"), ("b", "m")])
def test_a_model_that_runs_by_a_lane_here_is_in_use(executor, evicted):
    bench = Bench(models=("m", "n"), queue={"model_memory_bytes": 2})
    capabilities = tuple(
        Capability(model=model, mean_s=0.5, p95_s=0.5, memory_bytes=1, load_s=0.1) for model in ("m", "n", "o")
    )
    changed = ev.ModelChanged(table_digest=b"b", capabilities=capabilities, loaded=frozenset(("m", "n")))
    bench.feed(0.5, changed)
    for now_s, model in ((1.0, "m"), (2.0, "n")):
        run = only(bench.job(now_s, models=(model,)), act.Execute)
        bench.feed(now_s + 0.5, ev.ServiceFinished(command=run.command, service_s=0.5))
    bench.feed(3.0, ev.LaneRan(model="m", keys=(b"k" * 24,), executor=executor))
    assert only(bench.job(4.0, models=("o",)), act.EvictModel).model == evicted


def test_a_lanes_model_that_is_not_known_here_is_only_counted():
    bench = Bench()
    assert bench.feed(1.0, ev.LaneRan(model="z", keys=(b"k" * 24,), origin="b")) == []
    assert bench.core.statistics().jobs_executed == 1


# Runs for peers that nobody decides about: whether they would begin at once.


def runs_at_once(bench, model="m", *, service_max_s=0.5):
    return bench.core.runs_at_once(model, service_max_s=service_max_s)


def test_a_short_run_of_a_loaded_model_would_begin_at_once_on_an_idle_node():
    bench = Bench(mean_s=0.5)
    assert runs_at_once(bench)
    assert not runs_at_once(bench, service_max_s=0.49)
    assert not runs_at_once(bench, "z")


def test_a_model_that_is_not_loaded_would_not_run_at_once():
    bench = Bench()
    entry = Capability(model="m", mean_s=0.5, p95_s=0.5, memory_bytes=1, load_s=1.0)
    bench.feed(1.0, ev.ModelChanged(table_digest=b"b", capabilities=(entry,), loaded=frozenset()))
    assert not runs_at_once(bench)


def test_nothing_runs_at_once_beside_a_job_wherever_it_is():
    bench = Bench(queue={"slots": 2})
    run = only(bench.job(1.0), act.Execute)
    assert not runs_at_once(bench)
    bench.feed(1.5, ev.ServiceFinished(command=run.command, service_s=0.5))
    assert runs_at_once(bench)
    bench.peer("b", now_s=2.0)
    send = only(bench.job(2.0), act.Send)
    assert not runs_at_once(bench)
    bench.reply(2.1, send.command)
    assert runs_at_once(bench)


def test_nothing_runs_at_once_where_room_is_kept_for_a_peer():
    bench = Bench()
    job = make_job(1.0, key=50, origin="b")
    assert only(bench.feed(1.0, ev.OfferReceived(offer=1, peer="b", job=job)), act.Accept)
    assert not runs_at_once(bench)


def test_nothing_runs_at_once_on_a_draining_node():
    bench = Bench()
    bench.feed(1.0, ev.DrainRequested())
    assert not runs_at_once(bench)


def test_a_slowed_node_is_as_quick_as_it_is_now():
    bench = Bench(mean_s=0.5)
    bench.feed(1.0, ev.LoadSampled(slow_down=3.0, memory_free_bytes=1, power_class=0))
    assert not runs_at_once(bench)
    assert runs_at_once(bench, service_max_s=1.6)


@pytest.mark.parametrize(("policy", "runs"), [("capd", True), ("local_only", True), ("max_spare", False)])
def test_what_a_policy_might_move_does_not_run_at_once(policy, runs):
    assert runs_at_once(Bench(placement={"policy": policy})) is runs


def test_runs_by_a_lane_are_not_explained_when_that_is_off():
    bench = Bench(explain=False)
    bench.feed(1.0, ev.LaneRan(model="m", keys=(bytes(24),)))
    assert bench.core.decisions() == []
    assert bench.core.statistics().jobs_executed == 1


def test_runs_by_a_lane_use_their_model_so_another_is_evicted():
    bench = Bench(models=("m", "n"), queue={"model_memory_bytes": 2})
    capabilities = tuple(
        Capability(model=model, mean_s=0.5, p95_s=0.5, memory_bytes=1, load_s=0.1) for model in ("m", "n", "o")
    )
    bench.feed(0.1, ev.ModelChanged(table_digest=b"b", capabilities=capabilities, loaded=frozenset("mn")))
    for at_s, model in ((1.0, "m"), (2.0, "n")):
        command = only(bench.job(at_s, models=(model,)), act.Execute).command
        bench.feed(at_s + 0.5, ev.ServiceFinished(command=command, service_s=0.5))
    bench.feed(3.0, ev.LaneRan(model="m", keys=(bytes(24),)))
    assert only(bench.job(4.0, models=("o",)), act.EvictModel).model == "n"


def test_runs_by_a_lane_of_a_model_that_has_gone_meanwhile_are_counted_all_the_same():
    bench = Bench()
    bench.feed(1.0, ev.LaneRan(model="gone", keys=(bytes(24),)))
    assert bench.core.statistics().jobs_executed == 1
