"""How good and how fast an ONNX file of the street detector is, by the same code that serves it.

    python -m models.zoo.street.measure FILE.onnx ...

prints size, time and mAP@0.5 of each file on the held-out scenes and films, which it draws anew. Films of large frames
come twice: as JPEG, which is decoded at a part of its size, and decoded whole.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from models.average_precision import AveragePrecision, Truth, mean_average_precision
from models.detection import Detection, detect
from models.imaging import decode, preprocess
from models.zoo.packages import STREET_POSTPROCESSING, STREET_PREPROCESSING
from models.zoo.street.dataset import PIECE, Recipe, frames

HELD_OUT = Recipe(name="held-out", scenes=1_000)
HELD_OUT_FILM = Recipe(name="held-out-film", films=15)
LARGE_FILM = Recipe(name="large-film", films=5, size=(1280, 720))

SCORE_MIN = 0.01
"""Detections down to this score enter the precision-recall curve; the manifest's threshold is for people to look at."""


def open_session(path: Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open a model on the CPU with that many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def find(session: onnxruntime.InferenceSession, frame: bytes | NDArray[np.uint8]) -> list[Detection]:
    """Return what a model sees in a frame, down to SCORE_MIN."""
    tensor, geometry = preprocess(frame, STREET_PREPROCESSING)
    (output,) = session.run(["output0"], {"images": tensor})
    lenient = msgspec.structs.replace(STREET_POSTPROCESSING, score_threshold=SCORE_MIN)
    return detect(np.asarray(output), lenient, geometry)


def measure(session: onnxruntime.InferenceSession, recipe: Recipe) -> AveragePrecision:
    """Measure mAP@0.5 on the frames of a recipe, drawn anew, at their full size."""
    found: list[list[Detection]] = []
    truth: list[Sequence[Truth]] = []
    for frame, real in frames(recipe, 0, _pieces(recipe)):
        found.append(find(session, frame))
        truth.append(real)
    return mean_average_precision(found, truth)


def measure_decoding(
    session: onnxruntime.InferenceSession, recipe: Recipe
) -> tuple[AveragePrecision, AveragePrecision]:
    """Measure mAP@0.5 on the films of a recipe, drawn anew: decoded as a worker does, and decoded whole."""
    scaled: list[list[Detection]] = []
    whole: list[list[Detection]] = []
    truth: list[Sequence[Truth]] = []
    for frame, real in frames(recipe, 0, _pieces(recipe)):
        assert isinstance(frame, bytes), "frames of films are files"
        scaled.append(find(session, frame))
        whole.append(find(session, decode(frame)))
        truth.append(real)
    return mean_average_precision(scaled, truth), mean_average_precision(whole, truth)


def _pieces(recipe: Recipe) -> int:
    return -(-recipe.scenes // PIECE) + recipe.films


def time_ms(session: onnxruntime.InferenceSession, *, runs: int = 200) -> float:
    """Return the median time of one run in milliseconds, after a warm-up."""
    tensor = np.full((1, 3, 320, 320), 114 / 255, np.float32)
    times = []
    for _ in range(runs + 20):
        start = perf_counter()
        session.run(["output0"], {"images": tensor})
        times.append(perf_counter() - start)
    return statistics.median(times[20:]) * 1e3


def report(path: Path) -> None:
    """Print size, speed and mAP@0.5 of a file."""
    session = open_session(path)
    print(f"{path.name}: {path.stat().st_size} bytes, {time_ms(session):.2f} ms", flush=True)
    for recipe in (HELD_OUT, HELD_OUT_FILM):
        _print(recipe.name, measure(session, recipe))
    for name, result in zip(("", ", decoded whole"), measure_decoding(session, LARGE_FILM), strict=True):
        _print(LARGE_FILM.name + name, result)


def _print(name: str, result: AveragePrecision) -> None:
    classes = ", ".join(f"{name} {value:.4f}" for name, value in result.per_class.items())
    print(f"  {name}: {result.mean:.4f} ({classes})", flush=True)


def main() -> None:
    """Do as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    for path in parser.parse_args().files:
        report(path)


if __name__ == "__main__":
    main()
