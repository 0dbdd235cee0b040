"""Whatever a source sends, a node neither crashes nor believes what the grid's keys did not sign."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata

from models.desk import ReleaseDesk
from models.keys import create_key
from models.owner import OwnerRepository
from models.trust import TrustClient

NOW = 1_000_000_000.0
ROLES = ("2.root", "timestamp", "snapshot", "targets")


class World:
    """A node that holds the grid's first state, and a desk that has the second, with a new root."""

    def __init__(self, folder: Path):
        self.folder = folder
        key = create_key(folder / "desk.pem")
        owner = OwnerRepository.create(folder / "owner", folder / "repo", "home", NOW, desk_keys=[key.public_key])
        self.grid_id = owner.grid_id
        self.desk = ReleaseDesk(folder / "desk", key, owner.grid_id)
        self.desk.accept(owner.publication(), NOW)
        TrustClient(folder / "node", owner.grid_id).refresh([self.desk.file], NOW)
        owner.rotate_keys(NOW + 1)
        owner.set_target("ca.pem", b"certificate", NOW + 2)
        self.desk.accept(owner.publication(), NOW + 2)

    @contextlib.contextmanager
    def node(self):
        """A copy of the node, fresh for each example."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            copy = shutil.copytree(self.folder / "node", Path(name) / "node")
            yield TrustClient(copy, self.grid_id)

    def source(self, role, data):
        """The desk, but for one file."""
        return lambda path: data if path == f"metadata/{role}.json" else self.desk.file(path)


@pytest.fixture(scope="module")
def world():
    with tempfile.TemporaryDirectory() as name:
        yield World(Path(name))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(document, path=()):
    """Paths to every value in a JSON document."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def altered(data: bytes, choice: int, value) -> bytes:
    """Put another value at some place of a JSON document."""
    document = json.loads(data)
    paths = list(places(document))
    path = paths[choice % len(paths)]
    if not path:
        return json.dumps(value).encode()
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(document).encode()


@settings(max_examples=60, deadline=None)
@given(role=st.sampled_from(ROLES), choice=st.integers(0, 500), value=json_values)
def test_altered_metadata_never_enter_and_never_crash(world, role, choice, value):
    good = world.desk.file(f"metadata/{role}.json")
    bad = altered(good, choice, value)
    with world.node() as node:
        before = node.versions()[1], node.file("metadata/targets.json")
        changes = node.refresh([world.source(role, bad)], NOW + 3)
        if changes.faults:
            # A root that held before the refresh failed may stay; nothing else.
            assert (node.versions()[1], node.file("metadata/targets.json")) == before
        else:
            # Only the spelling may differ, and what nobody signs: a signature that is not needed, a default given as
            # null. What is said must be what was signed.
            assert Metadata.from_bytes(bad).signed == Metadata.from_bytes(good).signed


@settings(max_examples=40, deadline=None)
@given(role=st.sampled_from(ROLES), data=st.binary(max_size=300))
def test_any_bytes_are_refused(world, role, data):
    with world.node() as node:
        changes = node.refresh([world.source(role, data)], NOW + 3)
        assert [fault.kind for fault in changes.faults] == ["invalid"]
