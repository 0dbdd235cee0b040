"""Signing and handing over, without running a model: what is published, in which version, and where it is left."""

import msgspec
import pytest

from gridnode.errors import GridError, UnknownModelError
from gridnode.gridsetup import create_grid
from gridnode.modelcheck import read_manifest, verify
from gridnode.publish import Built, PublishError, publish, withdraw
from gridnode.statedir import StateDirectory
from gridnode.zoo import zoo_names
from models.desk import ReleaseDesk
from models.keys import load_key
from models.metadata import decode_publication
from models.package import build_package
from models.profile import Profile
from models.store import ChunkStore
from models.trust import TrustClient
from models.zoo.packages import ZOO

NOW_S = 1.8e9
PROFILE = Profile(mean_s=0.01, p95_s=0.02, load_s=0.5, memory_bytes=1, runs=3, providers=("CPUExecutionProvider",))


@pytest.fixture
def state(tmp_path):
    state = StateDirectory(tmp_path / "node")
    create_grid(state, tmp_path / "owner", "yard", now_s=NOW_S)
    return state


@pytest.fixture
def owner(tmp_path):
    return tmp_path / "owner"


def make_built(*, name="pool", description="", peak_memory_bytes=1 << 20):
    package = build_package(ZOO["convpool"].graph_path, name=name)
    manifest = msgspec.structs.replace(package.manifest, description=description, peak_memory_bytes=peak_memory_bytes)
    return Built(package=msgspec.structs.replace(package, manifest=manifest), profile=PROFILE)


def clock():
    return NOW_S + 60


def take_over(state):
    """Do what the daemon does with a publication."""
    desk = ReleaseDesk(state.desk, load_key(state.desk_key), _grid_id(state))
    desk.accept(state.inbox.read_bytes(), clock())
    client = TrustClient(state.trust, _grid_id(state))
    client.refresh([desk.file], clock())
    state.inbox.unlink()
    return client


def _grid_id(state):
    return msgspec.json.decode(state.grid.read_bytes())["grid_id"]


def test_a_publication_waits_for_the_daemon_with_its_shards(state, owner):
    [published] = publish(state, owner, [make_built()], clock=clock)
    assert (published.name, published.version, published.unchanged) == ("pool", 1, False)
    sent = decode_publication(state.inbox.read_bytes())
    assert "models/pool.json" in sent.files
    package = make_built().package
    assert {path.name for path in state.incoming.iterdir()} == {shard.sha256 for shard in package.manifest.shards}
    assert all(path.stat().st_mode & 0o077 == 0 for path in state.incoming.iterdir())


def test_the_daemon_side_accepts_it(state, owner):
    [published] = publish(state, owner, [make_built()], clock=clock)
    client = take_over(state)
    assert client.models() == {"pool": published.digest}
    assert client.deployment().models == ("pool",)


def test_publishing_the_same_again_changes_nothing(state, owner):
    """The measured memory differs a little from one packing to the next."""
    [first] = publish(state, owner, [make_built()], clock=clock)
    [again] = publish(state, owner, [make_built(peak_memory_bytes=2 << 20)], clock=clock)
    assert again.unchanged
    assert again.digest == first.digest


def test_a_changed_model_gets_the_next_version(state, owner):
    publish(state, owner, [make_built()], clock=clock)
    [changed] = publish(state, owner, [make_built(description="new")], clock=clock)
    assert (changed.version, changed.unchanged) == (2, False)


def test_what_another_copy_of_the_owner_published_is_taken_over_first(state, owner, tmp_path):
    """The working copy is lost, and the daemon's state is newer than what is left."""
    publish(state, owner, [make_built(name="first")], clock=clock)
    take_over(state)
    for path in (owner / "repository").glob("state-*.bin"):
        path.unlink()
    publish(state, owner, [make_built(name="second")], clock=clock)
    assert set(take_over(state).models()) == {"first", "second"}


def test_a_withdrawn_model_is_gone(state, owner):
    publish(state, owner, [make_built()], clock=clock)
    withdraw(state, owner, "pool", clock=clock)
    assert take_over(state).models() == {}


def test_withdrawing_what_is_not_there_names_what_is(state, owner):
    publish(state, owner, [make_built()], clock=clock)
    with pytest.raises(PublishError, match="published are: pool"):
        withdraw(state, owner, "pond", clock=clock)


def test_a_missing_owner_key_is_named_and_nothing_is_left(state, owner):
    for path in owner.glob("owner-*.pem"):
        path.unlink()
    with pytest.raises(PublishError, match="keys are at hand"):
        publish(state, owner, [make_built()], clock=clock)
    assert not state.inbox.exists()


def test_the_owner_of_another_grid_is_refused(state, owner, tmp_path):
    other = StateDirectory(tmp_path / "other")
    create_grid(other, tmp_path / "other-owner", "elsewhere", now_s=NOW_S)
    with pytest.raises(PublishError, match="--owner-dir"):
        publish(state, tmp_path / "other-owner", [make_built()], clock=clock)


def test_verify_finds_a_damaged_shard(state, owner):
    built = make_built()
    publish(state, owner, [built], clock=clock)
    take_over(state)
    absent = verify(state, "pool", now_s=clock())
    assert [(verdict.name, verdict.problem) for verdict in absent] == [("", ""), ("pool", "")]
    assert absent[1].on_disk == "0 of 1 shards"

    [shard] = built.package.manifest.shards
    path = ChunkStore(state.store, 1 << 24).put_file(shard, state.incoming / shard.sha256)
    assert verify(state, None, now_s=clock())[1].on_disk == "1 of 1 shards"
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert "damaged: graph.onnx" in verify(state, "pool", now_s=clock())[1].problem


def test_verify_finds_expired_signatures(state, owner):
    publish(state, owner, [make_built()], clock=clock)
    take_over(state)
    assert "expired" in verify(state, None, now_s=NOW_S + 1e8)[0].problem


def test_tampered_state_is_an_error_or_a_problem(state, owner):
    publish(state, owner, [make_built()], clock=clock)
    take_over(state)
    for path in state.trust.glob("state-*.bin"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    try:
        verdicts = verify(state, None, now_s=clock())
    except GridError:
        return
    assert verdicts[0].problem


def test_a_manifest_is_shown_from_the_signed_state(state, owner):
    [published] = publish(state, owner, [make_built()], clock=clock)
    take_over(state)
    digest, manifest = read_manifest(state, "pool")
    assert (digest, manifest.name) == (published.digest, "pool")
    with pytest.raises(UnknownModelError, match="pool"):
        read_manifest(state, "pond")


def test_the_zoo_names_its_models_and_their_rungs():
    assert zoo_names("street") == ("street", "street-small")
    with pytest.raises(UnknownModelError, match="convpool"):
        zoo_names("zebra")
