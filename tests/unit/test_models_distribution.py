"""The whole way of a model without a network: package, signature, refresh, download from peers, check."""

import random
from collections import deque

import pytest
from onnx import TensorProto, helper

from models.chunkfile import DigestMismatchError
from models.desk import ReleaseDesk
from models.fetch import FetchPlanner
from models.fetchevents import (
    ChunkCorrupt,
    ChunkRefused,
    ChunkStored,
    ExcludePeer,
    HoldingsLearned,
    RequestChunk,
)
from models.golden import decode_golden
from models.keys import create_key
from models.manifest import canonical_bytes, model_digest
from models.owner import OwnerRepository
from models.package import RunReport, build_package
from models.store import ChunkStore
from models.trust import TrustClient

NOW = 1_000_000_000.0


def download(manifest, store, peers):
    """Carry a plan out; a peer is a function from chunk name to bytes or None. Returns who was excluded."""
    plan = FetchPlanner(
        manifest.shards,
        held={cid for shard in manifest.shards for cid in shard.chunks if store.has(cid)},
        rng=random.Random(1),
    )
    excluded = []
    events = deque()
    for shard in manifest.shards:
        store.pin(shard)
        events.extend(HoldingsLearned(name, shard.sha256, b"\xff" * 8) for name in sorted(peers))
    while events:
        for action in plan.handle(events.popleft(), 0.0):
            match action:
                case RequestChunk(peer, cid):
                    data = peers[peer](cid)
                    try:
                        if data is not None:
                            store.put(cid, data)
                        events.append((ChunkRefused if data is None else ChunkStored)(peer, cid))
                    except DigestMismatchError:
                        events.append(ChunkCorrupt(peer, cid))
                case ExcludePeer(peer):
                    excluded.append(peer)
    assert plan.is_done
    return excluded


@pytest.fixture
def publisher(tmp_path):
    """A published model of some MiB, and who has it."""
    size = 700_000
    weights = helper.make_tensor("w", TensorProto.FLOAT, [size], [float(number % 251) for number in range(size)])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size])],
        initializer=[weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "big.onnx").write_bytes(model.SerializeToString())
    # Golden outputs need not be true here: nothing runs them.
    package = build_package(tmp_path / "big.onnx", run=lambda manifest, path, inputs: RunReport({"y": inputs["x"]}))
    store = ChunkStore(tmp_path / "publisher", 1 << 26)
    for shard in package.manifest.shards:
        content = package.files[shard.name]
        (tmp_path / "incoming").write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        store.put_file(shard, tmp_path / "incoming")
    key = create_key(tmp_path / "desk.pem")
    owner = OwnerRepository.create(tmp_path / "owner", tmp_path / "repo", "home", NOW, desk_keys=[key.public_key])
    desk = ReleaseDesk(tmp_path / "desk", key, owner.grid_id)
    owner.publish_model(canonical_bytes(package.manifest), NOW)
    desk.accept(owner.publication(), NOW)
    return package, store, desk, owner


def test_model_goes_from_publisher_to_node_past_a_liar(publisher, tmp_path):
    package, source, desk, owner = publisher
    node = TrustClient(tmp_path / "node", owner.grid_id)
    node.refresh([desk.file], NOW)
    [name] = node.deployment().models
    manifest = node.manifest(name)
    assert model_digest(manifest) == node.models()[name]
    assert sum(len(shard.chunks) for shard in manifest.shards) >= 8

    def liar(cid):
        data = source.get(cid)
        return data[:-1] + bytes([data[-1] ^ 1])

    store = ChunkStore(tmp_path / "store", 1 << 26)
    assert download(manifest, store, {"friend": source.get, "liar": liar, "empty": lambda cid: None}) == ["liar"]
    graph = store.assemble(manifest.shard(manifest.graph))
    assert graph.read_bytes() == package.files["graph.onnx"].read_bytes()
    inputs, outputs = decode_golden(store.assemble(manifest.shard(manifest.golden.shard)).read_bytes())
    assert (inputs["x"] == outputs["y"]).all()


def test_download_from_a_downloader_after_a_restart_and_rot(publisher, tmp_path):
    package, source, _, _ = publisher
    manifest = package.manifest
    first = ChunkStore(tmp_path / "first", 1 << 26)
    cids = [cid for shard in manifest.shards for cid in shard.chunks]
    for cid in cids[:4]:
        first.put(cid, source.get(cid))
    first = ChunkStore(tmp_path / "first", 1 << 26)
    asked = []
    download(manifest, first, {"a": lambda cid: asked.append(cid) or source.get(cid)})
    assert set(asked) == set(cids) - set(cids[:4])
    path = first.assemble(manifest.shard("graph.onnx"))
    path.chmod(0o600)
    path.write_bytes(b"rot" + path.read_bytes()[3:])
    second = ChunkStore(tmp_path / "second", 1 << 26)
    download(manifest, second, {"a": first.get, "b": source.get})
    assert second.assemble(manifest.shard("graph.onnx")).read_bytes() == package.files["graph.onnx"].read_bytes()
