"""How fast the demo's cameras send. Pure.

The frames enter at the slowest node, faster than it could ever answer alone, and well below what the grid holds
together: then it must hand work on, and nothing need be refused.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from gridnode.demo.film import FILM_FPS

OVERLOAD: Final = 2.0
"""Rate as a multiple of what the slowest node manages alone: twice what it can bear, with room left for a machine that
has other things to do as well."""
GRID_SHARE_MAX: Final = 0.45
"""Largest share of all nodes' capacity: with the middle one dead and a busy machine the rest must still hold it."""
FPS_MIN: Final = 2.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The cameras."""

    fps: float
    """Of all cameras together."""
    cameras: int
    alone_fps: float
    """What the entry node manages alone."""
    grid_fps: float
    """What all nodes manage together."""

    @property
    def overload(self) -> float:
        """Rate as a multiple of what the entry node manages alone."""
        return self.fps / self.alone_fps


def make_plan(service_s: Sequence[float], *, fps: float | None = None) -> Plan:
    """Choose the rate.

    Parameters
    ----------
    service_s : sequence of float
        Measured service time of a frame on each node, in seconds, the entry node's first.
    fps : float, optional
        A rate that was asked for.

    Examples
    --------
    >>> plan = make_plan([0.1, 0.04, 0.016])
    >>> plan.fps, plan.cameras, plan.alone_fps
    (20.0, 4, 10.0)
    """
    alone_fps = 1 / service_s[0]
    grid_fps = sum(1 / time_s for time_s in service_s)
    chosen = fps if fps is not None else max(FPS_MIN, min(OVERLOAD * alone_fps, GRID_SHARE_MAX * grid_fps))
    chosen = round(chosen, 1)
    return Plan(
        fps=chosen, cameras=max(1, round(chosen / FILM_FPS)), alone_fps=round(alone_fps, 1), grid_fps=round(grid_fps, 1)
    )
