"""A model as every peer serves it: one onnxruntime session, the tensor laid over the received bytes, raw bytes back.

The same session options everywhere, those of a gridnode worker: as many threads per run as cores, no spinning between
runs (a spinning thread takes the core from whoever brings the next request). Pictures go through the project's own
decoding and non-maximum suppression, so that servers differ only in how bytes reach them.
"""

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benches.peers.workloads import DETECTOR, Workload, describe, detections_array

THREADS = len(os.sched_getaffinity(0))
"""Of one run, as a worker's default."""


@functools.cache
def _register_arena() -> None:
    """Make the process's arena grow by what is asked for, not to the next power of two, as a worker does."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(0, 1, -1, -1))


def session(graph: Path, *, threads: int = THREADS, spinning: bool = False) -> onnxruntime.InferenceSession:
    _register_arena()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


class Model:
    """One loaded model: request bytes in, answer out."""

    def __init__(self, folder: Path, workload: Workload, **options: Any) -> None:
        self._session = session(folder / f"{workload.name}.onnx", **options)
        self._workload = workload
        self._input = self._session.get_inputs()[0].name
        self.run = self._detect if workload.kind == "detector" else self._infer

    def warm_up(self) -> None:
        """Run once, as a server would before it says that it is ready."""
        if self._workload.shape:
            self._session.run(None, {self._input: np.zeros(self._workload.shape, self._workload.dtype)})

    def _infer(self, request: bytes | memoryview) -> np.ndarray:
        x = np.frombuffer(request, self._workload.dtype).reshape(self._workload.shape)
        return self._session.run(None, {self._input: x})[0]

    def _detect(self, request: bytes | memoryview) -> np.ndarray:
        from models.detection import detect
        from models.imaging import preprocess
        from models.zoo.packages import STREET_POSTPROCESSING, STREET_PREPROCESSING

        tensor, geometry = preprocess(request, STREET_PREPROCESSING)
        [output] = self._session.run(None, {self._input: tensor})
        found = detect(output, STREET_POSTPROCESSING, geometry)
        classes = STREET_POSTPROCESSING.class_names
        return detections_array([(classes.index(item.class_name), item.score, *item.box) for item in found])


def load(folder: Path, wanted: Sequence[str]) -> dict[str, Model]:
    """Load the models that a server was told to serve."""
    if DETECTOR in wanted:
        import models.detection
        import models.imaging
        import models.zoo.packages  # noqa: F401 - no request should wait for it
    loaded = {name: Model(folder, describe(folder, name)) for name in wanted}
    for model in loaded.values():
        model.warm_up()
    return loaded


def arguments() -> tuple[Path, dict[str, Model]]:
    """Read a server's command line: FOLDER MODEL..."""
    return Path(sys.argv[1]), load(Path(sys.argv[1]), sys.argv[2:])


def say_ready(address: object) -> None:
    """Tell the client, over standard output, where to connect."""
    print(address, flush=True)
