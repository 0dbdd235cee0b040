"""What the zoo holds, described for publishing: files, pre- and post-processing, rungs and golden inputs."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.imaging import preprocess
from models.manifest import DetectionPostprocessing, ImagePreprocessing, Postprocessing
from models.zoo import convpool
from models.zoo.street.scenes import CLASS_NAMES, random_scenes

GOLDEN_SEED = "golden"

STREET_PREPROCESSING = ImagePreprocessing(input="images", width=320, height=320)
STREET_POSTPROCESSING = DetectionPostprocessing(
    output="output0", class_names=CLASS_NAMES, score_threshold=0.35, iou_threshold=0.5, max_detections=100
)
CONVPOOL_PREPROCESSING = ImagePreprocessing(
    input="frame", width=convpool.WIDTH, height=convpool.HEIGHT, resize="stretch"
)


class ZooModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model, ready to be published."""

    name: str
    graph_path: Path
    description: str
    licence: str = "Apache-2.0"
    preprocessing: ImagePreprocessing
    postprocessing: Postprocessing | None = None
    rungs: tuple[str, ...] = ()
    """Names of smaller models of the zoo that may answer instead, best first."""
    golden_inputs: Callable[[], dict[str, NDArray[np.float32]]]
    """Draws inputs that every node can check its answer by; the same on every call."""


def _drawn(preprocessing: ImagePreprocessing, size: tuple[int, int]) -> Callable[[], dict[str, NDArray[np.float32]]]:
    """Return a function that draws one scene of a size and makes it the model's input."""

    def inputs() -> dict[str, NDArray[np.float32]]:
        ((frame, _),) = random_scenes(GOLDEN_SEED, 1, size=size)
        tensor, _ = preprocess(frame, preprocessing)
        return {preprocessing.input: tensor}

    return inputs


_HERE = Path(__file__).parent

ZOO = {
    model.name: model
    for model in (
        ZooModel(
            name="street",
            graph_path=_HERE / "street" / "street.onnx",
            description="Finds vehicles, pedestrians and cyclists; trained on drawn street scenes",
            preprocessing=STREET_PREPROCESSING,
            postprocessing=STREET_POSTPROCESSING,
            rungs=("street-small",),
            golden_inputs=_drawn(STREET_PREPROCESSING, (640, 360)),
        ),
        ZooModel(
            name="street-small",
            graph_path=_HERE / "street" / "street-small.onnx",
            description="The street detector's smaller rung in int8: less work and less sharp-eyed",
            preprocessing=STREET_PREPROCESSING,
            postprocessing=STREET_POSTPROCESSING,
            golden_inputs=_drawn(STREET_PREPROCESSING, (640, 360)),
        ),
        ZooModel(
            name="convpool",
            graph_path=_HERE / "convpool.onnx",
            description="Reference workload: two rounds of convolution, ReLU and max-pool on a 1280x720 frame",
            preprocessing=CONVPOOL_PREPROCESSING,
            golden_inputs=_drawn(CONVPOOL_PREPROCESSING, (convpool.WIDTH, convpool.HEIGHT)),
        ),
    )
}
"""All models of the zoo by name."""
