from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.golden import decode_golden
from models.graphread import PackageError
from models.manifest import (
    ClassificationPostprocessing,
    DetectionPostprocessing,
    ImagePreprocessing,
    Requirements,
    canonical_bytes,
    parse_manifest,
)
from models.package import RunReport, build_package, draw_inputs
from models.store import ChunkStore

NAMES = ("person", "bicycle", "car")
YOLO_PROPERTIES = {
    "names": "{0: 'person', 1: 'bicycle', 2: 'car'}",
    "imgsz": "[64, 96]",
    "stride": "32",
    "task": "detect",
    "license": "AGPL-3.0",
    "description": "Ultralytics YOLO model",
}


def save(path: Path, nodes, inputs, outputs, initializers=(), properties=None, **fields) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, **fields)
    helper.set_model_props(model, properties or {})
    path.write_bytes(model.SerializeToString())
    return path


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def yolo(path: Path, classes=3, height=64, width=96, properties=None, shape_in=None, shape_out=None) -> Path:
    """A network of the shape that YOLO exports have: (1, 3, h, w) to (1, 4 + classes, h / 8 * w / 8)."""
    rows, columns = 4 + classes, height // 8 * (width // 8)
    weights = np.linspace(-1, 1, rows * 3, dtype=np.float32).reshape(rows, 3, 1, 1)
    return save(
        path,
        [
            helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
            helper.make_node("Conv", ["pooled", "weights"], ["mapped"]),
            helper.make_node("Reshape", ["mapped", "shape"], ["output0"]),
        ],
        [value("images", shape_in or [1, 3, height, width])],
        [value("output0", shape_out or [1, rows, columns])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([1, rows, columns], np.int64), "shape"),
        ],
        YOLO_PROPERTIES if properties is None else properties,
    )


def relu(path: Path, shape=(1, 4), **fields) -> Path:
    return save(path, [helper.make_node("Relu", ["x"], ["y"])], [value("x", shape)], [value("y", shape)], **fields)


def run(manifest, graph, inputs) -> RunReport:
    """Run a model by onnx's own reference, which needs no runtime."""
    from onnx.reference import ReferenceEvaluator

    names = [spec.name for spec in manifest.outputs]
    return RunReport(
        dict(zip(names, ReferenceEvaluator(str(graph)).run(names, dict(inputs)), strict=True)), 123_456_789
    )


def test_own_yolo_export_needs_no_other_file(tmp_path):
    package = build_package(yolo(tmp_path / "YOLO11n Street.onnx"), run=run)
    manifest = package.manifest
    assert manifest.name == "yolo11n-street"
    assert manifest.preprocessing == ImagePreprocessing(input="images", width=96, height=64)
    assert manifest.postprocessing == DetectionPostprocessing(output="output0", class_names=NAMES)
    assert manifest.licence == "AGPL-3.0"
    assert manifest.peak_memory_bytes == 123_456_789
    assert [shard.name for shard in manifest.shards] == ["graph.onnx", "golden.bin"]
    assert parse_manifest(canonical_bytes(manifest)) == manifest


def test_golden_data_are_those_of_one_seeded_run(tmp_path):
    path = yolo(tmp_path / "yolo.onnx")
    first, second, other = (build_package(path, run=run, seed=seed) for seed in (1, 1, 2))
    assert first.manifest == second.manifest
    assert first.manifest != other.manifest
    inputs, outputs = decode_golden(first.files["golden.bin"])
    assert inputs["images"].shape == (1, 3, 64, 96)
    assert 0 <= inputs["images"].min() < inputs["images"].max() <= 1
    assert outputs["output0"].shape == (1, 7, 96)
    again = run(first.manifest, path, inputs).outputs["output0"]
    np.testing.assert_array_equal(again, outputs["output0"])


@pytest.mark.parametrize("names", ["", "nonsense", "{1: 'a'}", "['a', 'b'", "__import__('os')", "[" * 5000, "{}", "7"])
def test_export_without_usable_names_is_recognised_by_its_shape(tmp_path, names):
    path = yolo(tmp_path / "yolo.onnx", classes=3, properties={"names": names})
    package = build_package(path)
    assert package.manifest.postprocessing.class_names == ("class 0", "class 1", "class 2")
    assert any("class names are unknown" in note for note in package.notes)


def test_dynamic_export_takes_its_size_from_the_metadata(tmp_path):
    path = yolo(tmp_path / "yolo.onnx", shape_in=["batch", 3, "height", "width"], shape_out=["batch", 7, "anchors"])
    manifest = build_package(path, run=run).manifest
    assert manifest.inputs[0].shape == (-1, 3, -1, -1)
    assert (manifest.preprocessing.width, manifest.preprocessing.height) == (96, 64)
    assert draw_inputs(manifest, 0)["images"].shape == (1, 3, 64, 96)


def test_output_after_built_in_nms_is_left_raw_and_said(tmp_path):
    path = yolo(
        tmp_path / "yolo.onnx", classes=2, properties={**YOLO_PROPERTIES, "names": str(dict(enumerate("abcdefgh")))}
    )
    package = build_package(path)
    assert package.manifest.postprocessing is None
    assert any("without built-in NMS" in note for note in package.notes)


def test_segmentation_is_left_raw(tmp_path):
    path = yolo(tmp_path / "yolo.onnx", properties={**YOLO_PROPERTIES, "task": "segment"})
    package = build_package(path)
    assert package.manifest.postprocessing is None
    assert package.manifest.preprocessing is not None
    assert any("segment" in note for note in package.notes)


def test_classification_export_is_recognised(tmp_path):
    path = save(
        tmp_path / "cls.onnx",
        [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["output0"]),
        ],
        [value("images", [1, 3, 32, 32])],
        [value("output0", [1, 3])],
        properties={**YOLO_PROPERTIES, "task": "classify", "imgsz": "[32, 32]"},
    )
    manifest = build_package(path, run=run).manifest
    assert manifest.postprocessing == ClassificationPostprocessing(
        output="output0", class_names=NAMES, softmax=False, top_k=3
    )
    assert manifest.preprocessing.resize == "stretch"


def test_plain_model_takes_and_gives_tensors(tmp_path):
    package = build_package(relu(tmp_path / "relu.onnx"))
    assert package.manifest.preprocessing is None
    assert package.manifest.postprocessing is None
    assert package.manifest.golden is None
    assert package.manifest.peak_memory_bytes > 64 << 20
    assert any("no golden data" in note for note in package.notes)


def test_toml_overrides_field_by_field_and_arguments_override_it(tmp_path):
    path = yolo(tmp_path / "yolo.onnx")
    (tmp_path / "model.toml").write_text("""
        name = "street"
        version = 3
        rungs = ["street-small"]
        peak_memory_bytes = 99
        requirements = { memory_bytes = 7 }
        [preprocessing]
        pad_value = 0
        [postprocessing]
        class_names = ["vehicle", "pedestrian", "cyclist"]
        score_threshold = 0.4
        [golden]
        rtol = 0.5
    """)
    manifest = build_package(tmp_path, run=run, version=4).manifest
    assert (manifest.name, manifest.version, manifest.rungs) == ("street", 4, ("street-small",))
    assert manifest.preprocessing == ImagePreprocessing(input="images", width=96, height=64, pad_value=0)
    assert manifest.postprocessing.class_names == ("vehicle", "pedestrian", "cyclist")
    assert manifest.postprocessing.score_threshold == 0.4
    assert manifest.golden.rtol == 0.5
    assert manifest.requirements == Requirements(memory_bytes=7)
    assert build_package(path, peak_memory_bytes=5, run=run).manifest.peak_memory_bytes == 5
    (tmp_path / "yolo.toml").write_text("preprocessing = false\npostprocessing = false")
    manifest = build_package(path).manifest
    assert manifest.preprocessing is None
    assert manifest.postprocessing is None
    assert manifest.name == "yolo"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = ", "cannot be read"),
        ("weights = 1", "'weights'"),
        ("name = 'Bad Name'", "does not match"),
        ("version = 0", "version 0"),
        ("[preprocessing]\nwidth = 'wide'", "makes no sense"),
        ("[postprocessing]\noutput = 'nowhere'", "nowhere"),
        ("[postprocessing]\nkind = 'magic'", "makes no sense"),
        ("rungs = ['../x']", "rung name"),
    ],
)
def test_wrong_toml_is_named(tmp_path, text, reason):
    yolo(tmp_path / "yolo.onnx")
    (tmp_path / "model.toml").write_text(text)
    with pytest.raises(PackageError, match=reason):
        build_package(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"PK\x03\x04 zip", b"\x08\x09", b"not a model at all", b"\xff" * 999]
)
def test_files_that_are_no_onnx_are_named(tmp_path, data):
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(PackageError, match="is no ONNX file"):
        build_package(path)


def test_missing_files_and_crowded_folders_are_named(tmp_path):
    with pytest.raises(PackageError, match="cannot be read"):
        build_package(tmp_path / "no.onnx")
    with pytest.raises(PackageError, match=r"0 \.onnx files"):
        build_package(tmp_path)
    relu(tmp_path / "a.onnx")
    relu(tmp_path / "b.onnx")
    with pytest.raises(PackageError, match=r"2 \.onnx files"):
        build_package(tmp_path)
    assert build_package(tmp_path / "b.onnx").manifest.name == "b"


def test_external_data_are_refused(tmp_path):
    model = onnx.load(yolo(tmp_path / "yolo.onnx"))
    onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(PackageError, match="outside of the file"):
        build_package(tmp_path / "ext.onnx")


def test_custom_operators_and_local_functions_are_refused(tmp_path):
    custom = save(
        tmp_path / "custom.onnx",
        [helper.make_node("Magic", ["x"], ["y"], domain="com.example")],
        [value("x", [1])],
        [value("y", [1])],
    )
    with pytest.raises(PackageError, match=r"com\.example"):
        build_package(custom)
    function = helper.make_function(
        "", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    with pytest.raises(PackageError, match="local functions"):
        build_package(relu(tmp_path / "f.onnx", functions=[function]))


def test_signatures_that_a_manifest_cannot_name_are_refused(tmp_path):
    double = save(
        tmp_path / "d.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [value("x", [1], TensorProto.DOUBLE)],
        [value("y", [1], TensorProto.DOUBLE)],
    )
    with pytest.raises(PackageError, match="'x' is no tensor of"):
        build_package(double)
    with pytest.raises(PackageError, match="up to 8 sizes"):
        build_package(relu(tmp_path / "deep.onnx", shape=[1] * 9))
    with pytest.raises(PackageError, match="has no shape"):
        build_package(relu(tmp_path / "open.onnx", shape=None))


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({}, "no output 'y'"),
        ({"y": np.zeros((1, 5), np.float32)}, r"shape \(1, 5\)"),
        ({"y": np.zeros((1, 4), np.float64)}, "float64"),
        ({"y": np.full((1, 4), np.nan, np.float32)}, "NaN"),
    ],
)
def test_golden_runs_of_no_use_are_named(tmp_path, outputs, reason):
    path = relu(tmp_path / "relu.onnx")
    with pytest.raises(PackageError, match=reason):
        build_package(path, run=lambda *_: RunReport(outputs))


def test_golden_inputs_that_do_not_fit_are_named_before_the_run(tmp_path):
    path = relu(tmp_path / "relu.onnx")
    with pytest.raises(PackageError, match="no input 'x'"):
        build_package(path, run=run, golden_inputs={})
    with pytest.raises(PackageError, match="float64"):
        build_package(path, run=run, golden_inputs={"x": np.zeros((1, 4))})


def test_package_goes_into_a_store_as_every_node_will_have_it(tmp_path):
    path = yolo(tmp_path / "yolo.onnx")
    package = build_package(path, run=run)
    store = ChunkStore(tmp_path / "store", 1 << 24)
    for shard in package.manifest.shards:
        content = package.files[shard.name]
        data = content.read_bytes() if isinstance(content, Path) else content
        (tmp_path / "incoming").write_bytes(data)
        assert store.put_file(shard, tmp_path / "incoming").read_bytes() == data
