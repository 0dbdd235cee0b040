"""Drawn scenes as arrays on disk, for training and for measuring.

A set is two files: ``NAME.images.npy``, shape (n, height, width, 3), uint8, frames made ready as for inference but
for the scale, and ``NAME.boxes.npy``, shape (n, BOXES_MAX, 6), float32, rows of class index, x0, y0, x1, y1 in pixels
of those frames, and 1 to ignore; unused rows have class -1.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.average_precision import Truth
from models.detection import to_input
from models.imaging import preprocess
from models.manifest import ImagePreprocessing
from models.zoo.street.scenes import CLASS_NAMES, random_scenes, render_video

BOXES_MAX = 64
PIECE = 200
"""Scenes per piece of work, each with a seed of its own."""
FILM_STEP_S = 3.0
FILM_FRAMES = 20


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a set is made of."""

    name: str
    """Also the seed: sets of different names share no scene."""
    scenes: int = 0
    films: int = 0
    """Films of FILM_FRAMES frames each, FILM_STEP_S apart."""
    size: tuple[int, int] = (640, 360)
    """Of the drawn frames, in pixels."""
    width: int = 320
    height: int = 192
    """Of the frames in the set; wide scenes need little of the square input's border to train on."""


def frames(recipe: Recipe, first: int, last: int) -> Iterator[tuple[NDArray[np.uint8] | bytes, list[Truth]]]:
    """Draw the pieces first..last of a set: random scenes come first, then films."""
    scene_pieces = -(-recipe.scenes // PIECE)
    for piece in range(first, last):
        if piece < scene_pieces:
            count = min(PIECE, recipe.scenes - piece * PIECE)
            yield from random_scenes(f"{recipe.name}/{piece}", count, size=recipe.size)
        else:
            seed = f"{recipe.name}/film/{piece - scene_pieces}"
            yield from render_video(seed=seed, frames=FILM_FRAMES, fps=1 / FILM_STEP_S, size=recipe.size)


def draw_set(recipe: Recipe, folder: Path, *, processes: int = 2) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw a set, or take it from the folder where it has been drawn before.

    Parameters
    ----------
    recipe : Recipe
        What to draw.
    folder : Path
        Where sets are kept.
    processes : int, default 2
        Drawing at once.

    Returns
    -------
    images, boxes : ndarray
        As described for this module; the images are mapped from disk.
    """
    pieces = -(-recipe.scenes // PIECE) + recipe.films
    paths = folder / f"{recipe.name}.images.npy", folder / f"{recipe.name}.boxes.npy"
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = pool.starmap(_draw_piece, [(recipe, piece) for piece in range(pieces)], chunksize=1)
        for number, path in enumerate(paths):
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, np.concatenate([part[number] for part in parts]))
            os.replace(partial, path)
    return np.load(paths[0], mmap_mode="r"), np.load(paths[1])


def _draw_piece(recipe: Recipe, piece: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw one piece of a set."""
    ready = ImagePreprocessing(input="images", width=recipe.width, height=recipe.height, scale=(1.0, 1.0, 1.0))
    images, boxes = [], []
    for frame, truth in frames(recipe, piece, piece + 1):
        tensor, geometry = preprocess(frame, ready)
        rows = np.full((BOXES_MAX, 6), -1, np.float32)
        for row, item in zip(rows, truth, strict=False):
            row[0], row[5] = CLASS_NAMES.index(item.class_name), item.ignore
            row[1:5] = to_input(np.array([item.box]), geometry)[0]
        images.append(tensor[0].transpose(1, 2, 0).round().astype(np.uint8))
        boxes.append(rows)
    return np.stack(images), np.stack(boxes)


def truths(boxes: NDArray[np.float32]) -> list[list[Truth]]:
    """Return the boxes of a set as records, in pixels of its frames."""
    return [
        [Truth(CLASS_NAMES[int(row[0])], _corners(row[1:5]), bool(row[5])) for row in rows if row[0] >= 0]
        for rows in boxes
    ]


def _corners(values: Sequence[float] | NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Return four numbers as a box."""
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1
