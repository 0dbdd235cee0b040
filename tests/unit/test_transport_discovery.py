"""The planner of control connections, with literal times, and its address book."""

import itertools
import os
import random
from pathlib import Path

import pytest

from transport.addressbook import BOOK_MAX_BYTES, Address, BookEntry, load_book, save_book
from transport.base import Dial
from transport.discovery import Discovery, DiscoveryConfig
from transport.discovery_events import (
    Action,
    AddressesLearned,
    DialFailed,
    DialPeer,
    DialSucceeded,
    DropPeer,
    NeighboursChanged,
    PeerForgotten,
    PeerRevived,
    TimerFired,
)


def entry(node: str, connected_s: float = 0.0) -> BookEntry:
    return BookEntry(node=node, addresses=(Address("10.0.0.1", 4000),), connected_s=connected_s)


def planner(*nodes: str, bootstrap: tuple[str, ...] = (), **config: float) -> Discovery:
    config.setdefault("exchange_s", 1e6)
    return Discovery(
        "me",
        [Dial(node=n, host="boot", port=4000) for n in bootstrap],
        random.Random(3),
        DiscoveryConfig(**config),  # type: ignore[arg-type]
        book=[entry(n) for n in nodes],
    )


def dials(actions: list[Action]) -> list[str]:
    return [action.dial.node for action in actions if isinstance(action, DialPeer)]


def drops(actions: list[Action]) -> list[str]:
    return [action.node for action in actions if isinstance(action, DropPeer)]


def settle(plan: Discovery, *, until_s: float, up: set[str]) -> list[tuple[float, str]]:
    """Answer every dial at once, fire every timer; return the dials with their times."""
    done: list[tuple[float, str]] = []
    now_s = 0.0
    actions = plan.handle(TimerFired(), now_s=now_s)
    while True:
        while actions:
            action = actions.pop(0)
            if isinstance(action, DialPeer):
                node = action.dial.node
                done.append((now_s, node))
                answer = DialSucceeded(node=node) if node in up else DialFailed(node=node)
                actions += plan.handle(answer, now_s=now_s)
        if plan.next_deadline_s() > until_s:
            return done
        assert plan.next_deadline_s() > now_s, "a planner must not spin"
        now_s = plan.next_deadline_s()
        actions = plan.handle(TimerFired(), now_s=now_s)


def test_a_fresh_node_dials_its_bootstrap_nodes_first_and_a_few_at_a_time() -> None:
    plan = planner("a", "b", "c", "d", bootstrap=("x",))
    first = dials(plan.handle(TimerFired(), now_s=0.0))
    assert first[0] == "x"
    assert len(first) == DiscoveryConfig().dials_max


def test_it_fills_up_to_the_wanted_number_and_rests() -> None:
    names = [f"p{i}" for i in range(20)]
    plan = planner(*names)
    done = settle(plan, until_s=100.0, up=set(names))
    assert len(done) == DiscoveryConfig().wanted == plan.statistics().neighbours
    assert plan.statistics().isolated_s is None


def test_a_peer_that_cannot_be_reached_is_dialled_with_growing_pauses_up_to_a_cap() -> None:
    plan = planner("a", hungry_backoff_max_s=30.0)
    times = [at_s for at_s, _ in settle(plan, until_s=300.0, up=set())]
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert 0.25 <= pauses[0] <= 0.5
    assert 1.0 <= pauses[2] <= 2.0
    assert max(pauses) <= 30.0
    assert min(pauses[7:]) >= 15.0


def test_a_hungry_node_comes_back_sooner() -> None:
    times = [at_s for at_s, _ in settle(planner("a"), until_s=300.0, up=set())]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 8.0


def test_addresses_of_a_peer_are_tried_in_turn() -> None:
    plan = planner()
    addresses = (Address("10.0.0.1", 1), Address("10.0.0.2", 2))
    seen = []
    now_s = 0.0
    actions = plan.handle(AddressesLearned(node="a", addresses=addresses), now_s=now_s)
    for _ in range(3):
        (dial,) = [a.dial for a in actions if isinstance(a, DialPeer)]
        seen.append(dial.host)
        plan.handle(DialFailed(node="a"), now_s=now_s)
        now_s = plan.next_deadline_s()
        actions = plan.handle(TimerFired(), now_s=now_s)
    assert seen == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]


def test_new_addresses_and_a_return_from_the_dead_end_the_backoff() -> None:
    plan = planner("a")
    settle(plan, until_s=100.0, up=set())
    event = AddressesLearned(node="a", addresses=(Address("10.9.9.9", 5),))
    assert dials(plan.handle(event, now_s=100.0)) == ["a"]
    plan.handle(DialFailed(node="a"), now_s=100.0)
    assert dials(plan.handle(PeerRevived("a"), now_s=100.0)) == ["a"]


def test_above_the_high_mark_connections_are_let_go_and_not_dialled_again_at_once() -> None:
    names = tuple(f"p{i:02}" for i in range(15))
    plan = planner(*names)
    gone = drops(plan.handle(NeighboursChanged(nodes=names), now_s=0.0))
    assert len(gone) == 3
    left = tuple(n for n in names if n not in gone)[:5]
    again = dials(plan.handle(NeighboursChanged(nodes=left), now_s=1.0))
    assert again == []
    plan.handle(TimerFired(), now_s=plan.next_deadline_s())


def test_from_time_to_time_a_neighbour_is_exchanged_so_that_islands_meet() -> None:
    island = tuple(f"p{i}" for i in range(8))
    plan = planner(*island, "other", bootstrap=("anchor",), exchange_s=30.0)
    plan.handle(NeighboursChanged(nodes=island), now_s=0.0)
    met = set()
    for _ in range(20):
        now_s = plan.next_deadline_s()
        for action in plan.handle(TimerFired(), now_s=now_s):
            assert isinstance(action, DialPeer)
            met.add(action.dial.node)
            (dropped,) = drops(plan.handle(DialSucceeded(node=action.dial.node), now_s=now_s))
            assert dropped != action.dial.node
    assert {"anchor", "other"} <= met
    assert plan.statistics().neighbours == 8
    assert now_s <= 20 * 60.0


def test_a_hungry_node_returns_to_its_bootstrap_nodes_every_minute() -> None:
    plan = planner(bootstrap=("x",), hungry_backoff_max_s=1000.0, backoff_max_s=1000.0)
    times = [at_s for at_s, _ in settle(plan, until_s=400.0, up=set())]
    assert {60.0, 120.0, 180.0} <= set(times)


def test_isolation_shows_with_its_age() -> None:
    plan = planner()
    plan.handle(TimerFired(), now_s=5.0)
    plan.handle(TimerFired(), now_s=65.0)
    assert plan.statistics().isolated_s == 60.0
    plan.handle(NeighboursChanged(nodes=("a",)), now_s=66.0)
    assert plan.statistics().isolated_s is None
    plan.handle(NeighboursChanged(nodes=()), now_s=70.0)
    assert plan.statistics().isolated_s == 0.0


def test_a_forgotten_peer_and_the_node_itself_are_never_dialled() -> None:
    plan = planner("a", "me", bootstrap=("me",))
    plan.handle(AddressesLearned(node="me", addresses=(Address("h", 1),)), now_s=0.0)
    plan.handle(DialFailed(node="a"), now_s=0.0)
    plan.handle(PeerForgotten("a"), now_s=0.0)
    assert settle(plan, until_s=100.0, up=set()) == []


def test_the_book_is_bounded_and_lets_go_of_who_failed_most() -> None:
    plan = planner("good", "bad", bootstrap=("anchor",), peers_max=3)
    plan.handle(TimerFired(), now_s=0.0)
    for node, failed in (("good", 1), ("bad", 3), ("anchor", 9)):
        for _ in range(failed):
            plan.handle(DialFailed(node=node), now_s=0.0)
    plan.handle(AddressesLearned(node="new", addresses=(Address("h", 1),)), now_s=0.0)
    assert {e.node for e in plan.book()} == {"good", "anchor", "new"}


def test_the_book_survives_a_restart_most_recent_first(tmp_path: Path) -> None:
    plan = planner("a", "b")
    plan.handle(NeighboursChanged(nodes=("b",), grid_time_s=1.7e9), now_s=0.0)
    save_book(tmp_path / "book", plan.book())
    entries, warning = load_book(tmp_path / "book")
    assert warning is None
    assert [e.node for e in entries] == ["b", "a"]
    assert entries == plan.book()
    assert os.stat(tmp_path / "book").st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\x00\xff" * 50,
        b'{"version":1,"peers":[{"node":"","addresses":[["h",1]]}]}',
        b'{"version":1,"peers":[{"node":"a","addresses":[["h",70000]]}]}',
        b'{"version":2,"peers":[]}',
        b"[" * 100_000,
        b" " * (BOOK_MAX_BYTES + 1),
    ],
)
def test_a_damaged_book_is_empty_with_a_reason(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "book").write_bytes(data)
    entries, warning = load_book(tmp_path / "book")
    assert entries == ()
    assert warning is not None
    assert "book" in warning


def test_a_missing_book_is_empty_without_a_word(tmp_path: Path) -> None:
    assert load_book(tmp_path / "book") == ((), None)
