"""Making a grid leaves a node that works, and an owner who can renew its powers."""

import pytest

from gridnode.credentials import Credentials
from gridnode.errors import StateDirectoryError
from gridnode.gridsetup import CA_KEY_NAME, create_grid, load_ca_key, renew_intermediate
from gridnode.publish import PublishError
from gridnode.renewal import renew_grid
from gridnode.statedir import StateDirectory
from models.desk import ReleaseDesk
from models.keys import load_key
from models.trust import TrustClient
from transport.issuing import chain_ders

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0


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


def test_an_intermediate_is_renewed_for_the_key_it_has(made):
    """One file changes, so that a power cut cannot part key and certificate."""
    state, owner, _ = made
    before = state.intermediate_key.read_bytes()
    running = Credentials(state, clock=lambda: NOW_S)
    assert not running.reload_issuer()
    ends_s = renew_intermediate(state, owner, now_s=NOW_S + 80 * DAY_S)
    assert ends_s == NOW_S + 170 * DAY_S
    assert state.intermediate_key.read_bytes() == before
    assert running.reload_issuer()
    later_s = NOW_S + 100 * DAY_S
    chain = running.issuer.issue(running.key.private.public_key(), ("serve",), now_s=later_s)
    trust = Credentials(state, clock=lambda: later_s).trust
    assert trust.judge(chain_ders(chain)).not_after_s == later_s + 30 * DAY_S


def test_an_intermediate_that_cannot_be_read_leaves_the_one_before_in_use(made):
    state, *_ = made
    running = Credentials(state, clock=lambda: NOW_S)
    before = running.issuer
    state.intermediate.write_bytes(b"garbage")
    assert not running.reload_issuer()
    assert running.issuer is before


def test_only_an_admit_node_has_something_to_renew(made, tmp_path):
    _, owner, _ = made
    with pytest.raises(StateDirectoryError, match="no role 'admit'"):
        renew_intermediate(StateDirectory(tmp_path / "other"), owner, now_s=NOW_S)


def test_the_owner_renews_admit_certificate_and_signed_state_at_once(made):
    state, owner, grid_id = made
    state.incoming.mkdir()
    renewed = renew_grid(state, owner, clock=lambda: NOW_S + 80 * DAY_S)
    assert renewed.admit_expires_s == NOW_S + 170 * DAY_S
    assert renewed.state_expires_s > NOW_S + 400 * DAY_S
    desk = ReleaseDesk(state.desk, load_key(state.desk_key), grid_id)
    assert desk.accept(state.inbox.read_bytes(), NOW_S + 80 * DAY_S)
    assert desk.view.root.version == 2


def test_keys_of_another_grid_renew_nothing(made, tmp_path):
    state, *_ = made
    create_grid(StateDirectory(tmp_path / "other"), tmp_path / "others", "other", now_s=NOW_S)
    with pytest.raises(PublishError, match="give the right --owner-dir"):
        renew_grid(state, tmp_path / "others", clock=lambda: NOW_S)


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
