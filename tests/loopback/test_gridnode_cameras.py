"""Cameras that give more frames than a node can do: answers stay fresh, and every camera has its share."""

import itertools
import statistics

import numpy as np
import trio

from gridnode.sandbox import SandboxDevice

SERVICE_S = 0.02
IN_FLIGHT = 4
RUN_S = 6.0


class Camera:
    """A camera that gives a frame at each tick; ages run from the tick to the answer."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._captured_s: list[float] = []
        self.ages_s: list[float] = []
        self.answered_s: list[float] = []
        self.skipped = 0

    async def frames(self):
        start_s = trio.current_time()
        while trio.current_time() < start_s + RUN_S:
            self._captured_s.append(trio.current_time())
            yield {"x": np.zeros(100, np.uint8)}
            await trio.sleep_until(start_s + len(self._captured_s) / self._fps)

    async def run(self, grid, name: str) -> None:
        async for item in grid.stream(
            self.frames(), model="m", mode="newest", deadline_s=1.0, in_flight=IN_FLIGHT, name=name
        ):
            assert item.error is None, item.error
            if item.result is None:
                self.skipped += 1
                continue
            self.answered_s.append(trio.current_time())
            self.ages_s.append(trio.current_time() - self._captured_s[item.frame])


async def film(sandbox, *rates: float) -> list[Camera]:
    cameras = [Camera(fps) for fps in rates]
    async with sandbox.program("one") as grid, trio.open_nursery() as nursery:
        for place, camera in enumerate(cameras):
            nursery.start_soon(camera.run, grid, f"camera {place}")
            await trio.sleep(0.007)  # cameras do not tick together
    return cameras


def longest_gap_s(camera: Camera) -> float:
    return max(later - earlier for earlier, later in itertools.pairwise(camera.answered_s))


def run_cameras(run_grid, *rates: float) -> list[Camera]:
    found: list[Camera] = []

    async def scenario(sandbox):
        found.extend(await film(sandbox, *rates))

    run_grid(scenario, devices={"one": SandboxDevice()}, models_s={"m": SERVICE_S})
    return found


def test_answers_of_overloaded_cameras_stay_fresh_and_do_not_grow_older(run_grid):
    cameras = run_cameras(run_grid, 30.0, 30.0, 30.0, 30.0)  # 120 frames/s for a node that does 50
    for camera in cameras:
        # A frame waits for the one that runs and for one of each other camera; its own newer ones take its place.
        assert max(camera.ages_s) <= (len(cameras) + 1) * SERVICE_S
        third = len(camera.ages_s) // 3
        assert statistics.median(camera.ages_s[-third:]) <= statistics.median(camera.ages_s[:third]) + SERVICE_S / 2
        assert camera.skipped > 0


def test_each_of_equal_cameras_has_its_share_of_an_overloaded_node(run_grid):
    cameras = run_cameras(run_grid, 30.0, 30.0, 30.0, 30.0)
    answered = [len(camera.ages_s) for camera in cameras]
    assert sum(answered) >= 0.95 * RUN_S / SERVICE_S
    assert min(answered) >= 0.9 * max(answered)
    assert max(map(longest_gap_s, cameras)) <= 2 * len(cameras) * SERVICE_S


def test_a_quick_camera_keeps_its_share_although_its_frames_are_always_the_newest(run_grid):
    quick, *others = run_cameras(run_grid, 100.0, 30.0, 30.0, 30.0)
    fair = RUN_S / SERVICE_S / 4
    assert len(quick.ages_s) >= 0.9 * fair
    assert min(len(camera.ages_s) for camera in others) >= 0.9 * fair
    assert longest_gap_s(quick) <= 8 * SERVICE_S
