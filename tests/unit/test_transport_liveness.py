"""The failure detector, with literal times."""

import math
import random

import pytest

from transport.liveness import Liveness
from transport.liveness_events import (
    Action,
    Changed,
    LeaveRequested,
    LivenessConfig,
    NoticeReceived,
    PeerDoubted,
    PeersChanged,
    PeerSeen,
    PeerSpoke,
    ProbeAnswered,
    ProbeBroken,
    PublishHealth,
    SendPing,
    Status,
    TimerFired,
)
from transport.standing import suspicion_time_s
from transport.wire import HealthNotice


def detector(*peers: str, **config: float) -> Liveness:
    """A detector at time 0 that knows these peers in epoch 1 and probes on demand only, unless told otherwise."""
    config.setdefault("period_s", 1e6)
    live = Liveness("me", 7, random.Random(1), LivenessConfig(**config))  # type: ignore[arg-type]
    for peer in peers:
        live.handle(PeerSeen(node=peer, epoch=1, direct=False), now_s=0.0)
    live.handle(PeersChanged(peers), now_s=0.0)
    return live


def pings(actions: list[Action]) -> list[SendPing]:
    return [action for action in actions if isinstance(action, SendPing)]


def words(actions: list[Action]) -> list[tuple[str, str]]:
    return [(a.notice.subject, a.notice.status) for a in actions if isinstance(a, PublishHealth)]


def changes(actions: list[Action]) -> list[tuple[str, Status]]:
    return [(a.node, a.status) for a in actions if isinstance(a, Changed)]


def doubt(live: Liveness, node: str, now_s: float) -> SendPing:
    (ping,) = pings(live.handle(PeerDoubted(node), now_s=now_s))
    return ping


def run_until(live: Liveness, end_s: float) -> list[Action]:
    """Fire every timer up to a time."""
    done: list[Action] = []
    while (due_s := live.next_deadline_s()) <= end_s:
        done += live.handle(TimerFired(), now_s=due_s)
    return done


def word(subject: str, status: str, *, incarnation: int = 0, epoch: int = 1) -> HealthNotice:
    return HealthNotice(subject=subject, epoch=epoch, incarnation=incarnation, status=status)


def test_every_peer_is_probed_once_before_any_is_probed_twice() -> None:
    live = detector("a", "b", "c", "d", "e", period_s=1.0, probes_per_period=2)
    targets = []
    while len(targets) < 10:
        due_s = live.next_deadline_s()
        for ping in pings(live.handle(TimerFired(), now_s=due_s)):
            targets.append(ping.target)
            live.handle(ProbeAnswered(probe=ping.probe, target=ping.target), now_s=due_s)
    assert sorted(targets[:5]) == sorted(targets[5:]) == ["a", "b", "c", "d", "e"]
    assert live.next_deadline_s() == 6.0  # two per second, ten so far


def test_the_turns_of_a_period_come_at_once_and_on_the_beat_of_the_process() -> None:
    live = Liveness("me", 7, random.Random(1), LivenessConfig())
    live.handle(PeersChanged(("a", "b", "c")), now_s=731000.3)
    for second in range(1, 6):
        assert live.next_deadline_s() == 731000.0 + second
        sent = pings(live.handle(TimerFired(), now_s=731000.0 + second + 0.002))
        assert len(sent) == 2
        for ping in sent:
            live.handle(ProbeAnswered(probe=ping.probe, target=ping.target), now_s=731000.0 + second + 0.004)


def test_since_when_a_node_is_alive_is_known_and_ends_with_a_suspicion() -> None:
    live = Liveness("me", 7, random.Random(1), LivenessConfig())
    live.handle(PeerSeen(node="a", epoch=1, direct=False), now_s=5.0)
    live.handle(PeerSeen(node="a", epoch=1, direct=False), now_s=9.0)
    assert (live.alive_since_s("a"), live.alive_since_s("nobody")) == (5.0, math.inf)
    live.handle(NoticeReceived(origin="b", notice=word("a", "suspect")), now_s=10.0)
    assert live.alive_since_s("a") == math.inf
    live.handle(NoticeReceived(origin="a", notice=word("a", "alive", incarnation=1)), now_s=11.0)
    assert live.alive_since_s("a") == 11.0


def test_every_other_turn_of_a_peer_that_pings_us_passes() -> None:
    live = detector("a", "b", period_s=1.0)
    targets = []
    for _ in range(6):  # a turn each
        due_s = live.next_deadline_s()
        live.handle(PeerSpoke("a"), now_s=due_s - 0.01)
        for ping in pings(live.handle(TimerFired(), now_s=due_s)):
            targets.append(ping.target)
            live.handle(ProbeAnswered(probe=ping.probe, target=ping.target), now_s=due_s)
    assert targets.count("b") == 6
    assert targets.count("a") == 3


def test_a_peer_that_never_answered_or_has_gone_quiet_is_probed_at_its_turn() -> None:
    live = detector("a", period_s=1.0)
    first_s = live.next_deadline_s()
    live.handle(PeerSpoke("a"), now_s=first_s - 0.01)
    (ping,) = pings(live.handle(TimerFired(), now_s=first_s))  # it speaks, but whether we reach it is not known
    live.handle(ProbeAnswered(probe=ping.probe, target="a"), now_s=first_s + 0.01)
    assert pings(live.handle(TimerFired(), now_s=live.next_deadline_s()))  # quiet for spoke_s


def test_a_silent_peer_is_suspect_after_helpers_fail_too_and_dead_after_the_suspicion_time() -> None:
    live = detector("a", "b", "c", "d")
    ping = doubt(live, "a", 0.0)
    asked = pings(live.handle(TimerFired(), now_s=0.5))
    asked = [p for p in asked if p.via is not None]
    assert {p.target for p in asked} == {"a"}
    assert {p.via for p in asked} == {"b", "c", "d"}
    for p in asked:
        assert p.via is not None
        live.handle(ProbeAnswered(probe=ping.probe, target="a", via=p.via, reached=False), now_s=1.1)
    assert live.status("a") is Status.ALIVE  # a late answer is still welcome
    actions = live.handle(TimerFired(), now_s=1.25)
    assert changes(actions) == [("a", Status.SUSPECT)]
    assert words(actions) == [("a", "suspect")]
    for accuser in ("b", "c"):
        live.handle(NoticeReceived(origin=accuser, notice=word("a", "suspect")), now_s=1.3)
    dead_s = 1.25 + suspicion_time_s(LivenessConfig(), nodes=5, confirmations=2)
    assert live.next_deadline_s() == pytest.approx(dead_s)


def test_a_suspicion_without_any_helper_is_not_published() -> None:
    live = detector("a", "b")
    doubt(live, "a", 0.0)
    done = run_until(live, 30.0)
    assert ("a", Status.SUSPECT) in changes(done)
    assert ("a", Status.DEAD) in changes(done)
    assert words(done) == []


def test_a_refused_connection_makes_suspect_at_once_and_dead_within_two_seconds() -> None:
    live = detector("a", "b", "c")
    live.handle(PeerSeen(node="a", epoch=1, direct=True), now_s=0.0)
    ping = doubt(live, "a", 0.0)
    actions = live.handle(ProbeBroken(probe=ping.probe, target="a"), now_s=0.01)
    assert changes(actions) == [("a", Status.SUSPECT)]
    assert words(actions) == []
    for helper in pings(actions):
        actions = live.handle(ProbeAnswered(probe=ping.probe, target="a", via=helper.via, reached=False), now_s=0.02)
    assert words(actions) == [("a", "suspect")]
    done = run_until(live, 2.1)
    assert ("a", Status.DEAD) in changes(done)
    assert ("a", "dead") in words(done)


def test_a_refusal_of_a_peer_that_never_answered_counts_as_silence() -> None:
    live = detector("a", "b", "c")
    ping = doubt(live, "a", 0.0)
    assert live.handle(ProbeBroken(probe=ping.probe, target="a"), now_s=0.01) == []
    assert live.next_deadline_s() == 0.5  # then helpers are asked
    run_until(live, 1.2)
    assert live.status("a") is Status.ALIVE


def test_a_peer_only_helpers_reach_stays_alive_and_its_next_refusal_says_nothing() -> None:
    live = detector("a", "b")
    live.handle(PeerSeen(node="a", epoch=1, direct=True), now_s=0.0)
    ping = doubt(live, "a", 0.0)
    live.handle(ProbeBroken(probe=ping.probe, target="a"), now_s=0.0)
    actions = live.handle(ProbeAnswered(probe=ping.probe, target="a", via="b"), now_s=0.01)
    assert changes(actions) == [("a", Status.ALIVE)]
    ping = doubt(live, "a", 0.02)
    assert changes(live.handle(ProbeBroken(probe=ping.probe, target="a"), now_s=0.03)) == []


def test_a_late_answer_clears_the_suspicion() -> None:
    live = detector("a", "b")
    ping = doubt(live, "a", 0.0)
    run_until(live, 1.3)
    assert live.status("a") is Status.SUSPECT
    live.handle(ProbeAnswered(probe=ping.probe, target="a"), now_s=1.4)
    assert live.status("a") is Status.ALIVE


def test_time_in_which_we_did_not_run_is_nobodys_silence() -> None:
    live = detector("a", "b", "c")
    doubt(live, "a", 0.0)
    actions = live.handle(TimerFired(), now_s=60.0)
    assert changes(actions) == []
    assert live.statistics().stalls == 1
    assert live.statistics().awareness == 1
    run_until(live, 60.2)
    assert live.status("a") is Status.ALIVE


def test_an_accusation_is_refuted_with_a_higher_incarnation_at_most_twice_a_second() -> None:
    live = detector("a", "b")
    actions = live.handle(NoticeReceived(origin="a", notice=word("me", "suspect", epoch=7)), now_s=0.0)
    (said,) = [a.notice for a in actions if isinstance(a, PublishHealth)]
    assert (said.subject, said.status, said.epoch, said.incarnation) == ("me", "alive", 7, 1)
    for i in range(20):
        notice = word("me", "dead", epoch=7, incarnation=1 + i)
        assert words(live.handle(NoticeReceived(origin="a", notice=notice), now_s=0.01)) == []
    done = run_until(live, 1.0)
    assert words(done) == [("me", "alive")]
    assert live.statistics().incarnation == 2


def test_a_word_about_the_newest_incarnation_is_refuted_even_while_older_words_wait_for_their_answer() -> None:
    live = detector("a", "b", "c")
    live.handle(NoticeReceived(origin="a", notice=word("me", "suspect", epoch=7)), now_s=0.0)
    live.handle(NoticeReceived(origin="b", notice=word("me", "suspect", epoch=7)), now_s=0.0)
    live.handle(NoticeReceived(origin="c", notice=word("me", "suspect", epoch=7, incarnation=1)), now_s=0.3)
    (said,) = [a.notice for a in run_until(live, 1.0) if isinstance(a, PublishHealth)]
    assert said.incarnation == 2


def test_an_accusation_falls_to_an_alive_with_a_higher_incarnation_only() -> None:
    live = detector("a", "b")
    live.handle(NoticeReceived(origin="b", notice=word("a", "suspect")), now_s=0.0)
    assert live.status("a") is Status.SUSPECT
    live.handle(NoticeReceived(origin="a", notice=word("a", "alive")), now_s=0.1)
    assert live.status("a") is Status.SUSPECT
    live.handle(NoticeReceived(origin="a", notice=word("a", "alive", incarnation=1)), now_s=0.1)
    assert live.status("a") is Status.ALIVE
    live.handle(NoticeReceived(origin="b", notice=word("a", "suspect")), now_s=0.2)
    assert live.status("a") is Status.ALIVE, "the word is about an incarnation that was refuted"


def test_an_older_word_of_the_subject_played_back_changes_nothing() -> None:
    live = detector("a", "b")
    live.handle(NoticeReceived(origin="a", notice=word("a", "alive", incarnation=2)), now_s=0.0)
    for old in (word("a", "left", incarnation=1), word("a", "left", incarnation=9, epoch=0)):
        assert live.handle(NoticeReceived(origin="a", notice=old), now_s=0.1) == []
    assert live.status("a") is Status.ALIVE
    live.handle(NoticeReceived(origin="b", notice=word("a", "suspect", incarnation=1)), now_s=0.2)
    assert live.status("a") is Status.ALIVE, "and the incarnation did not fall"


def test_a_liars_huge_incarnation_does_not_outrun_refutation() -> None:
    live = detector("a", "b")
    live.handle(NoticeReceived(origin="b", notice=word("a", "suspect", incarnation=2**53)), now_s=0.0)
    live.handle(NoticeReceived(origin="a", notice=word("a", "alive", incarnation=1)), now_s=0.1)
    assert live.status("a") is Status.ALIVE


@pytest.mark.parametrize("status", ["suspect", "dead"])
def test_one_nodes_word_does_not_kill_a_peer(status: str) -> None:
    live = detector("a", "b")
    live.handle(NoticeReceived(origin="b", notice=word("a", status)), now_s=0.0)
    live.handle(NoticeReceived(origin="b", notice=word("a", "dead")), now_s=0.5)
    assert live.status("a") is Status.SUSPECT
    live.handle(NoticeReceived(origin="b", notice=word("a", "dead")), now_s=1.1)
    assert live.status("a") is Status.DEAD


def test_an_accused_peer_that_just_answered_us_is_probed_and_not_suspected() -> None:
    live = detector("a", "b")
    live.handle(PeerSeen(node="a", epoch=1, direct=True), now_s=0.0)
    actions = live.handle(NoticeReceived(origin="b", notice=word("a", "suspect")), now_s=0.2)
    assert changes(actions) == []
    assert [p.target for p in pings(actions)] == ["a"]


@pytest.mark.parametrize(("origin", "status"), [("b", "alive"), ("b", "left"), ("a", "suspect"), ("a", "dead")])
def test_only_the_subject_says_alive_and_left_and_only_others_accuse(origin: str, status: str) -> None:
    live = detector("a", "b")
    actions = live.handle(NoticeReceived(origin=origin, notice=word("a", status, incarnation=3)), now_s=0.0)
    assert changes(actions) == []
    assert live.statistics().notices_ignored == 1


def test_the_dead_are_not_revived_by_late_records_but_by_a_new_epoch_or_an_answer() -> None:
    live = detector("a", "b")
    doubt(live, "a", 0.0)
    run_until(live, 20.0)
    assert live.status("a") is Status.DEAD
    live.handle(PeerSeen(node="a", epoch=1, direct=False), now_s=20.0)
    assert live.status("a") is Status.DEAD
    actions = live.handle(PeerSeen(node="a", epoch=1, direct=True), now_s=20.0)
    assert live.status("a") is Status.ALIVE
    assert words(actions) == [("a", "suspect")], "so that it refutes at the others too"
    live = detector("a", "b")
    doubt(live, "a", 0.0)
    run_until(live, 20.0)
    actions = live.handle(PeerSeen(node="a", epoch=2, direct=False), now_s=20.0)
    assert changes(actions) == [("a", Status.ALIVE)]


def test_a_record_of_a_dead_node_makes_us_probe_it_once_it_can_be_no_late_one() -> None:
    live = detector("a", "b")
    doubt(live, "a", 0.0)
    run_until(live, 3.0)
    died_s = 1.25 + suspicion_time_s(LivenessConfig(), nodes=3, confirmations=0)
    run_until(live, died_s)
    assert live.status("a") is Status.DEAD
    assert live.handle(PeerSeen(node="a", epoch=1, direct=False), now_s=died_s + 4.9) == []
    actions = live.handle(PeerSeen(node="a", epoch=1, direct=False), now_s=died_s + 5.0)
    assert [ping.target for ping in pings(actions)] == ["a"]


def test_a_clean_leave_is_told_and_believed_and_ended_by_the_next_epoch() -> None:
    live = detector("a", "b")
    assert words(live.handle(LeaveRequested(), now_s=0.0)) == [("me", "left")]
    live.handle(NoticeReceived(origin="a", notice=word("me", "suspect", epoch=7)), now_s=0.0)
    assert words(run_until(live, 0.0)) == [], "who goes does not refute"
    live.handle(NoticeReceived(origin="a", notice=word("a", "left")), now_s=0.1)
    assert live.status("a") is Status.LEFT
    live.handle(PeerSeen(node="a", epoch=1, direct=True), now_s=0.2)
    assert live.status("a") is Status.LEFT
    live.handle(PeerSeen(node="a", epoch=2, direct=False), now_s=0.3)
    assert live.status("a") is Status.ALIVE


def test_a_peer_whose_connections_are_gone_is_probed_at_once() -> None:
    live = detector("a", "b")
    assert [p.target for p in pings(live.handle(PeersChanged(("b",)), now_s=0.0))] == ["a"]


def test_the_dead_are_forgotten_after_their_time_and_make_room_before() -> None:
    live = detector("a", "b", members_max=2)
    doubt(live, "a", 0.0)
    run_until(live, 20.0)
    live.handle(PeerSeen(node="c", epoch=1, direct=False), now_s=20.0)
    assert live.status("a") is None
    assert live.status("c") is Status.ALIVE
    live.handle(PeerSeen(node="d", epoch=1, direct=False), now_s=20.0)
    assert live.status("d") is None, "the living are not pushed out"


def test_a_node_that_gossips_but_answers_no_probe_is_accused_ever_more_rarely_and_not_declared_dead() -> None:
    live = detector("a", "b", "c", period_s=1.0)
    accused: list[float] = []
    incarnation = 0
    while (now_s := live.next_deadline_s()) < 3600.0:
        events = list(live.handle(TimerFired(), now_s=now_s))
        for action in events:
            if isinstance(action, SendPing) and "a" not in (action.target, action.via):
                events += live.handle(ProbeAnswered(probe=action.probe, target=action.target), now_s=now_s)
            elif isinstance(action, SendPing) and action.via is not None:
                answer = ProbeAnswered(probe=action.probe, target="a", via=action.via, reached=False)
                events += live.handle(answer, now_s=now_s)
            elif isinstance(action, PublishHealth):
                accused.append(now_s)
                incarnation += 1
                notice = word("a", "alive", incarnation=incarnation)
                events += live.handle(NoticeReceived(origin="a", notice=notice), now_s=now_s)
            elif isinstance(action, Changed):
                assert action.status is not Status.DEAD
    assert 10 <= len(accused) <= 40
    assert accused[-1] - accused[-2] >= 160.0


def test_a_node_without_a_connection_to_us_is_probed_now_and_then() -> None:
    live = detector("a", "b", period_s=1.0)
    live.handle(PeerSeen(node="far", epoch=1, direct=False), now_s=0.0)
    asked = []
    while (now_s := live.next_deadline_s()) < 20.0:
        for ping in pings(live.handle(TimerFired(), now_s=now_s)):
            asked.append(ping.target)
            live.handle(ProbeAnswered(probe=ping.probe, target=ping.target), now_s=now_s)
    assert 4 <= asked.count("far") <= 6


def test_failures_without_any_helpers_answer_stretch_our_timeouts() -> None:
    live = detector("a", "b", "c", "d")
    doubt(live, "a", 0.0)
    run_until(live, 1.25)
    assert live.statistics().awareness == 3
    assert doubt(live, "d", 1.25).timeout_s == pytest.approx(1.25 * 4)
