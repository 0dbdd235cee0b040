import base64
import hashlib
import json

import msgspec
import pytest

from models.manifest import (
    CHUNK_SIZE_BYTES,
    MANIFEST_MAX_BYTES,
    DetectionPostprocessing,
    Golden,
    ImagePreprocessing,
    Manifest,
    ManifestError,
    Shard,
    TensorSpec,
    canonical_bytes,
    chunk_cid,
    describe_shard,
    model_digest,
    parse_cid,
    parse_manifest,
)

SHARD = describe_shard("graph.onnx", [b"a" * CHUNK_SIZE_BYTES, b"end"])
MANIFEST = Manifest(
    name="street",
    inputs=(TensorSpec(name="images", dtype="float32", shape=(1, 3, 320, 320)),),
    outputs=(TensorSpec(name="output0", dtype="float32", shape=(1, 7, -1)),),
    preprocessing=ImagePreprocessing(input="images", width=320, height=320),
    postprocessing=DetectionPostprocessing(output="output0", class_names=("vehicle", "pedestrian", "cyclist")),
    peak_memory_bytes=200_000_000,
    graph="graph.onnx",
    shards=(SHARD,),
)


def changed(**fields) -> bytes:
    """A manifest as a careless or evil publisher might write it: canonical, yet with other fields."""
    document = json.loads(canonical_bytes(MANIFEST)) | fields
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def test_manifest_survives_its_bytes_and_its_digest_is_their_hash():
    data = canonical_bytes(MANIFEST)
    assert parse_manifest(data) == MANIFEST
    assert model_digest(MANIFEST) == hashlib.sha256(data).hexdigest()
    assert changed() == data


def test_every_flipped_byte_is_refused_or_is_another_model():
    data = canonical_bytes(MANIFEST)
    for place in range(len(data)):
        bad = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            manifest = parse_manifest(bad)
        except ManifestError:
            continue
        assert model_digest(manifest) != model_digest(MANIFEST)


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_truncated_manifests_are_refused(cut):
    with pytest.raises(ManifestError, match="malformed"):
        parse_manifest(canonical_bytes(MANIFEST)[:cut])


def test_second_spellings_of_one_manifest_are_refused():
    data = canonical_bytes(MANIFEST)
    for other in (data + b" ", data + b"\n", b" " + data, json.dumps(json.loads(data)).encode()):
        with pytest.raises(ManifestError, match="canonical"):
            parse_manifest(other)


def test_bombs_are_refused():
    with pytest.raises(ManifestError, match="at most"):
        parse_manifest(b"x" * (MANIFEST_MAX_BYTES + 1))
    with pytest.raises(ManifestError, match="malformed"):
        parse_manifest(b"[" * 500_000)
    with pytest.raises(ManifestError, match="malformed"):
        parse_manifest(b'{"name":"\xff\xfe"}')


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "../etc/passwd"}, "does not match"),
        ({"name": ".hidden"}, "does not match"),
        ({"name": "a" * 65}, "does not match"),
        ({"name": "street\n"}, "does not match"),
        ({"name": ""}, "does not match"),
        ({"rungs": ["a/b"]}, "rung name"),
        ({"version": 0}, "below 1"),
        ({"format": 2}, "malformed"),
        ({"inputs": []}, "at least one input"),
        ({"outputs": []}, "at least one input"),
        ({"graph": "other"}, "graph names"),
        ({"golden": {"shard": "golden.bin"}}, "golden names"),
        ({"shards": []}, "graph names"),
        ({"unknown": 1}, "unknown"),
        ({"inputs": [{"name": "images", "dtype": "object", "shape": [1]}]}, "dtype"),
        ({"inputs": [{"name": "images", "dtype": "float32", "shape": [0]}]}, "shape"),
        ({"inputs": [{"name": "images", "dtype": "float32", "shape": [-2]}]}, "shape"),
        ({"inputs": [{"name": "images", "dtype": "float32", "shape": [1] * 9}]}, "shape"),
        ({"preprocessing": {"input": "nowhere", "width": 1, "height": 1}}, "preprocessing fills"),
        ({"preprocessing": {"input": "images", "width": 0, "height": 1}}, "image size"),
        ({"preprocessing": {"input": "images", "width": 1, "height": 1, "pad_value": 256}}, "pad_value"),
        ({"postprocessing": {"kind": "detection", "output": "nowhere", "class_names": []}}, "postprocessing reads"),
        ({"postprocessing": {"kind": "shell", "output": "output0", "class_names": []}}, "malformed"),
    ],
)
def test_contradictions_and_bounds_are_named(fields, reason):
    with pytest.raises(ManifestError, match=reason):
        parse_manifest(changed(**fields))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "../x"}, "shard name"),
        ({"size_bytes": 0}, "allowed are"),
        ({"size_bytes": 2**40}, "allowed are"),
        ({"size_bytes": 3 * CHUNK_SIZE_BYTES}, "its size needs 3"),
        ({"sha256": "AB" * 32}, "hex digits"),
        ({"sha256": "/../" * 16}, "hex digits"),
        ({"chunks": ["x"] * 2}, "CIDv1"),
    ],
)
def test_odd_shards_are_refused(fields, reason):
    with pytest.raises(ManifestError, match=reason):
        parse_manifest(changed(shards=[msgspec.to_builtins(SHARD) | fields]))


def test_two_shards_of_one_name_are_refused():
    with pytest.raises(ManifestError, match="two shards"):
        parse_manifest(changed(shards=[msgspec.to_builtins(SHARD)] * 2))


def test_golden_names_a_shard():
    manifest = msgspec.structs.replace(MANIFEST, golden=Golden(shard="graph.onnx"))
    assert parse_manifest(canonical_bytes(manifest)) == manifest
    assert manifest.shard("graph.onnx") == SHARD
    with pytest.raises(KeyError):
        manifest.shard("golden.bin")


def test_cid_is_the_one_that_other_libraries_make():
    """The literal is what py-cid makes of the SHA-256 of b'hello world', codec raw, in base32."""
    assert chunk_cid(b"hello world") == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    assert parse_cid(chunk_cid(b"hello world")) == hashlib.sha256(b"hello world").digest()


@pytest.mark.parametrize("change", ["", "short", "upper", "base", "codec", "padding"])
def test_other_spellings_of_chunk_names_are_refused(change):
    cid = chunk_cid(b"abc")
    codec = b"\x01\x70\x12\x20" + hashlib.sha256(b"abc").digest()
    bad = {
        "": "",
        "short": cid[:-1],
        "upper": cid.upper(),
        "base": "z" + cid[1:],
        "codec": "b" + base64.b32encode(codec).decode().lower().rstrip("="),
        "padding": cid[:-1] + "=",
    }[change]
    with pytest.raises(ValueError, match="chunk name"):
        parse_cid(bad)


def test_shard_is_described_piece_by_piece():
    assert SHARD.size_bytes == CHUNK_SIZE_BYTES + 3
    assert SHARD.sha256 == hashlib.sha256(b"a" * CHUNK_SIZE_BYTES + b"end").hexdigest()
    assert SHARD.chunks == (chunk_cid(b"a" * CHUNK_SIZE_BYTES), chunk_cid(b"end"))
    with pytest.raises(ValueError, match="allowed are"):
        describe_shard("empty", [])
    with pytest.raises(ValueError, match="its size needs"):
        describe_shard("x", [b"a", b"b"])
    assert isinstance(SHARD, Shard)
