"""What is asked: models, requests and the right answers, kept as files so that servers and clients read the same.

`prepare` writes a folder once per run, in a process of its own: the client that measures must not hold onnx and a
second runtime when memory is shared out between processes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SIZES = {"10kb": 10_000, "150kb": 150_528, "600kb": 602_112, "2.7mb": 2_764_800}
"""Bytes of a request: a thumbnail, 224 x 224 RGB as bytes and as float32, a 1280 x 720 RGB frame."""
NETWORKS = ("squeezenet", "mobilenet")
DETECTOR = "street"
REQUESTS = 4
"""Different requests per workload, asked in turn: an answer to another one is seen."""
SEED = 20260101


@dataclass(frozen=True)
class Workload:
    """One model with its requests and right answers."""

    name: str
    kind: str
    """slice, network or detector."""
    request_bytes: int
    dtype: str
    shape: tuple[int, ...]
    """Of the input tensor; empty for pictures."""


def describe(folder: Path, name: str) -> Workload:
    """Read what a workload is, without its requests."""
    fields = json.loads((folder / f"{name}.json").read_text())
    return Workload(**fields | {"shape": tuple(fields["shape"])})


class Requests:
    """A workload's requests and answers, read from the folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.workload = workload = describe(folder, name)
        with np.load(folder / f"{name}.npz") as data:
            self.raw = [data[f"request{number}"].tobytes() for number in range(REQUESTS)]
            self.expected = [data[f"answer{number}"] for number in range(REQUESTS)]
        shape, dtype = workload.shape, workload.dtype
        self.arrays = [np.frombuffer(raw, dtype).reshape(shape) for raw in self.raw] if shape else []

    def is_right(self, number: int, answer: np.ndarray) -> bool:
        """Whether an answer is the right one: to the bit where bytes were only moved, within rounding else."""
        expected = self.expected[number % REQUESTS]
        if answer.shape != expected.shape:
            return False
        if self.workload.kind == "slice":
            return bool(np.array_equal(answer, expected))
        return bool(np.allclose(answer, expected, rtol=1e-3, atol=1e-3))


def detections_array(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Lay detections out as rows of class, score, x0, y0, x1, y1: float32."""
    return np.array(rows, np.float32).reshape(-1, 6)


def answer_array(workload: Workload, answer: bytes | memoryview) -> np.ndarray:
    """Lay an array over an answer's bytes."""
    if workload.kind == "slice":
        return np.frombuffer(answer, np.uint8)
    array = np.frombuffer(answer, np.float32)
    return array.reshape(-1, 6) if workload.kind == "detector" else array.reshape(1, -1)


def names(
    *, sizes: Sequence[str] = tuple(SIZES), networks: Sequence[str] = NETWORKS, detector: bool = True
) -> Iterator[str]:
    """Name workloads in the order in which they are shown."""
    yield from (f"slice-{size}" for size in sizes)
    yield from networks
    if detector:
        yield DETECTOR


def prepare(folder: Path, wanted: Sequence[str]) -> None:
    """Write graphs, requests and answers."""
    for name in wanted:
        workload, requests = _draw(folder, name)
        # The zoo's folder is never written; a network's answers come from this very machine's runtime.
        from benches.peers.serving import Model

        model = Model(folder, workload)
        arrays = {f"request{number}": np.frombuffer(raw, np.uint8) for number, raw in enumerate(requests)}
        arrays |= {f"answer{number}": np.array(model.run(raw)) for number, raw in enumerate(requests)}
        np.savez(folder / f"{name}.npz", **arrays)
        (folder / f"{name}.json").write_text(json.dumps(asdict(workload)))


def _draw(folder: Path, name: str) -> tuple[Workload, list[bytes]]:
    """Write a workload's graph; return what it takes and its requests."""
    from benches.peers import topologies

    rng = np.random.default_rng(SEED)
    graph = folder / f"{name}.onnx"
    if name == DETECTOR:
        from gridnode.demo.film import draw_film
        from models.zoo.packages import ZOO

        graph.write_bytes(Path(ZOO[DETECTOR].graph_path).read_bytes())
        frames = draw_film("bench-peers", REQUESTS).frames
        size_bytes = sum(map(len, frames)) // len(frames)
        return Workload(name, "detector", size_bytes, "uint8", ()), [bytes(frame) for frame in frames]
    if name in NETWORKS:
        topologies.write(getattr(topologies, name)(), graph)
        shape = (1, 3, topologies.SIDE, topologies.SIDE)
        drawn = [rng.random(shape, dtype=np.float32).tobytes() for _ in range(REQUESTS)]
        (folder / f"{name}.toml").write_text("preprocessing = false\npostprocessing = false\n")
        return Workload(name, "network", len(drawn[0]), "float32", shape), drawn
    size_bytes = SIZES[name.removeprefix("slice-")]
    topologies.write(topologies.slice_model(size_bytes), graph)
    drawn = [rng.integers(0, 256, size_bytes, dtype=np.uint8).tobytes() for _ in range(REQUESTS)]
    return Workload(name, "slice", size_bytes, "uint8", (size_bytes,)), drawn


if __name__ == "__main__":
    import sys

    prepare(Path(sys.argv[1]), sys.argv[2:])
