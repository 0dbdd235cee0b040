"""What the owner renews by hand, a few times a year: the admit node's power to sign, and the signed state's own keys.

Everything else renews itself: leaf certificates from an admit node, timestamps by its release desk. Runs beside a
daemon, on an admit node's machine, while the owner's keys are at hand. All calls block.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from gridnode.errors import StateDirectoryError
from gridnode.gridsetup import renew_intermediate
from gridnode.publish import give_to_node, grid_time_s, hand_over, open_owner
from gridnode.statedir import StateDirectory
from models.manifest import ModelError
from transport.files import StateFileError


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    """What `gridnode grid renew` did."""

    admit_expires_s: float
    """When the node's intermediate CA ends now, in seconds since 1970."""
    state_expires_s: float
    """When the first of root and targets ends now; timestamps in between are the daemon's."""


def renew_grid(state: StateDirectory, owner_dir: Path, *, clock: Callable[[], float]) -> Renewed:
    """Renew the intermediate CA of the node in a state directory, and sign root and targets for another year.

    The daemon takes both up by itself: the certificate within a minute, the state when it is told to look.

    Parameters
    ----------
    state : StateDirectory
        Of an admit node; a daemon may run on it or not.
    owner_dir : Path
        With the owner's keys.
    clock : callable
        The system clock, in seconds since 1970.

    Raises
    ------
    StateDirectoryError
        The node is no admit node, a key is missing, or a file cannot be written.
    PublishError
        The owner's folder is another grid's.
    """
    try:
        now_s = grid_time_s(state, clock)
        owner = open_owner(state, owner_dir)
        admit_expires_s = renew_intermediate(state, owner_dir, now_s=now_s)
        give_to_node(state, state.intermediate)
        owner.renew(now_s)
        hand_over(state, owner.publication())
    except (ModelError, StateFileError, OSError, ValueError) as error:
        raise StateDirectoryError(f"not renewed: {error}") from error
    roles = (owner.view.root, owner.view.targets)
    state_expires_s = min(role.expires.timestamp() for role in roles if role is not None)
    return Renewed(admit_expires_s=admit_expires_s, state_expires_s=state_expires_s)
