"""Train the street detectors from nothing: draw the scenes, train both rungs, export, quantise, measure.

    python -m models.zoo.street.train --out DIR

needs torch 2.13 besides the project's dependencies. ``--minutes`` of training bound the two rungs, ``--cache`` keeps
the drawn scenes, ``--rung`` trains one of the two, so that both can run side by side on a core each. The result in
DIR: street.onnx, street-small.onnx and the checkpoints. Everything is seeded, but the number of steps follows the
clock, and torch promises equal results only for equal builds, threads and processors.
"""

# torch is no dependency of the project, so for mypy all that comes from it is untyped.
# mypy: disable-error-code="misc, no-any-return, no-untyped-call, import-not-found, unused-ignore, import-untyped"

import argparse
import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.average_precision import mean_average_precision
from models.detection import Detection, detect, fit
from models.manifest import DetectionPostprocessing, ImagePreprocessing
from models.zoo.street import export
from models.zoo.street.dataset import Recipe, draw_set, truths
from models.zoo.street.measure import HELD_OUT, report
from models.zoo.street.network import LARGE, SMALL, Detector, Width, grid, loss
from models.zoo.street.scenes import CLASS_NAMES

SEED = 20260101
BATCH = 16
PEAK_RATE = 2e-3
WARM_UP_STEPS = 200
DECAY = 0.02
EMA = 0.999
PAD = 114 / 255

TRAIN = Recipe(name="train", scenes=13_000, films=80)
TRAIN_FILM = Recipe(name="train-film", films=150)
TRAIN_SQUARE = Recipe(name="train-square", scenes=1_600, size=(640, 480), width=320, height=320)
SQUARE_SHARE = 0.08
"""Share of batches that show the square input with its border, as inference does."""

STILL_SHARE = 0.5
"""Share of batches that are only mirrored and recoloured, which is cheap; the scenes are many and differ anyway."""

Set = tuple[Sequence[NDArray[np.uint8]], NDArray[np.float32]]


def batches(sets: list[Set], rng: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented batches without end: images 0..1, shape (b, 3, h, w), and truth, shape (b, m, 6)."""
    wide, square = sets
    order = rng.permutation(len(wide[0]))
    while True:
        images, boxes = wide
        if rng.random() < SQUARE_SHARE:
            chosen = rng.integers(0, len(square[0]), BATCH // 2)
            images, boxes = square
        else:
            if len(order) < BATCH:
                order = rng.permutation(len(wide[0]))
            chosen, order = order[:BATCH], order[BATCH:]
        yield augment(
            np.stack([images[index] for index in chosen]), boxes[chosen], rng, still=rng.random() < STILL_SHARE
        )


def augment(
    images: NDArray[np.uint8], boxes: NDArray[np.float32], rng: Generator, *, still: bool
) -> tuple[Tensor, Tensor]:
    """Mirror and recolour a batch, and unless it is to be still zoom and shift it."""
    boxes = boxes[:, : max(1, int((boxes[..., 0] >= 0).sum(1).max()))].copy()
    mirrored = rng.random(len(images)) < 0.5
    images[mirrored] = images[mirrored, :, ::-1]
    boxes[mirrored, :, 1], boxes[mirrored, :, 3] = (
        images.shape[2] - boxes[mirrored, :, 3],
        images.shape[2] - boxes[mirrored, :, 1],
    )
    x, truth = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255), torch.from_numpy(boxes)
    if not still:
        x, truth = move(x, truth, rng)
    count = len(images)
    gain = torch.from_numpy(rng.uniform(0.75, 1.3, (count, 1, 1, 1)) * rng.uniform(0.9, 1.1, (count, 3, 1, 1))).float()
    contrast = torch.from_numpy(rng.uniform(0.8, 1.2, (count, 1, 1, 1))).float()
    middle = x.mean((2, 3), keepdim=True)
    return (x * (gain * contrast)).add_(middle * (1 - contrast) * gain).clamp_(0, 1), truth


def move(x: Tensor, truth: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Zoom and shift each picture of a batch and its boxes."""
    count, _, height, width = x.shape
    zoom = torch.from_numpy(np.exp(rng.uniform(-0.3, 0.35, count))).float()
    shift = torch.from_numpy(rng.uniform(-1, 1, (count, 2))).float() * ((zoom - 1).abs() + 0.1)[:, None]
    # Output place p shows input place (p - shift) / zoom, in the -1..1 coordinates of affine_grid.
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = 1 / zoom, 1 / zoom
    theta[:, :, 2] = -shift / zoom[:, None]
    places = functional.affine_grid(theta, [count, 3, height, width], align_corners=False)
    x = functional.grid_sample(x - PAD, places, align_corners=False) + PAD
    corners, size = truth[..., 1:5], torch.tensor([width, height, width, height], dtype=torch.float32)
    at = corners / size * 2 - 1
    at = (at * zoom[:, None, None] + shift[:, [0, 1, 0, 1]][:, None] + 1) / 2 * size
    cut = torch.minimum(at.clamp(min=0), size)
    whole, left = (at[..., 2:] - at[..., :2]).prod(-1), (cut[..., 2:] - cut[..., :2]).prod(-1)
    gone = (left < 4) | (truth[..., 0] < 0)
    hard = (left < 0.4 * whole) | ((cut[..., 2:] - cut[..., :2]).amax(-1) < 12)
    truth[..., 1:5] = cut
    truth[..., 5] = torch.where(hard, torch.ones_like(whole), truth[..., 5])
    truth[..., 0] = torch.where(gone, -torch.ones_like(whole), truth[..., 0])
    truth[..., 1:5][gone] = 0
    return x, truth


def train(width: Width, minutes: float, sets: list[Set], out: Path, *, resume: bool, peak: float) -> Detector:
    """Train one network for some minutes of wall clock, from its checkpoint or from nothing; return its average."""
    rng = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    model = load(width, out).train() if resume else Detector(width).to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).eval()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}], lr=peak
    )
    start, running = perf_counter(), 0.0
    for step, (images, truth) in enumerate(batches(sets, rng), 1):
        done = (perf_counter() - start) / (60 * minutes)
        if done >= 1:
            break
        rate = peak * min(1.0, step / WARM_UP_STEPS) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        images = images.contiguous(memory_format=torch.channels_last)
        places, strides = grid(images.shape[2], images.shape[3])
        with torch.autocast("cpu", torch.bfloat16):
            raw = model(images)
        value = loss(raw.float(), truth, places, strides)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        follow(average, model, min(EMA, (1 + step) / (10 + step)))
        running += (value.item() - running) / min(step, 100)
        if step % 200 == 0:
            print(f"step {step} of {perf_counter() - start:.0f} s: loss {running:.3f}, rate {rate:.2e}", flush=True)
        if step % 1000 == 0:
            torch.save(average.state_dict(), out)
    torch.save(average.state_dict(), out)
    return average


def follow(average: Detector, model: Detector, keep: float) -> None:
    """Move a running average towards the model."""
    with torch.no_grad():
        for slow, fast in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if slow.dtype.is_floating_point:
                slow.lerp_(fast, 1 - keep)
            else:
                slow.copy_(fast)


def quick_check(model: Detector, held_out: Set, count: int = 400) -> str:
    """Return mAP@0.5 of a network on the first frames of a drawn set."""
    images, boxes = held_out[0][:count], held_out[1][:count]
    height, width = images[0].shape[:2]
    geometry = fit(width, height, ImagePreprocessing(input="images", width=width, height=height))
    lenient = DetectionPostprocessing(output="output0", class_names=CLASS_NAMES, score_threshold=0.01)
    model.decoded = True
    found: list[list[Detection]] = []
    with torch.no_grad():
        for picture in images:
            output = model(torch.from_numpy(picture.copy()).permute(2, 0, 1).float().div(255)[None]).numpy()
            found.append(detect(output, lenient, geometry))
    model.decoded = False
    result = mean_average_precision(found, truths(boxes))
    return f"{result.mean:.4f} {', '.join(f'{name} {value:.3f}' for name, value in result.per_class.items())}"


def load(width: Width, path: Path) -> Detector:
    """Load a checkpoint."""
    model = Detector(width).to(memory_format=torch.channels_last).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def _as_list(drawn: tuple[NDArray[np.uint8], NDArray[np.float32]]) -> Set:
    """Return a drawn set with its images one by one."""
    return list(drawn[0]), drawn[1]


def main() -> None:
    """Do as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--cache", type=Path, help="folder that keeps the drawn scenes; default OUT/sets")
    parser.add_argument("--minutes", type=float, nargs=2, default=(40.0, 40.0), help="of training, large and small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rung", choices=("both", "street", "street-small"), default="both")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="learning rate at its peak")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cache = options.cache or options.out / "sets"
    options.out.mkdir(parents=True, exist_ok=True)
    scenes, films = draw_set(TRAIN, cache), draw_set(TRAIN_FILM, cache)
    wide: Set = ([*scenes[0], *films[0]], np.concatenate([scenes[1], films[1]]))
    square, held_out = _as_list(draw_set(TRAIN_SQUARE, cache)), _as_list(draw_set(HELD_OUT, cache))
    for name, width, minutes in (("street", LARGE, options.minutes[0]), ("street-small", SMALL, options.minutes[1])):
        if options.rung not in ("both", name):
            continue
        model = train(
            width, minutes, [wide, square], options.out / f"{name}.pt", resume=options.resume, peak=options.rate
        )
        print(name, quick_check(model, held_out), flush=True)
        path = options.out / f"{name}.onnx"
        if name == "street":
            export.export(model, path, half=True)
        else:
            export.export(model, options.out / "street-small-float.onnx", half=False)
            export.quantise(options.out / "street-small-float.onnx", path, scenes[0])
        report(path)


if __name__ == "__main__":
    main()
