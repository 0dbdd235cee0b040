import random

import pytest

from scheduler import policy as policy_module
from scheduler.config import CoreConfig, PlacementConfig
from scheduler.core import Core
from scheduler.policies.capd import CapacityDraw
from scheduler.policies.local_only import LocalOnly
from scheduler.policies.max_spare import MaxSpare, spare_jobs
from scheduler.policies.uniform_random import UniformRandom
from scheduler.policy import make_policy, names, register
from scheduler.types import Capability, Job, PeerState, SchedulerError

JOB = Job(key=b"k", entry="a", input_bytes=1, arrival_s=0.0, deadline_s=9.0, models=("m",))


class FakeService:
    def __init__(self, value_s):
        self.value_s = value_s


class FakePeer:
    """What the policies look at in a peer."""

    def __init__(self, name, *, service_s=0.1, backlog_s=0.0, finish_s=None):
        self.node_id = name
        self.state = PeerState(
            node_id=name,
            epoch=1,
            sequence=1,
            backlog_s=backlog_s,
            slots=1,
            running_until_s=0.0,
            slow_down=1.0,
            warm=1,
            memory_free_bytes=0,
            draining=False,
            power_class=0,
            table_digest=b"",
        )
        self.finish_s = service_s + backlog_s if finish_s is None else finish_s
        self.wait_s = backlog_s
        entry = Capability(model="m", mean_s=service_s, p95_s=service_s, memory_bytes=0, load_s=0.0)
        self.capabilities = {"m": (0, entry)}
        self.shipments = {}
        self._service = FakeService(service_s)

    def service(self, model):
        return self._service


class FakeBoard:
    """A board with given predictions; draws are the first peers."""

    now_s = 0.0
    node_id = "a"

    def __init__(self, peers, *, here_s=0.5, own_s=0.5, own_backlog_s=0.0, may_move=True):
        self.peers = peers
        self.config = CoreConfig()
        self.rng = random.Random(1)
        self.may_move = may_move
        self._here_s = here_s
        self._own_s = own_s
        self._backlog_s = self.wait_s = own_backlog_s
        self.drawn = 0
        self.probed = []
        self.asked = None

    def here_s(self, job, model):
        return self._here_s

    def backlog_s(self):
        return self._backlog_s

    def service_s(self, model):
        return self._own_s

    def draw(self, model, count):
        self.drawn += 1
        return self.peers[:count]

    def draw_evenly(self, model, count):
        self.drawn += 1
        return self.peers[:count]

    def eligible(self, model):
        return list(self.peers)

    def jobs_here(self):
        return round(self._backlog_s / self._own_s)

    def jobs_at(self, peer, model):
        return round(peer.wait_s / peer.service(model).value_s)

    def probe(self, peer):
        self.probed.append(peer.node_id)
        return True

    def finish_s(self, peer, job, model):
        return peer.finish_s

    def predict_s(self, peer, job, model):
        return peer.finish_s, peer.wait_s

    def can_beat(self, model, finish_s):
        return any(peer.finish_s < finish_s for peer in self.peers)


def test_capd_takes_the_least_of_its_draw():
    """Two or three random choices (Mitzenmacher 2000): the best of all is not looked for."""
    peers = [FakePeer("b", finish_s=0.3), FakePeer("c", finish_s=0.2), FakePeer("d", finish_s=0.25)]
    board = FakeBoard([*peers, FakePeer("e", finish_s=0.01)])
    choice = CapacityDraw().choose(JOB, "m", board)
    assert choice.peer.node_id == "c"
    assert [None if peer is None else peer.node_id for peer, _ in choice.looked] == [None, "b", "c", "d"]


def test_capd_prefers_a_node_with_a_shorter_wait_to_a_somewhat_sooner_finish():
    board = FakeBoard([FakePeer("b", service_s=0.01, backlog_s=0.1), FakePeer("c", service_s=0.2)])
    assert CapacityDraw().choose(JOB, "m", board).peer.node_id == "c"
    board.config = CoreConfig(placement=PlacementConfig(wait_weight=0.0))
    assert CapacityDraw().choose(JOB, "m", board).peer.node_id == "b"


def test_capd_stays_without_a_gain_and_does_not_even_draw_when_none_can_be():
    board = FakeBoard([FakePeer("b", finish_s=0.46)])
    assert CapacityDraw().choose(JOB, "m", board).peer is None
    assert board.drawn == 0


def test_capd_goes_anywhere_when_it_cannot_stay():
    board = FakeBoard([FakePeer("b", finish_s=9.0)], here_s=None)
    assert CapacityDraw().choose(JOB, "m", board).peer.node_id == "b"
    assert CapacityDraw().choose(JOB, "m", FakeBoard([], here_s=None)) is None


@pytest.mark.parametrize("name", names())
def test_a_job_that_may_not_move_stays(name):
    policy = make_policy(name)
    board = FakeBoard([FakePeer("b", finish_s=0.0)], may_move=False, own_backlog_s=5.0)
    assert policy.choose(JOB, "m", board).peer is None
    nowhere = FakeBoard([FakePeer("b")], may_move=False, here_s=None)
    assert policy.choose(JOB, "m", nowhere) is None


def test_spare_capacity_is_what_a_second_holds_without_the_queue():
    assert spare_jobs(service_s=0.1, backlog_s=0.0, slots=1) == pytest.approx(10.0)
    assert spare_jobs(service_s=0.1, backlog_s=1.2, slots=1) == pytest.approx(-2.0)


def test_max_spare_keeps_a_job_while_a_job_fits_into_the_second():
    board = FakeBoard([FakePeer("b", service_s=0.001)], own_s=0.5, own_backlog_s=0.4)
    assert MaxSpare().choose(JOB, "m", board).peer is None


def test_max_spare_forwards_to_the_highest_spare():
    peers = [FakePeer("b", service_s=0.01, backlog_s=0.9), FakePeer("c", service_s=0.05)]
    board = FakeBoard(peers, own_s=0.5, own_backlog_s=0.8)
    assert MaxSpare().choose(JOB, "m", board).peer.node_id == "c"


def test_max_spare_believes_what_a_node_advertises_and_not_what_was_learned_of_it():
    told, learned = FakePeer("b", service_s=0.01, backlog_s=0.5), FakePeer("c", service_s=0.02, backlog_s=0.5)
    told._service, learned._service = FakeService(0.05), FakeService(0.001)
    board = FakeBoard([learned, told], own_s=0.5, own_backlog_s=0.8)
    assert MaxSpare().choose(JOB, "m", board).peer.node_id == "b"


def test_max_spare_keeps_a_job_when_all_are_fuller():
    board = FakeBoard([FakePeer("b", service_s=0.01, backlog_s=3.0)], own_s=0.5, own_backlog_s=0.8)
    assert MaxSpare().choose(JOB, "m", board).peer is None


def test_random_draws_this_node_and_all_peers_alike():
    board = FakeBoard([FakePeer("b"), FakePeer("c")])
    counts = {"a": 0, "b": 0, "c": 0}
    for _ in range(3000):
        peer = UniformRandom().choose(JOB, "m", board).peer
        counts["a" if peer is None else peer.node_id] += 1
    assert all(900 < count < 1100 for count in counts.values())


def where(policy, board, count=1):
    found = [policy.choose(JOB, "m", board) for _ in range(count)]
    return ["a" if each.peer is None else each.peer.node_id for each in found]


def test_round_robin_takes_turns():
    board = FakeBoard([FakePeer("c"), FakePeer("b")])
    assert where(make_policy("round_robin"), board, 5) == ["a", "b", "c", "a", "b"]
    assert where(make_policy("round_robin"), FakeBoard([FakePeer("b")], here_s=None), 2) == ["b", "b"]


def test_weighted_random_draws_by_speed():
    board = FakeBoard([FakePeer("b", service_s=0.1), FakePeer("c", service_s=0.05)], own_s=0.1)
    found = where(make_policy("weighted_random"), board, 4000)
    assert 1850 < found.count("c") < 2150
    assert 850 < found.count("a") < 1150


def test_least_queue_counts_jobs_and_knows_no_speed():
    peers = [FakePeer("b", service_s=0.001, backlog_s=0.002), FakePeer("c", service_s=5.0, backlog_s=5.0)]
    assert where(make_policy("least_queue"), FakeBoard(peers, own_backlog_s=1.5)) == ["c"]


def test_jsq_compares_a_draw_in_which_this_node_is_one_of_all():
    """Of four nodes two are drawn: the one with a job more is taken only with its like."""
    peers = [FakePeer(name, service_s=1.0, backlog_s=1.0) for name in "bc"] + [FakePeer("d", service_s=1.0)]
    board = FakeBoard(peers, own_s=1.0, own_backlog_s=1.0)
    board.config = CoreConfig(placement=PlacementConfig(sample=2))
    found = where(make_policy("jsq"), board, 4000)
    assert 1850 < found.count("d") < 2150


def test_jsed_takes_the_least_finish_of_its_draw_and_of_staying():
    peers = [FakePeer("b", finish_s=0.3), FakePeer("c", finish_s=0.2), FakePeer("d", finish_s=0.1)]
    board = FakeBoard(peers, here_s=0.25)
    board.config = CoreConfig(placement=PlacementConfig(sample=2))
    assert where(make_policy("jsed"), board) == ["c"]
    assert where(make_policy("jsed_all"), board) == ["d"]
    assert where(make_policy("jsed_all"), FakeBoard(peers, here_s=0.05)) == ["a"]


def test_jiq_spends_idle_tokens_in_the_order_in_which_they_came():
    policy = make_policy("jiq")
    peers = [FakePeer("b"), FakePeer("c"), FakePeer("d", backlog_s=1.0)]
    for peer in reversed(peers):
        policy.hear(peer, now_s=0.0)
    board = FakeBoard(peers, own_backlog_s=2.0)
    assert where(policy, board, 2) == ["c", "b"]
    assert where(policy, FakeBoard(peers)) == ["a"]


def test_a_busy_record_takes_its_idle_token_back():
    policy = make_policy("jiq", weighted=True)
    policy.hear(FakePeer("b"), now_s=0.0)
    policy.hear(FakePeer("b", backlog_s=1.0), now_s=0.1)
    assert where(policy, FakeBoard([FakePeer("c"), FakePeer("b")], own_backlog_s=2.0)) == ["c"]


def test_probe_asks_its_draw_and_compares_those_asked():
    policy = make_policy("probe")
    peers = [FakePeer("b", finish_s=0.3), FakePeer("c", finish_s=0.2), FakePeer("d", finish_s=0.1)]
    board = FakeBoard(peers)
    board.config = CoreConfig(placement=PlacementConfig(sample=2))
    assert [peer.node_id for peer in policy.ask(JOB, "m", board)] == ["b", "c"]
    assert policy.ask(JOB, "m", FakeBoard(peers, here_s=0.05)) == []
    board.asked = peers[:1]
    assert where(policy, board) == ["b"]


def test_prequal_takes_the_quickest_of_the_cold():
    policy = make_policy("prequal", quantile=0.5, probes=1.0)
    peers = [
        FakePeer("b", service_s=0.01, backlog_s=0.09),
        FakePeer("c", service_s=0.2, backlog_s=0.2),
        FakePeer("d", service_s=0.3, backlog_s=0.3),
    ]
    board = FakeBoard(peers, here_s=None)
    for peer in peers:
        policy.hear(peer, now_s=0.0)
    # b has nine jobs in flight and is hot, though it would be done first.
    assert where(policy, board) == ["c"]
    assert board.probed == ["b"]
    board.now_s = 9.0
    assert policy.choose(JOB, "m", board).peer.node_id == "b", "probes of the past are not used"


def test_c3_ranks_by_the_cube_of_the_queue_and_sends_at_a_rate():
    policy = make_policy("c3")
    peers = [FakePeer("b"), FakePeer("c")]
    board = FakeBoard(peers, here_s=None)
    for _ in range(3):
        policy.observe(peers[0], actual_s=0.03, waiting_s=0.08, service_s=0.01, now_s=0.0)
        policy.observe(peers[1], actual_s=0.05, waiting_s=0.0, service_s=0.03, now_s=0.0)
    assert where(policy, board, 5) == ["c", "c", "c", "c", "b"]


def test_local_only_stays():
    assert LocalOnly().choose(JOB, "m", FakeBoard([FakePeer("b", finish_s=0.0)])).peer is None


def test_shipped_policies_carry_their_names():
    for name in names():
        assert make_policy(name).name == name


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SchedulerError, match="no policy is named 'capdd'; there are c3, capd, jiq"):
        make_policy("capdd")


def test_policies_of_others_are_registered_by_name(monkeypatch):
    monkeypatch.setattr(policy_module, "_registered", {})
    with pytest.raises(ValueError, match="exists already"):
        register("capd", LocalOnly)
    register("mine", LocalOnly)
    config = CoreConfig(placement=PlacementConfig(policy="mine"))
    Core(config, node_id="a", epoch=1, rng=random.Random(1), now_s=0.0)
    with pytest.raises(ValueError, match="exists already"):
        register("mine", LocalOnly)


def test_a_policy_that_learns_is_told(monkeypatch):
    told = []

    class Learner(LocalOnly):
        is_learning = True

        def hear(self, peer, *, now_s):
            told.append((peer.node_id, now_s))

    core = Core(CoreConfig(), node_id="a", epoch=1, rng=random.Random(1), now_s=0.0, policy=Learner())
    from scheduler.events import AdvertReceived

    core.handle(AdvertReceived(state=FakePeer("b").state), now_s=1.0)
    core.handle(AdvertReceived(state=FakePeer("b").state), now_s=2.0)
    assert told == [("b", 1.0)]
