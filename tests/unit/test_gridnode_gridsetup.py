"""Making a grid leaves a node that works, and an owner who can renew its powers."""

import pytest

from gridnode.credentials import Credentials
from gridnode.errors import StateDirectoryError
from gridnode.gridsetup import CA_KEY_NAME, create_grid, load_ca_key, renew_intermediate
from gridnode.statedir import StateDirectory
from models.desk import ReleaseDesk
from models.keys import load_key
from models.trust import TrustClient

NOW_S = 1_800_000_000.0


@pytest.fixture
def made(tmp_path):
    state = StateDirectory(tmp_path / "node")
    grid_id = create_grid(state, tmp_path / "owner", "street", now_s=NOW_S)
    return state, tmp_path / "owner", grid_id


def test_the_first_signed_state_is_in_force_and_names_the_authority(made):
    state, _, grid_id = made
    client = TrustClient(state.trust, grid_id)
    status = client.status(NOW_S)
    assert (status.root_version, status.expired) == (1, False)
    assert status.grid_name == "street"
    desk = ReleaseDesk(state.desk, load_key(state.desk_key), grid_id)
    assert desk.file("metadata/1.root.json") == client.file("metadata/1.root.json")


def test_grid_and_node_are_read_back(made):
    state, _, grid_id = made
    credentials = Credentials(state, clock=lambda: NOW_S)
    assert credentials.grid_id == grid_id
    assert len(grid_id) == 64


def test_an_intermediate_is_renewed_with_a_new_key(made):
    state, owner, _ = made
    before = state.intermediate_key.read_bytes()
    node = Credentials(state, clock=lambda: NOW_S).node
    renew_intermediate(state, owner, holder=node, now_s=NOW_S + 80 * 86_400)
    assert state.intermediate_key.read_bytes() != before
    credentials = Credentials(state, clock=lambda: NOW_S + 80 * 86_400)
    later_s = NOW_S + 100 * 86_400
    chain = credentials.issuer.issue(credentials.key.private.public_key(), ("serve",), now_s=later_s)
    assert Credentials(state, clock=lambda: later_s).trust is not None
    assert chain


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_an_owner_key_that_cannot_be_used_is_named(made, content):
    _, owner, _ = made
    if content is None:
        (owner / CA_KEY_NAME).unlink()
    else:
        (owner / CA_KEY_NAME).write_bytes(content)
    with pytest.raises(StateDirectoryError, match="CA key"):
        load_ca_key(owner)


def test_a_grid_that_could_not_be_made_whole_is_not_taken_for_one(tmp_path):
    state = StateDirectory(tmp_path / "node")
    (tmp_path / "owner").write_text("in the way")
    with pytest.raises(StateDirectoryError):
        create_grid(state, tmp_path / "owner", "street", now_s=NOW_S)
    assert not state.grid.exists()
    (tmp_path / "owner").unlink()
    assert create_grid(state, tmp_path / "owner", "street", now_s=NOW_S)
