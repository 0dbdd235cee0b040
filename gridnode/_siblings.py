"""Checks that the packages beside gridnode are the ones that belong to it.

They have everyday names (models, transport, ...), so another folder of such a name on the path would be taken
instead, and fail in strange ways. Looks only; imports none of them.
"""

from importlib.util import find_spec
from pathlib import Path

from gridnode.errors import GridError

SIBLINGS = ("models", "scheduler", "simulator", "transport")


class SiblingError(GridError):
    """A package of gridnode's is missing, or another one of its name comes first on the path."""


def check_siblings() -> None:
    """Raise SiblingError unless each sibling is found in the folder that gridnode is in."""
    home = Path(__file__).resolve().parent.parent
    for name in SIBLINGS:
        spec = find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent
        if origin != home / name:
            raise SiblingError(
                f"package {name!r} is found at {origin or 'no place'}, gridnode's own is {home / name}; start it as "
                "'gridnode' or 'python -P -m gridnode', in an environment of its own"
            )
