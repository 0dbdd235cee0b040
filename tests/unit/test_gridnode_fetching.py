"""Whom a download asks."""

import random

from gridnode.fetching import PEERS_MAX, choose_sources


def test_in_a_large_grid_every_peer_is_asked_in_time_and_an_admit_node_each_time():
    known = [f"n{i:03}" for i in range(100)]
    rng = random.Random(1)
    asked = set()
    for _ in range(100):
        chosen = choose_sources(known, ["n050"], rng)
        assert len(chosen) == len(set(chosen)) == PEERS_MAX
        assert "n050" in chosen
        asked |= set(chosen)
    assert asked == set(known)


def test_in_a_small_grid_all_are_asked():
    assert sorted(choose_sources(["a", "b", "c"], ["b"], random.Random(1))) == ["a", "b", "c"]
    assert choose_sources([], [], random.Random(1)) == []
