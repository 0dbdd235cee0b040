import contextlib

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from models.manifest import (
    DTYPES,
    Manifest,
    ManifestError,
    TensorSpec,
    canonical_bytes,
    check_name,
    chunk_cid,
    describe_shard,
    model_digest,
    parse_cid,
    parse_manifest,
)

SHARD = describe_shard("graph.onnx", [b"abc"])
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
specs = st.builds(
    TensorSpec,
    name=st.text(max_size=20),
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.one_of(st.just(-1), st.integers(1, 10_000)), max_size=8).map(tuple),
)
manifests = st.builds(
    Manifest,
    name=names,
    version=st.integers(1, 10**6),
    description=st.text(max_size=50),
    inputs=st.lists(specs, min_size=1, max_size=3).map(tuple),
    outputs=st.lists(specs, min_size=1, max_size=3).map(tuple),
    peak_memory_bytes=st.integers(0, 2**40),
    rungs=st.lists(names, max_size=3).map(tuple),
    graph=st.just("graph.onnx"),
    shards=st.just((SHARD,)),
)


@given(manifests)
def test_manifest_round_trip_keeps_value_and_bytes(manifest):
    data = canonical_bytes(manifest)
    assert parse_manifest(data) == manifest
    assert canonical_bytes(parse_manifest(data)) == data


@given(manifests, manifests)
def test_equal_digests_mean_equal_manifests(first, second):
    assert (model_digest(first) == model_digest(second)) == (first == second)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_manifest_or_one_kind_of_error(data):
    with contextlib.suppress(ManifestError):
        parse_manifest(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(manifests, st.sampled_from(sorted(Manifest.__struct_fields__)), json_values)
def test_any_value_in_any_field_gives_a_manifest_or_one_kind_of_error(manifest, field, value):
    document = msgspec.json.decode(canonical_bytes(manifest)) | {field: value}
    with contextlib.suppress(ManifestError):
        parse_manifest(msgspec.json.encode(document, order="deterministic"))


@given(st.text(max_size=80))
def test_names_that_pass_are_single_harmless_file_names(name):
    try:
        check_name(name, what="name")
    except ValueError:
        return
    assert "/" not in name
    assert not name.startswith(".")
    assert name.isascii()
    assert name.isprintable()
    assert name


@given(st.binary(max_size=100))
def test_chunk_names_round_trip(data):
    cid = chunk_cid(data)
    assert len(cid) == 59
    assert len(parse_cid(cid)) == 32


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567=AZ/.", max_size=64))
def test_any_text_is_a_chunk_name_or_refused(text):
    try:
        digest = parse_cid(text)
    except ValueError:
        return
    assert len(digest) == 32
