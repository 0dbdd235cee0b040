"""A scenario's run counts every job once, and is a function of its seed."""

import pytest

from simulator.runner import Run, run
from simulator.scenariotext import parse
from simulator.summing import cdf
from simulator.values import ScenarioError

TEXT = """name = "x"
duration_s = 30
warm_up_s = 5

[[models]]
name = "m"
mean_s = {board = 0.2, server = 0.02}
cv = 0.1

[[models]]
name = "n"
mean_s = {board = 0.1, server = 0.01}

[[nodes]]
device = "board"
count = 4

[[nodes]]
device = "server"

[[sources]]
kind = "poisson"
load = 0.6
deadline_s = 2.0
"""


def small(extra="", **changes):
    return parse(TEXT + extra, changes)


def test_every_job_has_one_outcome_and_littles_law_holds():
    result = run(small())
    assert result.submitted == result.answered + sum(result.refused.values()) + result.unfinished
    assert (result.lost, result.unfinished, result.violations) == (0, 0, 0)
    assert result.capacity_hz == pytest.approx(4 / 0.2 + 1 / 0.02)
    assert result.load == pytest.approx(0.6)
    assert result.submitted == pytest.approx(0.6 * 70 * 25, rel=0.15)
    assert result.little.holds
    assert result.little.number > 0.0
    stages = result.stages
    parts_s = stages.network_s + stages.queue_s + stages.service_s + stages.load_s
    assert parts_s == pytest.approx(result.mean_s)
    assert sum(node.executed for node in result.nodes) == result.answered
    assert sum(flow.jobs for flow in result.flows) == result.answered
    assert sum(result.hops) == result.answered


def test_what_happens_over_time_adds_up():
    result = run(small())
    server = result.nodes[-1]
    assert len(server.backlog.values) == len(server.busy.values) == 200
    counted = server.busy.values[-int(25 / server.busy.step_s) :]
    assert sum(counted) / len(counted) == pytest.approx(server.utilisation, rel=0.05)
    assert sum(result.answers.values) * result.answers.step_s >= result.answered
    assert max(result.open_jobs.values) > 0


def test_a_run_is_a_function_of_its_seed():
    first, again, other = (run(small(), seed=seed, hashed=True) for seed in ("a", "a", "b"))
    assert first == again
    assert first.trace_hash != other.trace_hash
    assert len(first.trace_hash) == 64


def test_arrivals_do_not_depend_on_policy_or_other_nodes():
    """Each entry's arrivals and choices have draws of their own."""
    plain = run(small(), policy="capd")
    local = run(small(), policy="local_only")
    rates = "sources.0.load", "sources.0.rate_hz"
    text = TEXT.replace("load = 0.6", "rate_hz = 40.0\nentries = 'board'")
    fewer, more = (run(parse(text, {"nodes.server.count": count})) for count in (1, 3))
    assert [node.submitted for node in plain.nodes] == [node.submitted for node in local.nodes], rates
    assert [node.submitted for node in fewer.nodes[:4]] == [node.submitted for node in more.nodes[:4]]


def test_a_cascade_counts_into_the_frames_time():
    then = '[sources.then]\nmodel = "n"\nprobability = 0.5\n'
    result = run(small(then))
    alone = run(small())
    assert result.capacity_hz == pytest.approx(4 / 0.25 + 1 / 0.025)
    assert result.submitted == result.answered + sum(result.refused.values())
    assert result.stages.service_s > alone.stages.service_s
    assert result.little.holds


def test_clients_of_a_dead_node_ask_the_next():
    result = run(small('[[faults]]\nkind = "crash"\nnodes = "board1"\nat_s = 15.0\n'))
    assert (result.lost, result.unfinished) == (0, 0)
    assert [node.is_alive for node in result.nodes] == [True, False, True, True, True]
    assert result.answered > 0.95 * result.submitted


def test_progress_is_told_and_a_run_can_be_watched():
    shares = []
    watched = Run(small())
    watched.advance(3.0)
    result = watched.finish(shares.append)
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert result == run(small())


def test_cameras_replays_and_hot_spots_feed():
    text = TEXT[: TEXT.index("[[sources]]")]
    cameras = run(parse(text + '[[sources]]\nkind = "camera"\ncount = 10\nfps = 2.0\nentries = "board"\n'))
    assert cameras.submitted == pytest.approx(10 * 2 * 25, abs=10)
    replay = run(parse(text + '[[sources]]\nkind = "replay"\ntimes_s = [1.0, 6.0, 7.0, 40.0]\nmodels = ["n"]\n'))
    assert replay.submitted == 2
    spot = '[[sources]]\nkind = "mmpp"\nrate_hz = 30\nhot_spot = {share = 0.8, every_s = 10.0}\n'
    assert run(parse(text + spot)).submitted > 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "best"}, "policy: no policy is named 'best'; there are"),
        ({"policy": "oracle(d=2)"}, "policy: oracle has no argument 'd'"),
        ({"nodes.server.device": "gpu"}, "line 7: models[0].mean_s: nothing for the device 'gpu'"),
        ({"nodes.*.models": []}, "sources[0].load: no node can run"),
    ],
)
def test_what_only_a_run_can_find_wrong_is_told(change, message):
    with pytest.raises(ScenarioError) as caught:
        run(parse(TEXT, change))
    assert str(caught.value).startswith(message)


def test_distribution_functions_are_dense_in_the_tail():
    values = [float(number) for number in range(100_000)]
    points = cdf(values, 200)
    assert 100 < len(points) <= 200
    assert points[-1] == (99_999.0, 1.0)
    assert sum(share > 0.99 for _, share in points) > 30
    assert cdf([], 10) == ()


def test_waiting_for_a_model_that_is_loaded_is_told_apart():
    cold = small(**{"nodes.*.loaded": [], "models.0.load_s": 2.0, "warm_up_s": 0, "sources.0.deadline_s": 20.0})
    result = run(cold)
    assert result.stages.load_s > 0.001
    assert run(small()).stages.load_s == 0.0
    parts_s = sum(getattr(result.stages, name) for name in result.stages.__struct_fields__)
    assert parts_s == pytest.approx(result.mean_s)


def test_messages_are_counted_where_asked_for():
    assert {node.messages for node in run(small()).nodes} == {0}
    metered = run(small(**{"measure.traffic": True}))
    assert all(node.messages > 50 and node.sent_bytes > 100 * node.messages for node in metered.nodes)


def test_networks_of_profiles_share_media_and_gossip_over_a_mesh():
    extra = """
[network]
link = "ethernet"
sharing = "pooled"
media_mbit_s = {ap = 20.0}
mesh_degree = 2
pool = true
"""
    nodes = {"nodes.board.link": "wifi", "nodes.board.medium": "ap", "models.0.input_bytes": 100_000}
    shared = run(small(extra, **nodes))
    free = run(small())
    assert shared.stages.network_s > 2 * free.stages.network_s
    assert (shared.lost, shared.violations) == (0, 0)
