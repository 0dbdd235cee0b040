"""What the records of a scenario are made of: kinds of numbers, a record that takes no unknown key, their errors."""

from typing import Annotated

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(pattern="^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]


class SimulationError(Exception):
    """Root of the errors of the simulator: something about a simulation that its author can put right."""


class ScenarioError(SimulationError):
    """A scenario breaks a rule.

    Parameters
    ----------
    message : str
        Value, allowed range or choices, remedy.
    path : tuple of str and int
        Keys from the top to the value that is wrong; empty for the whole.
    line : int, optional
        Of the text, from 1.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = (), line: int | None = None) -> None:
        where = "" if line is None else f"line {line}: "
        key = f"{path_text(path)}: " if path else ""
        super().__init__(f"{where}{key}{message}")
        self.message = message
        self.path = path
        self.line = line


def path_text(path: tuple[str | int, ...]) -> str:
    """Write a path of keys as people do.

    Examples
    --------
    >>> path_text(("nodes", 0, "count"))
    'nodes[0].count'
    """
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a scenario."""
