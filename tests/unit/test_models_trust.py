import json
import os
import sys
from collections.abc import Callable

import msgspec
import pytest
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from models.desk import DESK_LIFETIME_S, NotAuthorisedError, ReleaseDesk
from models.keys import KeyFileError, create_key, key_from_text, load_key, public_text
from models.manifest import Manifest, Shard, TensorSpec, canonical_bytes, chunk_cid, model_digest
from models.metadata import (
    ExpiredStateError,
    Publication,
    SignatureError,
    WrongGridError,
    decode_publication,
    sign,
    utc,
)
from models.owner import OwnerRepository
from models.ownerkeys import ROOT_LIFETIME_S, OwnerKeyError
from models.trust import TargetMissingError, TrustClient

NOW = 1_000_000_000.0
"""September 2001: far from the clock of any machine that runs the tests, so judging by that one would show."""
DAY = 86_400.0


def manifest_bytes(name: str = "street", version: int = 1) -> bytes:
    shard = Shard(name="graph.onnx", size_bytes=3, sha256="ab" * 32, chunks=(chunk_cid(b"abc"),))
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3))
    manifest = Manifest(
        name=name,
        version=version,
        inputs=(spec,),
        outputs=(spec,),
        peak_memory_bytes=1,
        graph="graph.onnx",
        shards=(shard,),
    )
    return canonical_bytes(manifest)


class Grid:
    """An owner, a desk and as many nodes as a test wants."""

    def __init__(self, path, *, keys=1, threshold=1):
        self.path = path
        self.key = create_key(path / "desk.pem")
        self.owner = OwnerRepository.create(
            path / "owner", path / "repo", "home", NOW, desk_keys=[self.key.public_key], keys=keys, threshold=threshold
        )
        self.desk = ReleaseDesk(path / "desk", self.key, self.owner.grid_id)
        self.desk.accept(self.owner.publication(), NOW)

    def node(self, name="node"):
        client = TrustClient(self.path / name, self.owner.grid_id)
        client.bootstrap(self.owner.root_bytes)
        return client

    def publish(self, name="street", version=1, now_s=NOW):
        digest = self.owner.publish_model(manifest_bytes(name, version), now_s)
        self.desk.accept(self.owner.publication(), now_s)
        return digest


@pytest.fixture
def grid(tmp_path):
    return Grid(tmp_path)


def snapshot_of(source):
    """All metadata that a source serves now, to be replayed later."""
    names = ["metadata/1.root.json", "metadata/timestamp.json", "metadata/snapshot.json", "metadata/targets.json"]
    return {name: source(name) for name in names}


def only(files: dict, fallback: Callable | None = None):
    """A source that serves some files itself and the others from another source."""
    return lambda path: files[path] if path in files else (fallback(path) if fallback else None)


def forge(data: bytes, kind, change, *signers) -> bytes:
    """Change the signed part of metadata; sign it with these keys, or leave the old signatures on it."""
    metadata = Metadata[kind].from_bytes(data)
    change(metadata.signed)
    return sign(metadata.signed, signers) if signers else metadata.to_bytes()


# ---------------------------------------------------------------- the way it should go


def test_published_models_reach_a_node_and_from_it_another(grid):
    digest = grid.publish()
    first, second = grid.node("first"), grid.node("second")
    changes = first.refresh([grid.desk.file], NOW + 60)
    assert changes.advanced
    assert changes.changed == ("deployment.json", "models/street.json")
    assert not changes.faults
    assert not changes.missing
    assert second.refresh([first.file], NOW + 60).advanced
    assert second.models() == {"street": digest}
    assert second.deployment().models == ("street",)
    assert model_digest(second.manifest("street")) == digest
    assert second.status(NOW + 60).grid_name == "home"
    assert not second.status(NOW + 60).expired
    assert second.signed_time_s == NOW


def test_grid_id_is_the_hash_of_the_first_root_and_survives_rotation(grid):
    node = grid.node()
    assert node.refresh([grid.desk.file], NOW).advanced
    grid.owner.rotate_keys(NOW, owner_keys=[create_key(grid.path / "owner" / "owner-2.pem")])
    grid.desk.accept(grid.owner.publication(), NOW)
    assert node.refresh([grid.desk.file], NOW).advanced
    assert node.versions()[0] == 2
    assert TrustClient(grid.path / "new", grid.owner.grid_id).refresh([node.file], NOW).advanced


def test_node_without_root_gets_it_from_any_peer_by_the_grid_id(grid):
    node = TrustClient(grid.path / "node", grid.owner.grid_id)
    assert node.versions() == (0, 0)
    assert node.status(NOW).expired
    assert node.refresh([lambda path: None, grid.desk.file], NOW).advanced
    assert node.versions() != (0, 0)


def test_refresh_without_news_changes_nothing(grid):
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    before = sorted(os.listdir(grid.path / "node"))
    changes = node.refresh([grid.desk.file, grid.desk.file], NOW + 1)
    assert not changes.advanced
    assert changes.changed == ()
    assert sorted(os.listdir(grid.path / "node")) == before


def test_a_source_with_the_very_same_state_costs_two_questions_and_no_tuf_client(grid, monkeypatch):
    grid.publish()
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    monkeypatch.setitem(sys.modules, "models.tufclient", None)  # an import fails
    asked = []

    def peer(path):
        asked.append(path)
        return grid.desk.file(path)

    changes = node.refresh([peer], NOW + 60)
    assert (changes.advanced, changes.faults, changes.missing) == (False, (), ())
    assert asked == ["metadata/2.root.json", "metadata/timestamp.json"]
    with pytest.raises(ImportError):
        node.refresh([peer], NOW + 15 * DAY)  # the state is over: tuf says so, and of whom
    grid.owner.renew(NOW + 120)
    grid.desk.accept(grid.owner.publication(), NOW + 120)
    with pytest.raises(ImportError):
        node.refresh([peer], NOW + 120)
    monkeypatch.delitem(sys.modules, "models.tufclient")
    assert node.refresh([peer], NOW + 120).advanced


def test_offline_start_serves_what_is_on_disk(grid):
    digest = grid.publish()
    grid.node().refresh([grid.desk.file], NOW)
    again = TrustClient(grid.path / "node", grid.owner.grid_id)
    assert again.models() == {"street": digest}
    assert not again.status(NOW).expired
    assert again.manifest("street").name == "street"
    assert again.file("targets/models/street.json") == manifest_bytes()
    assert again.file("metadata/1.root.json") == grid.owner.root_bytes
    assert again.refresh([lambda path: None], NOW).faults[0].kind == "withheld"


def test_removed_and_changed_models_are_named(grid):
    grid.publish("street")
    grid.publish("people")
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    grid.owner.remove_model("street", NOW + 2)
    digest = grid.publish("people", version=2, now_s=NOW + 3)
    changes = node.refresh([grid.desk.file], NOW + 4)
    assert changes.removed == ("models/street.json",)
    assert changes.changed == ("deployment.json", "models/people.json")
    assert node.models() == {"people": digest}
    assert node.deployment().models == ("people",)
    assert len(os.listdir(grid.path / "node" / "targets")) == 2


def test_deployment_version_only_grows(grid):
    grid.publish("street")
    versions = [grid.owner.deployment().version]
    grid.owner.deploy([], NOW)
    versions.append(grid.owner.deployment().version)
    grid.owner.deploy(["street"], NOW)
    versions.append(grid.owner.deployment().version)
    assert versions == [1, 2, 3]
    with pytest.raises(KeyError):
        grid.owner.deploy(["nobody"], NOW)


def test_other_targets_are_carried(grid):
    grid.owner.set_target("ca.pem", b"-----BEGIN CERTIFICATE-----", NOW)
    grid.desk.accept(grid.owner.publication(), NOW)
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    assert node.target("ca.pem") == b"-----BEGIN CERTIFICATE-----"
    with pytest.raises(TargetMissingError):
        node.target("revocations.bin")


# ---------------------------------------------------------------- attacks of a peer


def test_rollback_of_any_role_is_refused_also_after_a_restart(grid):
    old = snapshot_of(grid.desk.file)
    digest = grid.publish(now_s=NOW + 10)
    node = grid.node()
    node.refresh([grid.desk.file], NOW + 20)
    for client in (node, TrustClient(grid.path / "node", grid.owner.grid_id)):
        changes = client.refresh([only(old)], NOW + 20)
        assert not changes.advanced
        assert changes.faults[0].kind == "invalid"
        assert client.models() == {"street": digest}


def test_rollback_of_one_role_under_newer_others_is_refused(grid):
    """No rollback protection but for the root: GHSA-66x3-6cw3-v5gj of go-tuf."""
    old = snapshot_of(grid.desk.file)
    grid.publish(now_s=NOW + 10)
    node = grid.node()
    for role in ("snapshot", "targets"):
        mixed = only({f"metadata/{role}.json": old[f"metadata/{role}.json"]}, grid.desk.file)
        changes = node.refresh([mixed], NOW + 20)
        assert not changes.advanced
        assert changes.faults[0].kind == "invalid"


def test_snapshot_that_names_older_targets_is_refused_though_its_version_is_newer(grid):
    old = snapshot_of(grid.desk.file)
    grid.publish(now_s=NOW + 10)
    node = grid.node()
    node.refresh([grid.desk.file], NOW + 20)
    snapshot = forge(old["metadata/snapshot.json"], Snapshot, lambda s: setattr(s, "version", int(NOW) + 50), grid.key)

    def point(timestamp):
        timestamp.version = int(NOW) + 50
        timestamp.snapshot_meta = MetaFile.from_data(int(NOW) + 50, snapshot, ["sha256"])

    timestamp = forge(old["metadata/timestamp.json"], Timestamp, point, grid.key)
    files = {**old, "metadata/snapshot.json": snapshot, "metadata/timestamp.json": timestamp}
    assert node.refresh([only(files)], NOW + 20).faults[0].kind == "invalid"
    assert "street" in node.models()


def test_timestamp_of_a_failed_refresh_is_not_kept(grid):
    """CVE-2025-2888 of tough: the timestamp was stored before what it names had been checked."""
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    before = node.versions()
    grid.publish(now_s=NOW + 10)
    for hidden in ("snapshot", "targets"):
        changes = node.refresh([only({f"metadata/{hidden}.json": None}, grid.desk.file)], NOW + 20)
        assert changes.faults[0].kind == "withheld"
        assert node.versions() == before
        assert node.file("metadata/timestamp.json") != grid.desk.file("metadata/timestamp.json")
    assert node.refresh([grid.desk.file], NOW + 20).advanced


def test_frozen_source_runs_into_expiry_and_another_source_helps(grid):
    frozen = snapshot_of(grid.desk.file)
    node = grid.node()
    node.refresh([only(frozen)], NOW)
    late = NOW + DESK_LIFETIME_S + 1
    changes = node.refresh([only(frozen)], late)
    assert not changes.advanced
    assert changes.faults[0].kind == "expired"
    assert node.status(late).expired
    grid.desk.refresh(late)
    changes = node.refresh([only(frozen), grid.desk.file], late)
    assert changes.advanced
    assert not node.status(late).expired


def test_expired_state_stays_in_force_and_is_alarmed(grid):
    digest = grid.publish()
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    much_later = NOW + 10 * 365 * DAY
    again = TrustClient(grid.path / "node", grid.owner.grid_id)
    assert again.status(much_later).expired
    assert again.models() == {"street": digest}
    assert again.file("metadata/timestamp.json") is not None


def test_time_is_grid_time_and_not_the_machines(grid):
    node = grid.node()
    assert node.refresh([grid.desk.file], NOW + DESK_LIFETIME_S - 1).advanced
    other = grid.node("other")
    assert other.refresh([grid.desk.file], NOW + DESK_LIFETIME_S).faults[0].kind == "expired"


def test_wrong_hash_and_wrong_length_of_a_target_are_refused_and_another_source_is_asked(grid):
    grid.publish()
    good = grid.desk.file("targets/models/street.json")
    for bad in (good[:-1], good + b" ", bytes([good[0] ^ 1]) + good[1:], b""):
        node = grid.node(f"node{len(bad)}{bad[:1]!r}".replace("'", ""))
        changes = node.refresh([only({"targets/models/street.json": bad}, grid.desk.file)], NOW)
        assert changes.missing == ("models/street.json",)
        with pytest.raises(TargetMissingError):
            node.manifest("street")
        assert node.target("models/street.json", [lambda path: None, grid.desk.file]) == good


def test_every_flipped_byte_of_metadata_is_refused(grid):
    grid.publish()
    for name, data in snapshot_of(grid.desk.file).items():
        for place in range(0, len(data), 131):
            bad = bytearray(data)
            bad[place] ^= 0x01
            node = TrustClient(grid.path / f"{name.replace('/', '-')}-{place}", grid.owner.grid_id)
            changes = node.refresh([only({name: bytes(bad)}, grid.desk.file)], NOW)
            assert len(changes.faults) == 1, (name, place)
            assert node.models() == {}


def test_metadata_of_another_grid_is_refused(grid, tmp_path):
    (tmp_path / "foreign").mkdir()
    foreign = Grid(tmp_path / "foreign")
    node = grid.node()
    with pytest.raises(WrongGridError):
        TrustClient(grid.path / "other", grid.owner.grid_id).bootstrap(foreign.owner.root_bytes)
    changes = node.refresh([foreign.desk.file], NOW)
    assert changes.faults[0].kind == "invalid"
    fresh = TrustClient(grid.path / "fresh", grid.owner.grid_id)
    assert fresh.refresh([foreign.desk.file], NOW).faults[0].kind == "invalid"
    assert fresh.versions() == (0, 0)
    with pytest.raises(WrongGridError):
        TrustClient(tmp_path / "foreign" / "desk", grid.owner.grid_id)


def test_too_few_signatures_are_refused(tmp_path):
    grid = Grid(tmp_path, keys=3, threshold=2)
    grid.publish()
    thief = load_key(tmp_path / "owner" / "owner-1.pem")

    def claim(targets):
        targets.version = 9

    targets = forge(grid.desk.file("metadata/targets.json"), Targets, claim, thief)
    state = decode_publication(grid.owner.publication())
    forged = msgspec.msgpack.encode(Publication(roots=state.roots, targets=targets, files=state.files))
    with pytest.raises(SignatureError, match="targets version 9"):
        grid.desk.accept(forged, NOW)
    # A thief of the desk's key too cannot put it past a node.
    snapshot = sign(
        Snapshot(
            version=2**40, expires=utc(NOW + DAY), meta={"targets.json": MetaFile.from_data(9, targets, ["sha256"])}
        ),
        [grid.key],
    )
    timestamp = sign(
        Timestamp(version=2**40, expires=utc(NOW + DAY), snapshot_meta=MetaFile.from_data(2**40, snapshot, ["sha256"])),
        [grid.key],
    )
    files = {"timestamp": timestamp, "snapshot": snapshot, "targets": targets}
    node = grid.node()
    evil = only({f"metadata/{role}.json": data for role, data in files.items()}, grid.desk.file)
    assert node.refresh([evil], NOW).faults[0].kind == "invalid"
    assert node.refresh([grid.desk.file], NOW).advanced


def test_root_needs_old_and_new_thresholds(tmp_path):
    grid = Grid(tmp_path, keys=3, threshold=2)
    node = grid.node()
    thief = load_key(tmp_path / "owner" / "owner-1.pem")
    own = create_key(tmp_path / "mine.pem")

    def take_over(root):
        root.version = 2
        for role in root.roles.values():
            root.add_key(own.public_key, "root")
            role.keyids, role.threshold = [own.public_key.keyid], 1
        root.keys = {own.public_key.keyid: own.public_key}

    root = forge(grid.owner.root_bytes, Root, take_over, thief, own)
    changes = node.refresh([only({"metadata/2.root.json": root}, grid.desk.file)], NOW)
    assert changes.faults[0].kind == "invalid"
    assert node.versions()[0] == 1


@pytest.mark.parametrize("name", ["2.root", "timestamp", "snapshot", "targets"])
def test_endless_data_is_refused(grid, name):
    node = grid.node()
    changes = node.refresh([only({f"metadata/{name}.json": b"{" * 2_000_000}, grid.desk.file)], NOW)
    assert changes.faults[0].kind == "invalid"
    assert node.refresh([grid.desk.file], NOW).advanced


def test_deeply_nested_json_is_refused(grid):
    node = grid.node()
    changes = node.refresh([only({"metadata/timestamp.json": b"[" * 4000 + b"]" * 4000}, grid.desk.file)], NOW)
    assert changes.faults[0].kind == "invalid"


@pytest.mark.parametrize(
    "garbage", [b"", b"null", b"{}", b"\xff\xfe", b'{"signed": 1, "signatures": []}', b'{"signatures":{},"signed":[]}']
)
def test_garbage_is_refused(grid, garbage):
    node = grid.node()
    for name in ("2.root", "timestamp", "snapshot", "targets"):
        changes = node.refresh([only({f"metadata/{name}.json": garbage}, grid.desk.file)], NOW)
        assert [fault.kind for fault in changes.faults] == ["invalid"], name


def test_odd_values_in_signed_metadata_are_refused_not_crashed_on(grid):
    """Only a grid key could sign such; still it must not end a node."""
    node = grid.node()
    for field, value in [("version", "7"), ("version", -1), ("expires", "soon"), ("meta", []), ("spec_version", "2.0")]:
        document = json.loads(grid.desk.file("metadata/timestamp.json"))
        document["signed"][field] = value
        files = {"metadata/timestamp.json": json.dumps(document).encode()}
        assert node.refresh([only(files, grid.desk.file)], NOW).faults[0].kind == "invalid"


def test_fast_forward_by_a_stolen_desk_key_is_healed_by_dropping_the_key(grid):
    node = grid.node()
    node.refresh([grid.desk.file], NOW)

    def far(timestamp):
        timestamp.version = 2**50

    forged = forge(grid.desk.file("metadata/timestamp.json"), Timestamp, far, grid.key)
    assert node.refresh([only({"metadata/timestamp.json": forged}, grid.desk.file)], NOW).advanced
    assert node.versions()[1] == 2**50
    fresh = create_key(grid.path / "desk2.pem")
    grid.owner.rotate_keys(NOW + 5, desk_keys=[fresh.public_key])
    digest = grid.owner.publish_model(manifest_bytes(), NOW + 5)
    desk = ReleaseDesk(grid.path / "desk2", fresh, grid.owner.grid_id)
    desk.accept(grid.owner.publication(), NOW + 5)
    assert node.refresh([desk.file], NOW + 6).advanced
    assert node.versions() == (2, int(NOW) + 5)
    assert node.models() == {"street": digest}


def test_new_root_sticks_though_the_rest_is_withheld_and_models_stay(grid):
    digest = grid.publish()
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    stale = snapshot_of(grid.desk.file)
    fresh = create_key(grid.path / "desk2.pem")
    grid.owner.rotate_keys(NOW + 5, desk_keys=[fresh.public_key])
    root = {"metadata/2.root.json": grid.owner.view.state.roots[1]}
    changes = node.refresh([only({**stale, **root})], NOW + 5)
    assert changes.faults[0].kind == "invalid"
    assert node.versions()[0] == 2
    assert node.models() == {"street": digest}
    assert node.status(NOW + 5).expired  # nothing new until a desk of the new root has signed
    again = TrustClient(grid.path / "node", grid.owner.grid_id)
    assert again.versions()[0] == 2
    assert again.refresh([only(stale)], NOW + 5).faults[0].kind == "invalid"


def test_paths_outside_of_the_state_are_not_served(grid):
    grid.publish()
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    for path in (
        "metadata/../../owner/owner-1.pem",
        "targets/../state-000000000001.bin",
        "targets//etc/passwd",
        "metadata/0.root.json",
        "metadata/99.root.json",
        "metadata/٣.root.json",
        "metadata/-1.root.json",
        "metadata",
        "",
    ):
        assert node.file(path) is None


# ---------------------------------------------------------------- disk faults


def test_any_damaged_state_file_is_found_and_healed(grid):
    digest = grid.publish()
    folder = grid.path / "node"
    grid.node().refresh([grid.desk.file], NOW)
    newest = max(folder.glob("state-*.bin"))
    good = newest.read_bytes()
    for place in range(0, len(good), 307):
        newest.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        node = TrustClient(folder, grid.owner.grid_id)
        assert node.versions() == (1, 0)  # the state before: bootstrapped, nothing else
        assert node.status(NOW).damaged == (newest.name,)
    for cut in (0, 1, 40, len(good) - 1):
        newest.write_bytes(good[:cut])
        assert TrustClient(folder, grid.owner.grid_id).versions() == (1, 0)
    node = TrustClient(folder, grid.owner.grid_id)
    assert node.refresh([grid.desk.file], NOW).advanced
    assert TrustClient(folder, grid.owner.grid_id).models() == {"street": digest}


def test_node_with_every_state_file_lost_starts_again_from_peers(grid):
    grid.publish()
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    for path in (grid.path / "node").glob("state-*.bin"):
        path.write_bytes(b"\0" * 100)
    again = TrustClient(grid.path / "node", grid.owner.grid_id)
    assert again.versions() == (0, 0)
    assert again.refresh([grid.desk.file], NOW).advanced
    assert "street" in again.models()


def test_damaged_target_file_is_fetched_again(grid):
    grid.publish()
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    for path in (grid.path / "node" / "targets").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"X")
    assert node.file("targets/models/street.json") is None
    assert len(node.status(NOW).damaged) == 1
    assert node.refresh([grid.desk.file], NOW).missing == ()
    assert node.manifest("street").name == "street"


def test_leftovers_of_a_killed_process_are_removed(grid):
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    (grid.path / "node" / ".state-000000000009.bin.abcd.partial").write_bytes(b"half")
    (grid.path / "node" / "targets" / ".abcd.abcd.partial").write_bytes(b"half")
    (grid.path / "node" / ".refresh-abcd" / "root_history").mkdir(parents=True)
    (grid.path / "node" / ".refresh-abcd" / "root_history" / "1.root.json").write_bytes(b"half")
    TrustClient(grid.path / "node", grid.owner.grid_id)
    left = [path.name for path in (grid.path / "node").rglob(".*")]
    assert left == []


# ---------------------------------------------------------------- owner and desk


def test_keys_and_folders_are_private(grid):
    for path in (grid.path / "owner" / "owner-1.pem", grid.path / "desk.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
    for folder in ("owner", "repo", "desk"):
        assert (grid.path / folder).stat().st_mode & 0o777 == 0o700
    os.chmod(grid.path / "desk.pem", 0o644)
    with pytest.raises(KeyFileError, match="0644"):
        load_key(grid.path / "desk.pem")
    with pytest.raises(KeyFileError, match="exists"):
        create_key(grid.path / "desk.pem")


def test_public_keys_travel_as_text(grid):
    assert key_from_text(public_text(grid.key.public_key)) == grid.key.public_key
    for text in ("", "zz", "ab" * 31):
        with pytest.raises(KeyFileError):
            key_from_text(text)


def test_owner_with_too_few_keys_is_told_and_signs_when_they_are_back(tmp_path):
    grid = Grid(tmp_path, keys=3, threshold=2)
    away = tmp_path / "stick"
    away.mkdir()
    for number in (2, 3):
        (tmp_path / "owner" / f"owner-{number}.pem").rename(away / f"owner-{number}.pem")
    alone = OwnerRepository(tmp_path / "owner", tmp_path / "repo")
    with pytest.raises(OwnerKeyError, match="1 of the owner's keys are at hand, 2 of 3 must sign"):
        alone.publish_model(manifest_bytes(), NOW)
    together = OwnerRepository([tmp_path / "owner", away], tmp_path / "repo")
    together.publish_model(manifest_bytes(), NOW)
    assert grid.desk.accept(together.publication(), NOW)


def test_owner_with_an_old_copy_is_refused_until_it_pulls(grid):
    node = grid.node()
    grid.publish("street", now_s=NOW + 1)
    node.refresh([grid.desk.file], NOW + 2)
    old = OwnerRepository(grid.path / "owner", grid.path / "empty")
    old.set_target("ca.pem", b"ca", NOW + 3)
    with pytest.raises(SignatureError, match="pull"):
        grid.desk.accept(old.publication(), NOW + 3)
    again = OwnerRepository(grid.path / "owner", grid.path / "empty2")
    assert again.pull(node.file)
    assert not again.pull(node.file)
    assert "street" in again.models()
    again.set_target("ca.pem", b"ca", NOW + 3)
    assert grid.desk.accept(again.publication(), NOW + 3)
    assert not grid.desk.accept(again.publication(), NOW + 3)


def test_desk_signs_anew_at_two_thirds_of_the_life(grid):
    assert not grid.desk.is_due(NOW + DESK_LIFETIME_S * 0.66)
    assert not grid.desk.refresh(NOW + DESK_LIFETIME_S * 0.66)
    assert grid.desk.refresh(NOW + DESK_LIFETIME_S * 0.67)
    assert grid.desk.next_refresh_s() == pytest.approx(NOW + DESK_LIFETIME_S * (0.67 + 2 / 3), abs=2)
    node = grid.node()
    node.refresh([grid.desk.file], NOW + DESK_LIFETIME_S)
    assert not node.status(NOW + DESK_LIFETIME_S).expired


def test_desk_starts_again_from_its_disk_and_from_peers_alone(grid):
    grid.publish()
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    assert not ReleaseDesk(grid.path / "desk", grid.key, grid.owner.grid_id).refresh(NOW)
    lost = ReleaseDesk(grid.path / "lost", grid.key, grid.owner.grid_id)
    assert not lost.pull(lambda path: None)
    assert lost.pull(node.file)
    assert not lost.refresh(NOW + 1)  # the peers' signature is its own, and young
    assert lost.refresh(NOW + DESK_LIFETIME_S)
    assert node.refresh([lost.file], NOW + DESK_LIFETIME_S).advanced


def test_desk_refuses_expired_foreign_and_torn_publications(grid, tmp_path):
    sent = decode_publication(grid.owner.publication())
    with pytest.raises(ExpiredStateError):
        grid.desk.accept(grid.owner.publication(), NOW + ROOT_LIFETIME_S)
    (tmp_path / "foreign").mkdir()
    with pytest.raises(WrongGridError):
        grid.desk.accept(Grid(tmp_path / "foreign").owner.publication(), NOW)
    grid.owner.set_target("ca.pem", b"ca", NOW)
    torn = decode_publication(grid.owner.publication())
    for files in ({}, {"ca.pem": b"cb"}):
        with pytest.raises(SignatureError, match=r"ca\.pem"):
            grid.desk.accept(msgspec.msgpack.encode(msgspec.structs.replace(torn, files=files)), NOW)
    for data in (b"", b"\x91" * 3000, msgspec.msgpack.encode(sent)[:-1]):
        with pytest.raises(SignatureError):
            grid.desk.accept(data, NOW)


def test_desk_that_is_not_in_the_root_does_not_sign(grid):
    stranger = ReleaseDesk(grid.path / "stranger", create_key(grid.path / "s.pem"), grid.owner.grid_id)
    stranger.pull(grid.desk.file)
    with pytest.raises(NotAuthorisedError):
        stranger.refresh(NOW + DESK_LIFETIME_S)


def test_second_desk_added_by_the_owner_carries_on_when_the_first_is_gone(grid):
    grid.publish()
    second_key = create_key(grid.path / "second.pem")
    grid.owner.rotate_keys(NOW + 1, desk_keys=[grid.key.public_key, second_key.public_key])
    grid.desk.accept(grid.owner.publication(), NOW + 1)
    node = grid.node()
    node.refresh([grid.desk.file], NOW + 2)
    second = ReleaseDesk(grid.path / "second", second_key, grid.owner.grid_id)
    assert second.pull(node.file)
    later = NOW + DESK_LIFETIME_S
    assert second.refresh(later)
    assert node.refresh([second.file], later).advanced
    assert not node.status(later).expired


def test_two_desks_that_signed_at_once_converge(grid):
    second_key = create_key(grid.path / "second.pem")
    grid.owner.rotate_keys(NOW + 1, desk_keys=[grid.key.public_key, second_key.public_key])
    grid.desk.accept(grid.owner.publication(), NOW + 1)
    second = ReleaseDesk(grid.path / "second", second_key, grid.owner.grid_id)
    second.pull(grid.desk.file)
    later = NOW + DESK_LIFETIME_S
    grid.publish(now_s=later)  # reaches the first desk only
    assert second.refresh(later)  # cut off: signs the old targets at the same moment
    node = grid.node()
    node.refresh([second.file], later)
    assert node.models() == {}
    assert second.pull(grid.desk.file)
    assert second.refresh(later + 60)
    assert node.refresh([second.file], later + 60).advanced
    assert "street" in node.models()


@pytest.mark.parametrize("path", ["metadata/targets.json", "metadata/timestamp.json", "metadata/snapshot.json"])
def test_what_an_owner_publishes_while_a_peer_is_asked_is_not_lost(grid, path):
    """A second desk is behind a peer, and asks it while the owner's publication comes in by another thread."""
    key = create_key(grid.path / "second.pem")
    grid.owner.rotate_keys(NOW, desk_keys=[grid.key.public_key, key.public_key])
    grid.desk.accept(grid.owner.publication(), NOW)
    second = ReleaseDesk(grid.path / "second", key, grid.owner.grid_id)
    second.pull(grid.desk.file)
    grid.desk.refresh(NOW + 10 * DAY)
    versions = second.view.root.version, second.view.targets.version

    def source(asked):
        answer = grid.desk.file(asked)
        if asked == path and second.view.root.version == versions[0]:
            grid.owner.renew(NOW + 10 * DAY)
            assert second.accept(grid.owner.publication(), NOW + 10 * DAY)
        return answer

    second.pull(source)
    assert (second.view.root.version, second.view.targets.version) > versions
    assert ReleaseDesk(grid.path / "second", key, grid.owner.grid_id).view.root.version == versions[0] + 1


def test_renewal_gives_root_and_targets_another_year(grid):
    late = NOW + ROOT_LIFETIME_S * 0.9
    grid.owner.renew(late)
    grid.desk.accept(grid.owner.publication(), late)
    node = grid.node()
    assert node.refresh([grid.desk.file], late).advanced
    grid.desk.refresh(NOW + ROOT_LIFETIME_S + DAY)
    node.refresh([grid.desk.file], NOW + ROOT_LIFETIME_S + DAY)
    assert not node.status(NOW + ROOT_LIFETIME_S + DAY).expired


def test_wrong_calls_are_refused(grid):
    for path in ("../x", "/x", "a//b", "a/../b", ".hidden", "", "a" * 201, "a b"):
        with pytest.raises(ValueError, match="target path"):
            grid.owner.set_target(path, b"x", NOW)
    with pytest.raises(ValueError, match="bytes"):
        grid.owner.set_target("x", b"x" * (2**20 + 1), NOW)
    with pytest.raises(ValueError, match="makes no sense"):
        grid.owner.rotate_keys(NOW, threshold=2)
    with pytest.raises(ValueError, match="key of its own"):
        grid.owner.rotate_keys(NOW, desk_keys=[load_key(grid.path / "owner" / "owner-1.pem").public_key])
    with pytest.raises(KeyError):
        grid.owner.remove_model("nobody", NOW)


def test_desk_and_owner_refuse_a_root_that_the_old_or_the_new_keys_did_not_sign(grid):
    own = create_key(grid.path / "mine.pem")
    owner = load_key(grid.path / "owner" / "owner-1.pem")

    def take_over(root):
        root.version = 2
        for role in root.roles.values():
            role.keyids = [own.public_key.keyid]
        root.keys = {own.public_key.keyid: own.public_key}

    sent = decode_publication(grid.owner.publication())
    targets = forge(sent.targets, Targets, lambda t: setattr(t, "version", 9), own)
    for signer in (own, owner):
        root = forge(grid.owner.root_bytes, Root, take_over, signer)
        evil = msgspec.structs.replace(sent, roots=(*sent.roots, root), targets=targets)
        with pytest.raises(SignatureError, match="root version 2"):
            grid.desk.accept(msgspec.msgpack.encode(evil), NOW)
        source = only({"metadata/2.root.json": root, "metadata/targets.json": targets})
        with pytest.raises(SignatureError, match="root version 2"):
            grid.owner.pull(source)
        with pytest.raises(SignatureError, match="root version 2"):
            grid.desk.pull(source)
    assert grid.owner.view.root.version == 1


def test_desk_keeps_its_state_when_a_publication_is_older_or_of_another_branch(grid):
    before = grid.owner.publication()
    grid.owner.rotate_keys(NOW + 1)
    grid.desk.accept(grid.owner.publication(), NOW + 1)
    with pytest.raises(SignatureError, match="root 2 is held, root 1 was sent"):
        grid.desk.accept(before, NOW + 2)
    other = OwnerRepository(grid.path / "owner", grid.path / "empty")
    other.set_target("ca.pem", b"ca", NOW + 2)
    other.rotate_keys(NOW + 2)
    with pytest.raises(SignatureError, match="roots differ"):
        grid.desk.accept(other.publication(), NOW + 3)


def test_desk_does_not_adopt_signatures_that_name_targets_it_cannot_have(grid):
    """A stolen desk key cannot make another desk sign old targets over newer ones."""

    def far(snapshot):
        snapshot.version = int(NOW) + 50
        snapshot.meta["targets.json"].version = 99

    snapshot = forge(grid.desk.file("metadata/snapshot.json"), Snapshot, far, grid.key)

    def point(timestamp):
        timestamp.version = int(NOW) + 50
        timestamp.snapshot_meta = MetaFile.from_data(int(NOW) + 50, snapshot, ["sha256"])

    timestamp = forge(grid.desk.file("metadata/timestamp.json"), Timestamp, point, grid.key)
    evil = only({"metadata/timestamp.json": timestamp, "metadata/snapshot.json": snapshot}, grid.desk.file)
    assert not grid.desk.pull(evil)


class Cancelled(BaseException):
    """Stands for trio's, which a fetch may raise."""


@pytest.mark.parametrize("name", ["1.root", "2.root", "timestamp", "snapshot", "targets"])
def test_cancelled_refresh_leaves_everything_as_it_was(grid, name):
    node = TrustClient(grid.path / "node", grid.owner.grid_id)
    if name != "1.root":
        node.refresh([grid.desk.file], NOW)
        grid.publish(now_s=NOW + 1)
    before, files = node.versions(), sorted(os.listdir(grid.path / "node"))

    def cancelled(path):
        if path == f"metadata/{name}.json":
            raise Cancelled
        return grid.desk.file(path)

    with pytest.raises(Cancelled):
        node.refresh([cancelled], NOW + 2)
    assert (node.versions(), sorted(os.listdir(grid.path / "node"))) == (before, files)
    assert node.refresh([grid.desk.file], NOW + 2).advanced


def test_broken_connections_count_as_withheld(grid):
    node = grid.node()

    def broken(path):
        raise ConnectionResetError

    assert node.refresh([broken, grid.desk.file], NOW).faults[0].kind == "withheld"
    assert node.versions()[1] > 0


def test_metadata_respelled_on_the_way_do_not_keep_the_owner_from_publishing(grid):
    """Anyone may add spaces to signed JSON; a desk that took such from a peer must know its content again."""
    grid.owner.rotate_keys(NOW + 1)
    state = grid.owner.view.state
    spaced = {"metadata/2.root.json": state.roots[1] + b" ", "metadata/targets.json": b" " + state.targets}
    assert grid.desk.pull(only(spaced, grid.desk.file))
    assert grid.desk.file("metadata/2.root.json").endswith(b" ")
    grid.desk.accept(grid.owner.publication(), NOW + 2)
    grid.publish(now_s=NOW + 3)
    node = grid.node()
    node.refresh([grid.desk.file], NOW + 3)
    assert "street" in node.models()


def test_node_that_was_away_follows_many_rotations_at_once(grid):
    node = grid.node()
    node.refresh([grid.desk.file], NOW)
    for number in range(2, 7):
        key = create_key(grid.path / "owner" / f"owner-{number}.pem")
        grid.owner.rotate_keys(NOW + number, owner_keys=[key])
    grid.desk.accept(grid.owner.publication(), NOW + 10)
    assert node.refresh([grid.desk.file], NOW + 10).advanced
    assert node.versions()[0] == 6
    # Root 4 alone, without those between, leads nowhere.
    late = grid.node("late")
    gap = only({"metadata/3.root.json": None}, grid.desk.file)
    assert late.refresh([gap], NOW + 10).faults
    assert late.versions()[0] == 2
    assert late.refresh([grid.desk.file], NOW + 10).advanced
