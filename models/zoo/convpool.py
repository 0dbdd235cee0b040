"""The grid's reference workload: convolution, ReLU, max-pool on a 1280x720 frame.

Nothing is learnt here. The model costs the same work for every frame, its file is tiny and its right answer is known
from a seed, which makes it fit to compare nodes and to test the way of a job.
"""

import numpy as np
import onnx
from numpy.random import Generator
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEIGHT = 1280, 720
CHANNELS = 16
SEED = 720
OPSET = 17
IR_VERSION = 8


def build(seed: int = SEED) -> onnx.ModelProto:
    """Build the model.

    Parameters
    ----------
    seed : int
        Of the weights.

    Returns
    -------
    ModelProto
        Input ``frame``, shape (1, 3, 720, 1280), float32; output ``pooled``, shape (1, 16, 45, 80), float32: two rounds
        of convolution 3x3 with stride 2, ReLU and max-pool 2x2. About 0.13 G multiplications.
    """
    rng = np.random.default_rng(seed)
    nodes, weights, name, channels = [], [], "frame", 3
    for number in (1, 2):
        kernel, bias = f"kernel{number}", f"bias{number}"
        weights += [_draw(rng, kernel, (CHANNELS, channels, 3, 3)), _draw(rng, bias, (CHANNELS,))]
        last = "pooled" if number == 2 else f"pooled{number}"
        nodes += [
            helper.make_node("Conv", [name, kernel, bias], [f"conv{number}"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]),
            helper.make_node("MaxPool", [f"relu{number}"], [last], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        name, channels = last, CHANNELS
    graph = helper.make_graph(
        nodes,
        "convpool",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, CHANNELS, HEIGHT // 16, WIDTH // 16])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="gridnode"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _draw(rng: Generator, name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    """Draw a weight whose layer keeps the size of its input's values (He et al., ICCV 2015, section 2.2)."""
    spread = np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) > 1 else 0.01
    return numpy_helper.from_array(rng.normal(0.0, spread, shape).astype(np.float32), name)


if __name__ == "__main__":
    from pathlib import Path

    onnx.save(build(), Path(__file__).with_name("convpool.onnx"))
