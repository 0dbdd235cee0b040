"""Three daemons record a minute of four cameras: traces to replay and to plan with, as in docs/traces.md.

Two boards of 4 frames/s and a box of 25 frames/s, all emulated (service times are waited out, +-10 %), on loopback; two
cameras of 4 frames/s at each board, the newest frame wins, 0.5 s for each. Writes pi1.trace, pi2.trace and nuc.trace.

Usage: .venv/bin/python benches/recorded_grid.py DIR [--seconds S]
"""

import argparse
import tempfile
from pathlib import Path

import trio

from gridnode.client import AsyncGrid
from gridnode.demo.stage import NodePlan, Stage
from gridnode.simulation.calibrate import MODEL

MEANS_S = {"pi1": 0.25, "pi2": 0.25, "nuc": 0.04}
CAMERAS = ("pi1", "pi1", "pi2", "pi2")
PERIOD_S = 0.25
DEADLINE_S = 0.5
FRAME_BYTES = 100_000


def plans(folder: Path, out: Path) -> list[NodePlan]:
    found = []
    for name, mean_s in MEANS_S.items():
        profile = folder / f"{name}.toml"
        profile.write_text(f'[models."{MODEL}"]\nmean_s = {mean_s}\ncv = 0.1\n[default]\nmean_s = {mean_s}\n')
        settings = (
            "runtime.executor=emulated",
            f"runtime.profile={profile}",
            f"trace.path={out.absolute() / name}.trace",
        )
        found.append(NodePlan(name=name, settings=settings))
    return found


def picture() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (320, 320), (90, 120, 90)).save(buffer, "JPEG")
    return buffer.getvalue().ljust(FRAME_BYTES, b"\0")


async def camera(socket: str, name: str, phase_s: float, seconds: float, frame: bytes) -> None:
    async def frames():
        begun_s = trio.current_time() + phase_s
        for number in range(int(seconds / PERIOD_S)):
            await trio.sleep_until(begun_s + number * PERIOD_S)
            yield frame

    answered = 0
    async with AsyncGrid([socket]) as grid:
        # Rungs would make two models of one.
        async for item in grid.stream(frames(), model=MODEL, deadline_s=DEADLINE_S, name=name, rungs=False):
            answered += item.result is not None
    print(f"{name}: {answered} of {int(seconds / PERIOD_S)} frames answered")


async def record(out: Path, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="gridnode-recorded-") as folder:
        stage = Stage(Path(folder), say=print, show=lambda waits: None, plans=plans(Path(folder), out), model=MODEL)
        try:
            await stage.build()
            async with trio.open_nursery() as nursery:
                for number, node in enumerate(CAMERAS):
                    socket = str(stage.node(node).socket)
                    nursery.start_soon(camera, socket, f"camera {number}", number * 0.06, seconds, picture())
        finally:
            await stage.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    trio.run(record, options.out, options.seconds)
    names = " ".join(str(options.out / f"{name}.trace") for name in MEANS_S)
    print(f"now: gridnode simulate plan --trace {names} --what-if nuc-1 --what-if cameras+1")


if __name__ == "__main__":
    main()
