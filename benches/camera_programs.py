"""The programs that benches/cameras.py starts: one camera each, and the plain loop that bounds what the machine can do.

``python -m benches.camera_programs PLAN`` with a plan in JSON; prints what happened, in JSON. A camera imports nothing
of gridnode but the client, as a user's program would.
"""

import contextlib
import io
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from benches.peers.processes import pss_bytes

FIRST_DEADLINE_S = 10.0
"""Deadline of the frame that is sent before the clock starts."""
PICTURE_TURNS = 3


class Camera:
    """A camera that takes a frame at each tick of the clock, whether or not anybody asks for it.

    A frame that is taken late was waiting since its tick: that is the backlog, and its age counts from the tick.
    """

    def __init__(self, film: list[bytes], *, start_s: float, seconds: float, fps: float) -> None:
        self._film = film
        self._start_s = start_s
        self._end_s = start_s + seconds
        self._fps = fps
        self.captured_s: list[float] = []
        """When each frame that was taken came into being."""
        self.backlog: list[int] = []
        """Frames that waited in the camera, this one not counted, as each was taken."""

    def __iter__(self) -> Iterator[bytes]:
        for number in itertools.count():
            now_s = time.monotonic()
            due_s = self._start_s + number / self._fps if self._fps else max(now_s, self._start_s)
            if max(due_s, now_s) >= self._end_s:
                return
            time.sleep(max(0.0, due_s - now_s))
            waiting = int((time.monotonic() - self._start_s) * self._fps) - number if self._fps else 0
            self.captured_s.append(due_s)
            self.backlog.append(max(0, waiting))
            yield self._film[number % len(self._film)]

    @property
    def offered(self) -> int:
        """Frames that came into being, taken or not."""
        return round((self._end_s - self._start_s) * self._fps) if self._fps else len(self.captured_s)


def read_film(path: str) -> list[bytes]:
    return msgspec.msgpack.decode(Path(path).read_bytes(), type=list[bytes])


def run_camera(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Send a camera's frames as a stream; return what became of them."""
    from gridnode.client import Grid

    film = read_film(plan["film"])
    shifted = plan["shift"] % len(film)
    fates: Counter[str] = Counter()
    answers: list[tuple[float, float, float]] = []
    with Grid(plan["socket"]) as grid:
        # One frame ahead: the connection and the memory that is shared with the daemon are there when time counts.
        grid.infer("street", film[0], deadline_s=FIRST_DEADLINE_S)
        start_s = time.monotonic() + max(0.0, plan["start_s"] - time.monotonic())
        camera = Camera(film[shifted:] + film[:shifted], start_s=start_s, seconds=plan["seconds"], fps=plan["fps"])
        time.sleep(max(0.0, start_s - time.monotonic()))
        cpu_s = time.process_time()
        for item in grid.stream(
            camera,
            model="street",
            mode=plan["mode"],
            deadline_s=plan["deadline_s"],
            in_flight=plan["in_flight"],
            rungs=False,
            name="camera",
        ):
            if item.result is not None:
                captured_s, now_s = camera.captured_s[item.frame], time.monotonic()
                answers.append((captured_s - start_s, now_s - captured_s, item.result.timings.service_s))
            elif item.error is not None:
                fates[getattr(item.error, "reason", "") or type(item.error).__name__] += 1
            else:
                # A frame that was sent comes back with its skipping, one that never left does not.
                fates["skipped at the client" if item.image is None else "superseded in the grid"] += 1
        cpu_s = time.process_time() - cpu_s
        memory_bytes = pss_bytes([os.getpid()])
    return {
        "offered": camera.offered,
        "taken": len(camera.captured_s),
        "fates": dict(fates),
        "answers": answers,
        "backlog": camera.backlog,
        "cpu_s": cpu_s,
        "pss_bytes": memory_bytes,
    }


def run_bound(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Decode and detect in a plain loop: one frame at a time on all cores, then one frame per core at once."""
    from concurrent.futures import ThreadPoolExecutor

    from benches.peers.serving import THREADS, Model
    from benches.peers.workloads import DETECTOR, Workload

    film = read_film(plan["film"])
    workload = Workload(DETECTOR, "detector", 0, "uint8", ())
    found: dict[str, Any] = {}
    for name, at_once, threads in (("alone", 1, THREADS), ("together", THREADS, 1)):
        model = Model(Path(plan["folder"]), workload, threads=threads)
        model.run(film[0])

        def loop(first: int, model: Model = model, until_s: float = time.monotonic() + plan["seconds"]) -> list[float]:
            times = []
            for number in itertools.count(first):
                begin_s = time.monotonic()
                if begin_s >= until_s:
                    return times
                model.run(film[number % len(film)])
                times.append(time.monotonic() - begin_s)

        begin_s, cpu_s = time.monotonic(), time.process_time()
        with ThreadPoolExecutor(at_once) as pool:
            times = [took for part in pool.map(loop, range(at_once)) for took in part]
        wall_s, cpu_s = time.monotonic() - begin_s, time.process_time() - cpu_s
        found[name] = {"rate_hz": len(times) / wall_s, "times_s": times, "cpu_s": cpu_s / len(times)}
    return found | {"pictures": picture_costs_s(film)}


def picture_costs_s(film: list[bytes]) -> dict[str, list[float]]:
    """Make the model's input of each frame, as a worker does and from all of its pixels, in turn; return CPU times."""
    import numpy as np
    from PIL import Image

    from models.imaging import preprocess
    from models.zoo.packages import STREET_PREPROCESSING

    def whole(frame: bytes) -> None:
        preprocess(np.asarray(Image.open(io.BytesIO(frame))), STREET_PREPROCESSING)

    def scaled(frame: bytes) -> None:
        preprocess(frame, STREET_PREPROCESSING)

    costs_s: dict[str, list[float]] = {"scaled": [], "whole": []}
    for frame in film * PICTURE_TURNS:
        for name, make in (("scaled", scaled), ("whole", whole)):
            begin_s = time.thread_time()
            make(frame)
            costs_s[name].append(time.thread_time() - begin_s)
    return costs_s


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    with contextlib.suppress(KeyboardInterrupt):
        print(json.dumps((run_bound if asked["program"] == "bound" else run_camera)(asked)))
