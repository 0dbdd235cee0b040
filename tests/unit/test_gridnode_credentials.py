"""Making a grid, and reading who one is from a state directory that may be damaged."""

import shutil
import stat

import pytest

from gridnode.credentials import RENEWAL_SHARE, Credentials
from gridnode.errors import NotJoinedError, StateDirectoryError
from gridnode.gridsetup import create_grid
from gridnode.statedir import StateDirectory
from transport.certificates import ROLES, SERVE
from transport.identity import NodeKey

NOW_S = 1_800_000_000.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    create_grid(StateDirectory(folder / "node"), folder / "owner", "street", now_s=NOW_S)
    return folder


@pytest.fixture
def state(made, tmp_path):
    shutil.copytree(made / "node", tmp_path / "node")
    return StateDirectory(tmp_path / "node")


def load(state, now_s=NOW_S):
    return Credentials(state, clock=lambda: now_s)


def test_the_first_node_has_all_roles_and_may_admit(state):
    credentials = load(state)
    assert credentials.grid.name == "street"
    assert set(credentials.certificate.roles) == set(ROLES)
    assert credentials.is_admit
    assert credentials.certificate.node == credentials.node == credentials.key.node


def test_the_certificate_is_due_at_two_thirds_of_its_life(state):
    credentials = load(state)
    life_s = credentials.certificate.not_after_s - credentials.certificate.not_before_s
    assert credentials.renewal_due_s() == credentials.certificate.not_before_s + RENEWAL_SHARE * life_s


def test_secrets_are_for_their_owner_alone(made):
    secrets = [*(made / "owner").glob("*.pem"), made / "node" / "node.key", *(made / "node" / "admit").glob("*.key")]
    secrets += (made / "node" / "admit").glob("*.pem")
    assert len(secrets) >= 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert {stat.S_IMODE((made / name).stat().st_mode) for name in ("owner", "node", "node/admit")} == {0o700}


def test_a_grid_is_not_made_over_a_node_or_an_owner(made, state, tmp_path):
    with pytest.raises(StateDirectoryError, match="holds a node already"):
        create_grid(state, tmp_path / "owner", "x", now_s=NOW_S)
    with pytest.raises(StateDirectoryError):
        create_grid(StateDirectory(tmp_path / "other"), made / "owner", "x", now_s=NOW_S)


@pytest.mark.parametrize("name", ["", "a" * 1000, "\x00"])
def test_a_grid_name_that_cannot_be_is_named_or_taken(tmp_path, name):
    state = StateDirectory(tmp_path / "node")
    try:
        create_grid(state, tmp_path / "owner", name, now_s=NOW_S)
    except StateDirectoryError:
        assert not state.grid.exists()
    else:
        assert load(state).grid.name == name


@pytest.mark.parametrize("name", ["node.crt", "ca.crt", "grid.json"])
def test_a_missing_file_says_how_to_join(state, name):
    (state.path / name).unlink()
    with pytest.raises(NotJoinedError, match="gridnode join TOKEN"):
        load(state)


@pytest.mark.parametrize(
    "name", ["node.key", "node.crt", "ca.crt", "grid.json", "revocations.bin", "admit/intermediate.key"]
)
@pytest.mark.parametrize("content", [b"\xff{]", b"", b"x" * 1_000_000])
def test_a_damaged_file_is_named(state, name, content):
    path = state.path / name
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateDirectoryError):
        load(state)


def test_a_key_that_others_may_read_is_refused_with_the_remedy(state):
    state.node_key.chmod(0o644)
    with pytest.raises(StateDirectoryError, match="chmod 0600"):
        load(state)


def test_a_key_of_another_node_does_not_go_with_the_certificate(state):
    state.node_key.unlink()
    NodeKey.create(state.node_key)
    with pytest.raises(StateDirectoryError, match="belongs to the other"):
        load(state)


def test_a_renewed_certificate_is_kept(state):
    credentials = load(state)
    key = credentials.key.private.public_key()
    chain = credentials.issuer.issue(key, (SERVE,), now_s=NOW_S + 1000)
    credentials.replace_chain(chain)
    assert credentials.certificate.roles == (SERVE,)
    assert load(state).chain_pem == chain


@pytest.mark.parametrize("spoil", ["key", "garbage", "place"])
def test_a_renewal_that_is_no_good_leaves_the_old_certificate(state, tmp_path, spoil):
    credentials = load(state)
    before = credentials.chain_pem, credentials.certificate
    key = NodeKey.create(tmp_path / "other.key") if spoil == "key" else credentials.key
    chain = credentials.issuer.issue(key.private.public_key(), (SERVE,), now_s=NOW_S)
    if spoil == "garbage":
        chain = b"garbage"
    if spoil == "place":
        shutil.rmtree(state.path)
    with pytest.raises(StateDirectoryError, match=r"refused|belongs to the other"):
        credentials.replace_chain(chain)
    assert (credentials.chain_pem, credentials.certificate) == before


def test_an_expired_certificate_is_no_reason_not_to_start(state):
    credentials = load(state, NOW_S + 40 * 86_400)
    assert credentials.certificate.not_after_s < credentials.grid_time.now_s()


def test_a_damaged_grid_time_is_refilled_and_no_reason_to_stay_down(state):
    state.grid_time.write_bytes(b"\xff{]")
    credentials = load(state)
    assert credentials.grid_time.now_s() == NOW_S
    credentials.grid_time.observe(NOW_S + 1000)
    credentials.grid_time.save()
    assert load(state).grid_time.floor_s == NOW_S + 1000
