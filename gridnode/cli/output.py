"""What commands print: JSON for programs, rich text for people.

rich leaves out colours and control codes where the output is no terminal, and colours where NO_COLOR is set.
"""

import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS: Final = 120
"""Width of text that goes to a file or pipe: there is no window to fit."""


def print_json(document: object) -> None:
    """Print one indented JSON document; records of msgspec are fine."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(document), indent=2)
    sys.stdout.write(text.decode() + "\n")


def console(*, stderr: bool = False) -> "Console":
    """Return where text for people goes. COLUMNS overrides the width."""
    import os

    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_COLUMNS
    return Console(file=stream, highlight=False, width=width)


def note(text: str) -> None:
    """Say something to a person that is no result: on stderr, so that output stays clean."""
    sys.stderr.write(text + "\n")


# ---------------------------------------------------------------- numbers for people


def size(size_bytes: float | None) -> str:
    """Write a number of bytes in three figures.

    Examples
    --------
    >>> size(1536), size(0), size(None)
    ('1.5 kB', '0 B', '–')
    """
    if size_bytes is None:
        return "–"
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def millis(value_ms: float | None) -> str:
    """Write milliseconds in about three figures.

    Examples
    --------
    >>> millis(3.14159), millis(271.8), millis(1618.0), millis(None)
    ('3.1 ms', '272 ms', '1.62 s', '–')
    """
    if value_ms is None:
        return "–"
    if value_ms >= 1000:
        return f"{value_ms / 1000:.2f} s"
    return f"{value_ms:.1f} ms" if value_ms < 100 else f"{value_ms:.0f} ms"


def span(seconds: float | None) -> str:
    """Write a length of time with its two largest units.

    Examples
    --------
    >>> span(7.25), span(93), span(93784), span(-5), span(None)
    ('7.2 s', '1 min 33 s', '1 d 2 h', 'over', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 0:
        return "over"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    for (large, name), (small, below) in pairwise(units):
        if seconds >= large:
            rest = int(seconds % large // small)
            return f"{int(seconds // large)} {name}" + (f" {rest} {below}" if rest else "")
    raise AssertionError("a minute or more has a unit")
