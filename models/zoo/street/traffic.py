"""Who moves in a film, and how: everyone follows a line, keeps behind the one before and waits at red.

A function of the seed and of time alone: time goes on in steps of STEP_S, whatever the film's frame rate.
"""

import math

import msgspec
import numpy as np
from numpy.random import Generator

from models.zoo.street.figures import Figure
from models.zoo.street.people import Look, cyclist, pedestrian, person
from models.zoo.street.scenery import LANE_M, Street
from models.zoo.street.stage import Actor
from models.zoo.street.vehicles import vehicle

STEP_S = 0.1
CYCLE_S = 26.0
"""Period of the lights; green for the long road first, then for the crossing one."""
GREEN_S = {"along": (0.0, 12.0), "across": (14.5, 23.0), "on foot along": (0.0, 5.0), "on foot across": (14.5, 17.0)}
"""When one may set out. Those on foot need time to reach the other side."""

ACCELERATION_M_S2 = 1.8
BRAKING_M_S2 = 3.0
GAP_M = 1.4
ZEBRA_M = 2.6
"""From the junction's edge to the middle of a zebra crossing."""
PHASES = 24
"""Postures of a walk or ride that are told apart; few, so that each is built once."""


class Mover:
    """Someone on the way along one line, over and over."""

    def __init__(
        self,
        *,
        class_name: str,
        look: Look | Figure,
        start_m: tuple[float, float],
        way: tuple[int, int],
        length_m: float,
        speed_m_s: float,
        signal: str,
        stop_m: float,
    ) -> None:
        self.class_name, self.look, self.signal, self.stop_m = class_name, look, signal, stop_m
        self.start_m, self.way, self.length_m, self.speed_m_s = start_m, way, length_m, speed_m_s
        self.half_m = look.length_m / 2 if isinstance(look, Figure) else 0.9 if class_name == "cyclist" else 0.25
        self.along_m = 0.0
        """How far the middle has come from the start."""
        self.moved_m = 0.0
        """How far in all; the phase of legs follows from it."""
        self.pace_m_s = speed_m_s


class _Posture(msgspec.Struct, frozen=True):
    """Key of a figure that has been built."""

    look: Look
    phase: int


class Traffic:
    """All who move or park in a film.

    Parameters
    ----------
    rng : Generator
        Draws everybody; only here, not later.
    street : Street
        One with a junction.
    """

    def __init__(self, rng: Generator, street: Street) -> None:
        assert street.junction_m is not None
        self._rng, self._street, self._near, self._far = rng, street, *street.junction_m
        self._queues: list[list[Mover]] = []
        """Movers of one line, the first in front; they keep apart."""
        self._postures: dict[_Posture, Figure] = {}
        self._steps = 0
        self._parked = self._park()
        self._drive_along()
        self._drive_across()
        self._walk()

    def at(self, time_s: float) -> list[Actor]:
        """Return everybody's place at a time, which must not go back."""
        # The film begins after one period of the lights, when nobody is left where chance put them.
        time_s += CYCLE_S
        while self._steps * STEP_S < time_s:
            self._steps += 1
            for queue in self._queues:
                self._advance(queue, (self._steps * STEP_S) % CYCLE_S)
        rest = time_s - self._steps * STEP_S
        return [*self._parked, *(self._actor(mover, rest) for queue in self._queues for mover in queue)]

    def _advance(self, queue: list[Mover], phase_s: float) -> None:
        """Move those of one line by one step."""
        for number, mover in enumerate(queue):
            free = math.inf
            if number:
                before = queue[number - 1]
                free = before.along_m - before.half_m - mover.along_m - mover.half_m - GAP_M
            start, end = GREEN_S[mover.signal]
            to_line = mover.stop_m - mover.along_m - mover.half_m
            if not start <= phase_s < end and to_line > -0.3:
                free = min(free, to_line)
            wanted = min(mover.speed_m_s, mover.pace_m_s + ACCELERATION_M_S2 * STEP_S)
            mover.pace_m_s = min(wanted, math.sqrt(2 * BRAKING_M_S2 * max(0.0, free - 0.05)))
            mover.along_m += mover.pace_m_s * STEP_S
            mover.moved_m += mover.pace_m_s * STEP_S
        if queue[0].along_m > queue[0].length_m:
            first = queue.pop(0)
            last = queue[-1].along_m - queue[-1].half_m - first.half_m - 3.0 if queue else 0.0
            first.along_m = min(0.0, last)
            queue.append(first)

    def _actor(self, mover: Mover, rest_s: float) -> Actor:
        """Return a mover's place and posture."""
        along = mover.along_m + mover.pace_m_s * rest_s
        moved = mover.moved_m + mover.pace_m_s * rest_s
        return Actor(
            class_name=mover.class_name,
            figure=mover.look if isinstance(mover.look, Figure) else self._posture(mover, moved),
            x_m=mover.start_m[0] + mover.way[0] * along,
            z_m=mover.start_m[1] + mover.way[1] * along,
            heading=math.atan2(mover.way[1], mover.way[0]) % (2 * math.pi),
        )

    def _posture(self, mover: Mover, moved_m: float) -> Figure:
        """Return the figure of someone on foot or on a bicycle."""
        assert isinstance(mover.look, Look)
        # A full turn of the crank, or two steps, every so many metres.
        period_m = 4.8 if mover.class_name == "cyclist" else 1.5
        standing = mover.class_name == "pedestrian" and mover.pace_m_s < 0.2
        key = _Posture(mover.look, -1 if standing else int(moved_m / period_m * PHASES) % PHASES)
        if key not in self._postures:
            angle = 2 * math.pi * key.phase / PHASES
            if mover.class_name == "cyclist":
                self._postures[key] = cyclist(mover.look, -angle)
            else:
                self._postures[key] = pedestrian(mover.look, math.nan if standing else angle)
        return self._postures[key]

    def _park(self) -> list[Actor]:
        """Park vehicles along the kerbs, away from the junction."""
        parked = []
        for x in self._street.parking_m:
            for z in np.arange(6.0, 60.0, 7.0):
                if self._rng.random() < 0.45 and not self._near - 7.0 < z < self._far + 7.0:
                    heading = math.copysign(math.pi / 2, x) % (2 * math.pi)
                    figure = vehicle(self._rng)
                    if figure.length_m < 6.0:
                        parked.append(
                            Actor(
                                class_name="vehicle", figure=figure, x_m=x, z_m=float(z), heading=heading, lights=False
                            )
                        )
        return parked

    def _drive_along(self) -> None:
        """Send vehicles and cyclists along the road."""
        start, reach = -9.0, 105.0
        for x, way in self._street.lanes:
            line = (self._near - ZEBRA_M - 2.2 - start) if way > 0 else (start + reach - self._far - ZEBRA_M - 2.2)
            origin = (x, start if way > 0 else start + reach)
            self._queue("vehicle", int(self._rng.integers(2, 5)), origin, (0, way), reach, (6.5, 9.5), "along", line)
        for side in (-1, 1):
            x = side * (self._street.road_half_m - (2.75 if self._street.parking_m else 0.45))
            line = (self._near - ZEBRA_M - 2.0 - start) if side > 0 else (start + reach - self._far - ZEBRA_M - 2.0)
            origin = (x, start if side > 0 else start + reach)
            self._queue("cyclist", 3, origin, (0, side), reach, (3.8, 5.2), "along", line)

    def _drive_across(self) -> None:
        """Send vehicles and cyclists along the crossing road."""
        middle, start = (self._near + self._far) / 2, 42.0
        line = start - self._street.road_half_m - self._street.pavement_m - 0.6
        for way in (-1, 1):
            origin = (-way * start, middle - way * LANE_M / 2)
            self._queue("vehicle", 2, origin, (way, 0), 150.0, (6.0, 8.0), "across", line)
            origin = (-way * start, middle - way * (LANE_M / 2 + 1.9))
            self._queue("cyclist", 1, origin, (way, 0), 110.0, (3.6, 5.0), "across", line)

    def _walk(self) -> None:
        """Send people along the pavements and over the zebra crossings."""
        start, reach = -2.0, 52.0
        for side in (-1, 1):
            for _ in range(int(self._rng.integers(4, 7))):
                x = side * (self._street.road_half_m + float(self._rng.uniform(0.7, self._street.pavement_m - 0.3)))
                way = int(self._rng.choice([-1, 1]))
                line = (self._near - 0.5 - start) if way > 0 else (start + reach - self._far - 0.5)
                origin = (x, start if way > 0 else start + reach)
                self._queue("pedestrian", 1, origin, (0, way), reach, (0.9, 1.6), "on foot along", line)
        wide = self._street.road_half_m + self._street.pavement_m
        for zebra in (self._near - ZEBRA_M, self._far + ZEBRA_M):
            for _ in range(2):
                way, z = int(self._rng.choice([-1, 1])), zebra + float(self._rng.uniform(-1.0, 1.0))
                line = wide - self._street.road_half_m - 0.4 + 6.0
                origin = (-way * (wide + 6.0), z)
                reach_m = 2 * (wide + 6.0)
                self._queue("pedestrian", 1, origin, (way, 0), reach_m, (1.1, 1.6), "on foot across", line)

    def _queue(
        self,
        class_name: str,
        count: int,
        start_m: tuple[float, float],
        way: tuple[int, int],
        length_m: float,
        speed_m_s: tuple[float, float],
        signal: str,
        stop_m: float,
    ) -> None:
        """Add some movers that follow one another along a line, spread over it."""
        queue = []
        offset = float(self._rng.uniform(0.0, 1.0))
        for number in range(count):
            look: Look | Figure = (
                vehicle(self._rng) if class_name == "vehicle" else person(self._rng, umbrella_share=0.05)
            )
            speed = float(self._rng.uniform(*speed_m_s))
            mover = Mover(
                class_name=class_name,
                look=look,
                start_m=start_m,
                way=way,
                length_m=length_m,
                speed_m_s=speed,
                signal=signal,
                stop_m=stop_m,
            )
            mover.along_m = (count - 1 - number + offset) * length_m / count
            queue.append(mover)
        self._queues.append(queue)
