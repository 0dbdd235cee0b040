"""The models of the comparison, written with onnx.helper: a slice, SqueezeNet 1.1 and MobileNet v2.

Weights are drawn from a fixed seed: what a run costs does not depend on what was learned, and nothing is downloaded.
Their scale keeps activations of the size they have in trained networks (He et al. 2015, section 2.2), since numbers
that vanish into denormals or overflow would run at another speed.

SqueezeNet 1.1: Iandola et al. 2016, in the authors' smaller variant: 1.24 M parameters.
MobileNet v2: Sandler et al. 2018, table 2: 3.4 M as the paper rounds, 3.50 M as counted with both terms of its batch
normalisations. Here they are folded into the convolutions, as every exporter does: 3.49 M.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

HEAD_BYTES = 16
"""What the slice model returns."""
CLASSES = 1000
SIDE = 224
"""Pixels of the networks' square input: 1 x 3 x 224 x 224 float32 are 602,112 bytes."""

SQUEEZENET_FIRES = (
    ((16, 64), (16, 64)),
    ((32, 128), (32, 128)),
    ((48, 192), (48, 192), (64, 256), (64, 256)),
)
"""Squeezed channels and channels of each of the two expansions, by stage; a pooling stands before each stage."""

MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and stride of the first block, by stage: the paper's table 2."""


def slice_model(size_bytes: int) -> onnx.ModelProto:
    """Return a model that gives the first 16 of its uint8 inputs: all of its time is transport."""
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [size_bytes])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [HEAD_BYTES])
    bounds = [
        helper.make_tensor("starts", TensorProto.INT64, [1], [0]),
        helper.make_tensor("ends", TensorProto.INT64, [1], [HEAD_BYTES]),
    ]
    return _finish(
        helper.make_graph([helper.make_node("Slice", ["x", "starts", "ends"], ["y"])], "slice", [x], [y], bounds)
    )


class _Network:
    """A graph under construction; its methods add a layer and return the name of what comes out."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _weight(self, values: np.ndarray) -> str:
        name = f"w{len(self._weights)}"
        data = values.astype("<f4")
        self._weights.append(helper.make_tensor(name, TensorProto.FLOAT, data.shape, data.tobytes(), raw=True))
        return name

    def conv(
        self, x: str, channels_in: int, channels: int, side: int = 1, *, stride: int = 1, pad: int = 0, group: int = 1
    ) -> str:
        shape = (channels, channels_in // group, side, side)
        scale = (2.0 / (shape[1] * side * side)) ** 0.5
        weight = self._weight(self._rng.normal(0.0, scale, shape))
        bias = self._weight(self._rng.normal(0.0, 0.01, channels))
        return self.add(
            "Conv", x, weight, bias, kernel_shape=[side, side], strides=[stride] * 2, pads=[pad] * 4, group=group
        )

    def dense(self, x: str, size_in: int, size: int) -> str:
        weight = self._weight(self._rng.normal(0.0, size_in**-0.5, (size, size_in)))
        bias = self._weight(np.zeros(size))
        return self.add("Gemm", x, weight, bias, transB=1)

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, "zero", "six")

    def finish(self, name: str) -> onnx.ModelProto:
        """End the graph: its last layer is the output."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])
        self._nodes[-1].output[0] = "y"
        return _finish(helper.make_graph(self._nodes, name, [x], [y], [*self._weights, *self._limits()]))

    def _limits(self) -> list[onnx.TensorProto]:
        """Return the constants of relu6 where it is used."""
        used = any(node.op_type == "Clip" for node in self._nodes)
        pairs = (("zero", 0.0), ("six", 6.0)) if used else ()
        return [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in pairs]


def squeezenet(seed: int = 11) -> onnx.ModelProto:
    """Return SqueezeNet 1.1: 1 x 3 x 224 x 224 float32 to 1,000 scores."""
    net = _Network(seed)
    x = net.add("Relu", net.conv("x", 3, 64, 3, stride=2))
    channels = 64
    for stage in SQUEEZENET_FIRES:
        x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        for squeezed, expanded in stage:
            x = net.add("Relu", net.conv(x, channels, squeezed))
            ones = net.add("Relu", net.conv(x, squeezed, expanded))
            threes = net.add("Relu", net.conv(x, squeezed, expanded, 3, pad=1))
            x = net.add("Concat", ones, threes, axis=1)
            channels = 2 * expanded
    x = net.add("Relu", net.conv(x, channels, CLASSES))
    net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.finish("squeezenet")


def mobilenet(seed: int = 12) -> onnx.ModelProto:
    """Return MobileNet v2 at width 1.0: 1 x 3 x 224 x 224 float32 to 1,000 scores."""
    net = _Network(seed)
    x = net.relu6(net.conv("x", 3, 32, 3, stride=2, pad=1))
    channels = 32
    for expansion, wanted, blocks, first_stride in MOBILENET_STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            x = _inverted_residual(net, x, channels, wanted, expansion, stride)
            channels = wanted
    x = net.relu6(net.conv(x, channels, 1280))
    net.dense(net.add("Flatten", net.add("GlobalAveragePool", x)), 1280, CLASSES)
    return net.finish("mobilenet")


def _inverted_residual(net: _Network, x: str, channels_in: int, channels: int, expansion: int, stride: int) -> str:
    """Widen, filter each channel by itself, narrow; add the input where shapes allow (section 3.3)."""
    wide = channels_in * expansion
    inner = x if expansion == 1 else net.relu6(net.conv(x, channels_in, wide))
    inner = net.relu6(net.conv(inner, wide, wide, 3, stride=stride, pad=1, group=wide))
    inner = net.conv(inner, wide, channels)
    return net.add("Add", x, inner) if stride == 1 and channels_in == channels else inner


def parameters(model: onnx.ModelProto) -> int:
    """Return how many learned numbers a network has: the limits of its clips are none."""
    return sum(int(np.prod(item.dims)) for item in model.graph.initializer if item.name not in ("zero", "six"))


def _finish(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9  # of opset 17; the newest one is refused by older runtimes
    onnx.checker.check_model(model)
    return model


def write(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(model, path)
