"""Configuration: order of precedence, messages that name the key, defaults that hold together."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from gridnode.config import Config, default_socket, default_state_dir, load_config
from gridnode.errors import ConfigError


def load(text="", *, tmp_path=None, environment=None, flags=None):
    path = None
    if tmp_path is not None:
        path = tmp_path / "gridnode.toml"
        path.write_text(text)
    return load_config(path, environment=environment or {}, flags=flags)


def test_nothing_said_gives_the_defaults():
    assert load() == Config()


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(tmp_path):
    text = '[node]\nname = "file"\ndrain_s = 1.0\n[runtime]\ncpu_share = 0.1\n'
    environment = {"GRIDNODE_NODE__NAME": "environment", "GRIDNODE_NODE__DRAIN_S": "2"}
    config = load(text, tmp_path=tmp_path, environment=environment, flags={"node": {"name": "flag"}})
    assert (config.node.name, config.node.drain_s, config.runtime.cpu_share) == ("flag", 2.0, 0.1)
    assert config.metrics == Config().metrics


def test_environment_values_are_toml_or_plain_text():
    environment = {
        "GRIDNODE_NETWORK__BOOTSTRAP": '["a@h:1"]',
        "GRIDNODE_METRICS__ENABLED": "false",
        "GRIDNODE_LOG__LEVEL": "debug",
        "GRIDNODE_SOCKET": "/x",
        "GRIDNODE_STATE_DIR": "/y",
        "OTHER": "z",
    }
    config = load(environment=environment)
    assert config.network.bootstrap == ("a@h:1",)
    assert config.metrics.enabled is False
    assert config.log.level == "debug"


def test_loopback_binds_nothing_but_loopback_and_yields_to_what_is_said():
    config = load(flags={"preset": "loopback", "network": {"data": {"port": 5}}})
    listens = (config.network.control, config.network.data, config.network.door, config.metrics)
    assert {listen.host for listen in listens} == {"127.0.0.1"}
    assert [listen.port for listen in listens] == [0, 5, 0, 0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"nodes": {}}, ["unknown key 'nodes'", "did you mean 'node'"]),
        ({"node": {"nam": "x"}}, ["unknown key 'node.nam'", "did you mean 'name'"]),
        ({"node": {"zzz": 1}}, ["unknown key 'node.zzz'", "known here: drain_s, name, state_dir"]),
        ({"runtime": {"cpu_share": 2}}, ["runtime.cpu_share", "<= 1", "seen: 2"]),
        ({"runtime": {"cpu_share": "much"}}, ["runtime.cpu_share", "float", "seen: 'much'"]),
        ({"runtime": {"executor": "emulated"}}, ["runtime.profile"]),
        ({"network": {"control": {"port": 70000}}}, ["network.control.port", "65535"]),
        ({"node": {"name": "a b"}}, ["node.name", "seen: 'a b'"]),
        ({"node": 3}, ["node", "seen: 3"]),
        ({"preset": "moon"}, ["preset", "moon"]),
        ({"scheduler": {"queue": {"bound_s": -1}}}, ["scheduler.queue", "bound_s is -1"]),
        ({"scheduler": {"queue": {"bound_s": 50}}}, ["must not exceed placement.default_deadline_s"]),
        ({"client": {"mode": 0o7777}}, ["client.mode"]),
    ],
)
def test_a_slip_is_named_with_key_value_and_what_is_allowed(flags, words):
    with pytest.raises(ConfigError) as caught:
        load(flags=flags)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("text", "word"), [("a = ", "no TOML"), ("\udcff", "no TOML")])
def test_a_file_that_is_no_toml_is_named(tmp_path, text, word):
    path = tmp_path / "gridnode.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=word) as caught:
        load_config(path, environment={})
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path, environment={})


def test_what_the_defaults_come_to_is_read_back_as_the_same():
    from gridnode.cli.run import toml_lines

    text = "\n".join(toml_lines(msgspec.to_builtins(Config())))
    assert msgspec.convert(tomllib.loads(text), Config) == Config()


@pytest.mark.parametrize(
    ("environment", "state", "socket"),
    [
        ({"GRIDNODE_STATE_DIR": "/a", "GRIDNODE_SOCKET": "/b"}, "/a", "/b"),
        ({"STATE_DIRECTORY": "/c:/d", "RUNTIME_DIRECTORY": "/e:/f"}, "/c", "/e/gridnode.sock"),
        ({"XDG_STATE_HOME": "/g", "XDG_RUNTIME_DIR": "/h"}, "/g/gridnode", "/h/gridnode.sock"),
        ({"HOME": "/i"}, "/i/.local/state/gridnode", "/i/.local/state/gridnode/gridnode.sock"),
    ],
)
def test_places_follow_the_environment(monkeypatch, environment, state, socket):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_state_dir(environment) == Path(state)
    assert default_socket(environment) == Path(socket)


def test_root_uses_the_places_of_the_system(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_state_dir({}) == Path("/var/lib/gridnode")
    assert default_socket({}) == Path("/run/gridnode/gridnode.sock")


def test_a_policy_is_named_with_arguments_and_settles_the_mechanisms_around_it(tmp_path):
    path = tmp_path / "gridnode.toml"
    path.write_text('[scheduler.placement]\npolicy = "jsq(d=4, steal=yes)"\n')
    scheduler = load_config(path, environment={}).scheduler
    assert (scheduler.placement.sample, scheduler.steal.enabled, scheduler.window.enabled) == (4, True, False)
    path.write_text('[scheduler.placement]\npolicy = "jsq(d=none)"\n')
    with pytest.raises(ConfigError, match=r"scheduler.placement.policy: jsq: d is 'none'; it must be a whole number"):
        load_config(path, environment={})


@pytest.mark.parametrize(
    ("text", "cores", "slots"),
    [
        ("", 1, 1),
        ("", 2, 2),
        ("", 64, 4),
        ("[scheduler.queue]\nslots = 1", 8, 1),
        ("[scheduler.queue]\nslots = 7", 2, 7),
        ("[scheduler.queue]\njobs = 9", 2, 2),
        ('[runtime]\nexecutor = "emulated"\nprofile = "p.toml"', 8, 1),
    ],
)
def test_real_models_get_a_slot_per_core_unless_slots_are_set(tmp_path, text, cores, slots):
    path = tmp_path / "gridnode.toml"
    path.write_text(text)
    assert load_config(path, environment={}, cores=cores).scheduler.queue.slots == slots
