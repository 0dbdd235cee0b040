import pytest

from gridnode.catalogue import ALL, Catalogue
from gridnode.errors import UnknownModelError
from models.manifest import ImagePreprocessing, Manifest, TensorSpec, describe_shard

SHAPES = {"large": (1, 3, 8, 8), "small": (1, 3, 4, 4), "twin": (1, 3, 8, 8), "raw": (1, 3, 8, 8)}
DIGESTS = {name: name[0] * 64 for name in SHAPES}


def make_manifest(name, *, rungs=()):
    _, _, height, width = SHAPES[name]
    return Manifest(
        name=name,
        inputs=(TensorSpec(name="images", dtype="float32", shape=SHAPES[name]),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1,)),),
        preprocessing=None if name == "raw" else ImagePreprocessing(input="images", width=width, height=height),
        peak_memory_bytes=1,
        graph="graph.onnx",
        rungs=rungs,
        shards=(describe_shard("graph.onnx", [name.encode()]),),
    )


MANIFESTS = {
    DIGESTS["large"]: make_manifest("large", rungs=("small", "twin", "raw", "gone")),
    **{DIGESTS[name]: make_manifest(name) for name in ("small", "twin", "raw")},
}
CATALOGUE = Catalogue(DIGESTS, MANIFESTS, deployed=frozenset({"large", "small", "not published yet"}))


@pytest.mark.parametrize(
    ("pictures", "stand_ins"),
    [(True, ["small", "twin"]), (False, ["twin", "raw"])],
)
def test_a_rung_stands_in_where_both_take_pictures_or_the_same_inputs(pictures, stand_ins):
    found = CATALOGUE.resolve("large", rungs=True, pictures=pictures)
    assert found.manifest.name == "large"
    assert found.digests == (DIGESTS["large"], *(DIGESTS[name] for name in stand_ins))


def test_a_name_with_its_digest_stands_for_that_one_model():
    assert CATALOGUE.resolve("large@" + "l" * 8, rungs=True, pictures=True).digests == (DIGESTS["large"],)


@pytest.mark.parametrize("name", ["nobody", "large@aaaa", ""])
def test_an_unknown_name_is_answered_with_what_is_published(name):
    with pytest.raises(UnknownModelError, match="published are: large, raw, small, twin"):
        CATALOGUE.resolve(name, rungs=True, pictures=True)


def test_a_node_runs_what_it_names_and_the_deployment_where_it_wants_all():
    assert CATALOGUE.chosen([ALL]).keys() == {DIGESTS["large"], DIGESTS["small"]}
    assert CATALOGUE.chosen([ALL, "raw"]).keys() == {DIGESTS["large"], DIGESTS["small"], DIGESTS["raw"]}
    assert CATALOGUE.chosen(["raw", "gone"]).keys() == {DIGESTS["raw"]}
    assert CATALOGUE.chosen([]) == {}
