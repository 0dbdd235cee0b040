"""What a node needs numpy and Pillow for when a model is new to it: comparing golden outputs, drawing a picture.

The daemon does without both libraries, which would take 10 MB for as long as it lives. So this module runs in a
process of its own (models.child.ask), a tenth of a second once per model:

    python -P -m models.appraisal compare RTOL ATOL    two golden shards in, ``{"problem": ""}`` out
    python -P -m models.appraisal picture              a JPEG out

Knows nothing of executors, models or files.
"""

import io
import sys
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from models.golden import GoldenMismatchError, decode_golden
from models.manifest import ModelError
from models.ndarrays import Array

LENGTH_BYTES: Final = 8
"""Of the number before the first shard, little-endian: the second one begins where the first ends."""
FRAME_SIZE: Final = (1280, 720)
"""Pixels of the picture that models with pre-processing are measured on: what most cameras send."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison found."""

    problem: str = ""
    """How outputs differ from golden ones; empty where they do not."""


def compare(found: Mapping[str, Array], wanted: Mapping[str, Array], *, rtol: float, atol: float) -> None:
    """Compare outputs with golden ones; takes milliseconds per million numbers.

    Parameters
    ----------
    found, wanted : mapping of str to ndarray
        Outputs by name; those found may be more than are wanted.
    rtol, atol : float
        Tolerances of the manifest: ``|found - wanted| <= atol + rtol * |wanted|``.

    Raises
    ------
    GoldenMismatchError
        An output is missing, or differs in type, shape or value; NaN equals NaN.
    """
    for name, right in wanted.items():
        if name not in found:
            raise GoldenMismatchError(f"golden output {name!r} is not among the model's: {', '.join(found)}")
        got = found[name]
        if got.dtype != right.dtype or got.shape != right.shape:
            raise GoldenMismatchError(
                f"output {name!r} is {got.dtype}{list(got.shape)}, golden is {right.dtype}{list(right.shape)}"
            )
        wide_got, wide_right = got.astype(np.float64), right.astype(np.float64)
        if not np.allclose(wide_got, wide_right, rtol=rtol, atol=atol, equal_nan=True):
            with np.errstate(invalid="ignore"):
                worst = float(np.max(np.abs(wide_got - wide_right)))
            raise GoldenMismatchError(
                f"output {name!r} differs from golden by up to {worst:.4g}, allowed are atol {atol:g} and "
                f"rtol {rtol:g}; check the package, and this machine's providers"
            )


def picture() -> bytes:
    """Draw a JPEG with the detail of a street, about 150 kB."""
    from PIL import Image

    width, height = FRAME_SIZE
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize(FRAME_SIZE, Image.Resampling.BILINEAR).save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def _compare_shards(given: bytes, *, rtol: float, atol: float) -> Comparison:
    """Compare the outputs in two golden shards: the right one, then the one found."""
    view = memoryview(given)
    end = LENGTH_BYTES + int.from_bytes(view[:LENGTH_BYTES], "little")
    _, wanted = decode_golden(view[LENGTH_BYTES:end])
    _, found = decode_golden(view[end:])
    try:
        compare(found, wanted, rtol=rtol, atol=atol)
    except GoldenMismatchError as error:
        return Comparison(problem=str(error))
    return Comparison()


def main(arguments: list[str]) -> int:
    """Run one of the two; the result goes to standard output."""
    match arguments:
        case ["compare", rtol, atol]:
            try:
                found = _compare_shards(sys.stdin.buffer.read(), rtol=float(rtol), atol=float(atol))
            except ModelError as error:
                sys.stderr.write(f"{error}\n")
                return 1
            sys.stdout.buffer.write(msgspec.json.encode(found))
        case ["picture"]:
            sys.stdout.buffer.write(picture())
        case _:
            raise SystemExit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
