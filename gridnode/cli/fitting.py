"""Tables that fit the window: where it is too narrow, the columns that matter least are left out, and it is said which.

A number that is cut off is worse than none. Words in the first column go on in the next line.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

PADDING = 2
"""Cells between two columns."""
WORDS_MIN = 12
"""Least width of a first column that goes on in the next line."""


class Column(NamedTuple):
    """One column."""

    name: str
    rank: int = 0
    """The highest goes first; 0 stays."""
    is_words: bool = False
    """Whether it stands to the left and may go on in the next line."""


def fitted(columns: Sequence[Column], rows: "Sequence[Sequence[str | Text]]", *, width: int) -> "RenderableType":
    """Return a table.

    Parameters
    ----------
    columns : sequence of Column
        What there is.
    rows : sequence of sequence of str or Text
        A cell per column.
    width : int
        Of the window, in cells.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = _shown(columns, rows, width)
    table = Table(box=None, padding=(0, PADDING, 0, 0), pad_edge=False, header_style="dim")
    for place in shown:
        column = columns[place]
        if column.is_words:
            table.add_column(column.name, overflow="fold")
        else:
            table.add_column(column.name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    missing = [column.name for place, column in enumerate(columns) if place not in shown]
    if not missing:
        return table
    return Group(table, Text(f"the window is too narrow for {', '.join(missing)}", "dim"))


def _shown(columns: Sequence[Column], rows: "Sequence[Sequence[str | Text]]", width: int) -> list[int]:
    """Return the places of the columns that fit."""
    sizes = [max([len(column.name), *(len(str(row[place])) for row in rows)]) for place, column in enumerate(columns)]
    least = [min(size, WORDS_MIN) if column.is_words else size for size, column in zip(sizes, columns, strict=True)]
    shown = list(range(len(columns)))
    while sum(least[place] + PADDING for place in shown) - PADDING > width:
        worst = max(shown, key=lambda place: (columns[place].rank, place))
        if not columns[worst].rank:
            break
        shown.remove(worst)
    return shown
