import os
import sys

import onnx
import pytest
from onnx import TensorProto
from onnx import helper as h

from models.admission import open_graph
from models.executor import ModelRefusedError
from models.graphcheck import DEPTH_MAX, NODES_MAX, check_bytes, main
from models.manifest import Manifest, TensorSpec, canonical_bytes, describe_shard


def make_manifest(x=("float32", (1, 4)), y=("float32", (1, 4))):
    return Manifest(
        name="toy",
        inputs=(TensorSpec(name="x", dtype=x[0], shape=x[1]),),
        outputs=(TensorSpec(name="y", dtype=y[0], shape=y[1]),),
        peak_memory_bytes=1,
        graph="graph.onnx",
        shards=(describe_shard("graph.onnx", [b"x"]),),
    )


def make_graph(nodes=None, *, x=None, y=None, initialisers=()):
    return h.make_graph(
        nodes or [h.make_node("Relu", ["x"], ["y"])],
        "toy",
        [x or h.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [y or h.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        initializer=list(initialisers),
    )


def make_model(graph=None, **more):
    opsets = more.pop("opset_imports", [h.make_opsetid("", 17)])
    return h.make_model(graph or make_graph(), opset_imports=opsets, ir_version=9, **more)


def refusal(model, manifest=None):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    verdict = check_bytes(data, manifest or make_manifest())
    assert not verdict.accepted
    return verdict.reason


def external(name="w", location="../../etc/passwd"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def nested(depth):
    inner = h.make_graph(
        [h.make_node("Identity", ["x"], ["r"])], "i", [], [h.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    )
    for level in range(depth):
        node = h.make_node("If", ["c"], [f"r{level}"], then_branch=inner, else_branch=inner)
        out = h.make_tensor_value_info(f"r{level}", TensorProto.FLOAT, None)
        inner = h.make_graph([node], f"g{level}", [], [out])
    return inner


def test_a_plain_graph_passes():
    assert check_bytes(make_model().SerializeToString(), make_manifest()).accepted


def test_a_size_left_open_on_either_side_fits():
    x = h.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = h.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    data = make_model(make_graph(x=x, y=y)).SerializeToString()
    assert check_bytes(data, make_manifest()).accepted
    assert check_bytes(data, make_manifest(x=("float32", (-1, 4)), y=("float32", (-1, -1)))).accepted


def test_an_initialiser_listed_among_the_inputs_is_no_input():
    w = h.make_tensor("w", TensorProto.FLOAT, [4], [1.0] * 4)
    graph = make_graph([h.make_node("Add", ["x", "w"], ["y"])], initialisers=[w])
    graph.input.append(h.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    assert check_bytes(make_model(graph).SerializeToString(), make_manifest()).accepted


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (make_manifest(x=("float16", (1, 4))), "input 'x' is float32 in the graph, float16 in the manifest"),
        (make_manifest(x=("float32", (1, 5))), r"shape [1, 4] in the graph, (1, 5) in the manifest"),
        (make_manifest(y=("float32", (4,))), "output 'y' has shape"),
    ],
)
def test_a_graph_that_differs_from_its_manifest_is_refused(manifest, message):
    assert message in refusal(make_model(), manifest)


def test_other_inputs_and_outputs_than_the_manifest_names_are_refused():
    assert "graph has inputs ['z']" in refusal(
        make_model(
            make_graph([h.make_node("Relu", ["z"], ["y"])], x=h.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4]))
        )
    )


def test_local_functions_are_refused():
    body = h.make_function("local", "F", ["a"], ["b"], [h.make_node("Relu", ["a"], ["b"])], [h.make_opsetid("", 17)])
    assert "1 local functions" in refusal(make_model(functions=[body]))


def test_custom_domains_are_refused_whether_declared_or_used():
    declared = make_model(opset_imports=[h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)])
    assert "operators of 'com.microsoft'" in refusal(declared)
    used = make_model(make_graph([h.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]))
    assert "'Gelu' is of 'com.microsoft'" in refusal(used)


def test_external_data_is_refused_wherever_it_hides():
    add = h.make_node("Add", ["x", "w"], ["y"])
    assert "tensor 'w' lies outside" in refusal(make_model(make_graph([add], initialisers=[external()])))
    constant = h.make_node("Constant", [], ["w"], value=external())
    assert "tensor 'w' lies outside" in refusal(make_model(make_graph([constant, add])))
    marker = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    marker.external_data.add(key="location", value="_ORT_MEM_ADDR_")
    assert "tensor 'w' lies outside" in refusal(make_model(make_graph([add], initialisers=[marker])))
    branch = h.make_graph([constant], "b", [], [h.make_tensor_value_info("w", TensorProto.FLOAT, [4])])
    chosen = h.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    assert "tensor 'w' lies outside" in refusal(make_model(make_graph([chosen])))
    sparse = onnx.SparseTensorProto(values=external("v"), dims=[4])
    graph = make_graph([add])
    graph.sparse_initializer.append(sparse)
    assert "tensor 'v' lies outside" in refusal(make_model(graph))


def test_subgraphs_nested_too_deep_are_refused():
    graph = nested(DEPTH_MAX)
    deep = make_graph(list(graph.node))
    assert f"more than {DEPTH_MAX} deep" in refusal(make_model(deep))


def test_too_many_operators_are_refused():
    node = h.make_node("Relu", ["x"], ["y"])
    assert f"more than {NODES_MAX} operators" in refusal(make_model(make_graph([node] * (NODES_MAX + 1))))


@pytest.mark.parametrize("data", [b"", b"no protocol buffer", b"\x3a\xff\xff\xff\xff\x0f", bytes(1000)])
def test_bytes_that_are_no_model_are_refused(data):
    assert refusal(data)


def test_operators_that_do_not_exist_are_refused():
    assert "no sound ONNX" in refusal(make_model(make_graph([h.make_node("NoSuchThing", ["x"], ["y"])])))


def test_a_hard_link_a_symbolic_link_and_a_folder_are_refused(tmp_path):
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"x")
    os.close(open_graph(graph))
    (tmp_path / "soft").symlink_to(graph)
    (tmp_path / "empty").touch()
    for path in (tmp_path / "soft", tmp_path, tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ModelRefusedError):
            open_graph(path)
    os.link(graph, tmp_path / "hard")
    with pytest.raises(ModelRefusedError, match="has 2 names"):
        open_graph(graph)


def test_the_command_says_why_it_cannot_read_its_files(tmp_path, capsys, monkeypatch):
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(canonical_bytes(make_manifest()))
    monkeypatch.setattr(sys, "argv", ["graphcheck", str(tmp_path / "absent"), str(manifest)])
    assert main() == 1
    assert '"accepted":false' in capsys.readouterr().out
