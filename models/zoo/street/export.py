"""From a trained network to the ONNX files that are shipped. Needs torch, which only training does."""

# torch is no dependency of the project, so for mypy all that comes from it is untyped.
# mypy: disable-error-code="misc, no-any-return, no-untyped-call, import-not-found, unused-ignore, import-untyped"

import copy
import os
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from models.zoo.street.network import Conv, Detector
from models.zoo.street.scenes import CLASS_NAMES

OPSET = 17
CALIBRATION_FRAMES = 64


def fuse(model: Detector) -> Detector:
    """Return a copy with batch normalisation folded into the convolutions."""
    model = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    for module in model.modules():
        if isinstance(module, Conv):
            module[0] = nn.utils.fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    return model


def export(model: Detector, path: Path, *, half: bool) -> None:
    """Write a network as ONNX.

    Parameters
    ----------
    model : Detector
        The trained network.
    path : Path
        Where to.
    half : bool
        Whether to store weights in float16 and widen them on loading: half the bytes, the speed of float32. Without,
        the long names stay, which quantise needs.
    """
    fused = fuse(model)
    fused.decoded = True
    torch.onnx.export(
        fused,
        (torch.zeros(1, 3, 320, 320),),
        os.fspath(path),
        input_names=["images"],
        output_names=["output0"],
        opset_version=OPSET,
        dynamo=False,
    )
    graph = onnx.load(path)
    if half:
        store_half(graph)
        shorten(graph)
    describe(graph)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def store_half(model: onnx.ModelProto) -> None:
    """Replace each large float32 weight by a float16 one and a Cast, in place."""
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 4:
            continue
        halved = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.half")
        graph.initializer.remove(tensor)
        graph.initializer.append(halved)
        casts.append(onnx.helper.make_node("Cast", [halved.name], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def describe(model: onnx.ModelProto) -> None:
    """Write the metadata that tools for YOLO models read, in place."""
    facts = {
        "description": "Street detector trained on drawn scenes",
        "author": "gridnode",
        "license": "Apache-2.0",
        "task": "detect",
        "stride": "32",
        "batch": "1",
        "imgsz": "[320, 320]",
        "names": str(dict(enumerate(CLASS_NAMES))),
    }
    onnx.helper.set_model_props(model, facts)
    model.producer_name, model.producer_version, model.doc_string = "gridnode", "", ""


def shorten(model: onnx.ModelProto) -> None:
    """Give short names to everything inside the graph and drop what can be worked out again, in place.

    The long names of a traced network take a tenth of a small file.
    """
    graph = model.graph
    kept = {tensor.name for tensor in (*graph.input, *graph.output)}
    names: dict[str, str] = {"": ""}

    def short(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"t{len(names)}")

    # The quantiser declares operator sets that nothing here uses.
    for number in reversed(range(len(model.opset_import))):
        if model.opset_import[number].domain:
            del model.opset_import[number]
    del graph.value_info[:]
    for tensor in graph.initializer:
        tensor.name, tensor.doc_string = short(tensor.name), ""
    for number, node in enumerate(graph.node):
        node.name, node.doc_string = f"n{number}", ""
        del node.metadata_props[:]
        node.input[:], node.output[:] = map(short, list(node.input)), map(short, list(node.output))


class _Frames(CalibrationDataReader):
    """Feeds drawn scenes, put on the square input as inference does."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        chosen = np.linspace(0, len(images) - 1, CALIBRATION_FRAMES).astype(int)
        self._images = iter([images[index] for index in chosen])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next input, None at the end."""
        image = next(self._images, None)
        if image is None:
            return None
        square = np.full((320, 320, 3), 114, np.uint8)
        top = (320 - image.shape[0]) // 2
        square[top : top + image.shape[0]] = image
        return {"images": np.ascontiguousarray(square.transpose(2, 0, 1)[None], np.float32) / np.float32(255)}


def quantise(source: Path, path: Path, images: NDArray[np.uint8]) -> None:
    """Write an int8 QDQ version of a float ONNX file.

    The 1x1 layers that give boxes and scores, and all that follows them, stay in float: they cost next to nothing,
    and a step of 1/255 of their range would move small boxes.
    """
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(os.fspath(source), os.fspath(prepared), skip_symbolic_shape=True)
    nodes = list(onnx.load(prepared).graph.node)
    first = min(number for number, node in enumerate(nodes) if "/boxes/" in node.name)
    last_body = max(number for number, node in enumerate(nodes) if "/head/" in node.name)
    exact = [node.name for node in nodes[min(first, last_body) :] if "/head/" not in node.name]
    quantize_static(
        os.fspath(prepared),
        os.fspath(path),
        _Frames(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Relu", "Add", "Concat", "Resize"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=exact,
        # The mean of each frame's extremes, not those of all frames: a rare spark must not cost everybody a bit.
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False, "CalibMovingAverage": True},
    )
    prepared.unlink()
    result = onnx.load(path)
    shorten(result)
    describe(result)
    onnx.checker.check_model(result, full_check=True)
    onnx.save(result, path)
