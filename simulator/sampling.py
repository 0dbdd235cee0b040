"""What happens over time: backlogs and open jobs, looked at in equal steps. Changes nothing that a core decides by."""

from typing import Final

from simulator.results import Series
from simulator.scenario import Scenario
from simulator.world import World

SAMPLES_MAX: Final = 60_000
"""Values kept of all nodes together: a result of 1,000 nodes stays below a megabyte."""
POINTS_MIN: Final = 20
"""However many nodes there are."""


class Sampler:
    """Looks at every node in equal steps until the last job may arrive.

    Parameters
    ----------
    world : World
        What it looks at; begun, but nothing has happened yet.
    scenario : Scenario
        Says how often.
    """

    def __init__(self, world: World, scenario: Scenario) -> None:
        self._world = world
        names = scenario.node_names
        wanted = scenario.measure.series_points
        self._points = min(wanted, max(POINTS_MIN, SAMPLES_MAX // len(names)))
        self._step_s = scenario.duration_s / self._points if self._points else 0.0
        self._backlogs: dict[str, list[float]] = {name: [] for name in names}
        self._open: list[float] = []
        if self._points:
            world.metrics.keep_series(names, step_s=self._step_s, steps=self._points)
            self._wait(1)

    def _wait(self, number: int) -> None:
        if number <= self._points:
            self._world.at(number * self._step_s, self._look, number)

    def _look(self, number: int) -> None:
        world = self._world
        now_s = world.engine.now_s
        for name, values in self._backlogs.items():
            node = world.nodes[name]
            values.append(node.core.state_record(now_s).backlog_s if node.is_alive else 0.0)
        self._open.append(float(world.metrics.open))
        self._wait(number + 1)

    def _series(self, values: list[float]) -> Series | None:
        return Series(start_s=self._step_s, step_s=self._step_s, values=tuple(values)) if self._points else None

    def backlog(self, node: str) -> Series | None:
        """Return the backlog of a node over time, in seconds."""
        return self._series(self._backlogs[node])

    def open_jobs(self) -> Series | None:
        """Return how many jobs were open over time."""
        return self._series(self._open)
