"""Tables leave out what does not fit, by rank, and say so; no number is cut off."""

import io

import pytest
from rich.console import Console

from gridnode.cli.fitting import Column, fitted

COLUMNS = [Column("policy", is_words=True), Column("mean"), Column("p95", 2), Column("p99", 1)]
ROWS = [["jsed(d=3, inflight=yes)", "12.3 ±1.2 ms", "23 ±2 ms", "34.5 ±3.4 ms"]]


def printed(width, rows=ROWS):
    screen = Console(file=io.StringIO(), width=width)
    screen.print(fitted(COLUMNS, rows, width=width))
    return screen.file.getvalue()


@pytest.mark.parametrize(
    ("width", "missing"),
    [(80, ""), (50, ""), (49, "p95"), (40, "p95"), (39, "p95, p99"), (26, "p95, p99")],
)
def test_columns_go_by_rank_and_are_named(width, missing):
    text = printed(width)
    if missing:
        assert " ".join(text.split()).endswith(f"the window is too narrow for {missing}")
    else:
        assert "too narrow" not in text
    assert "12.3 ±1.2 ms" in text
    assert "…" not in text


def test_long_words_go_on_in_the_next_line():
    assert "jsed(d=3, inflight=yes)" in printed(80)
    narrow = printed(50)
    assert "".join(line[:12].strip() for line in narrow.splitlines()[1:]) == "jsed(d=3,inflight=yes)"


def test_what_has_no_rank_stays():
    assert "12.3 ±1.2 ms" in printed(20).replace("\n", "")
