"""`gridnode config`, and how flags, environment and file come together."""

import tomllib

import msgspec
import pytest

from gridnode.cli.main import main
from gridnode.cli.run import default_config, foreseen, toml_lines
from gridnode.config import Config, load_config
from gridnode.errors import GridError
from models.chunkfile import StoreError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("GRIDNODE_CONFIG", raising=False)


def test_the_printed_configuration_reads_back_as_the_same(tmp_path):
    config = load_config(None, environment={}, flags={"preset": "loopback", "runtime": {"cpu_share": 0.4}})
    path = tmp_path / "gridnode.toml"
    path.write_text("\n".join(toml_lines(msgspec.to_builtins(config))))
    assert load_config(path, environment={}) == config


def test_toml_text_is_quoted_as_toml_wants_it():
    [line] = toml_lines({"name": 'a "b" \\ c'})
    assert tomllib.loads(line) == {"name": 'a "b" \\ c'}


def test_flags_win_over_environment_and_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "gridnode.toml"
    path.write_text('[node]\nname = "file"\n[runtime]\ncpu_share = 0.1\n')
    monkeypatch.setenv("GRIDNODE_RUNTIME__CPU_SHARE", "0.2")
    assert main(["config", "show", "--json", "--config", str(path), "--set", "runtime.cpu_share=0.3"]) == 0
    shown = msgspec.json.decode(capsys.readouterr().out, type=Config)
    assert (shown.node.name, shown.runtime.cpu_share) == ("file", 0.3)


def test_check_tells_the_key_that_is_wrong(tmp_path, capsys):
    path = tmp_path / "gridnode.toml"
    path.write_text("[runtime]\ncpu_shares = 0.5\n")
    assert main(["config", "check", str(path)]) == 2
    assert "did you mean 'cpu_share'" in capsys.readouterr().err


def test_check_prints_what_a_good_file_comes_to(tmp_path, capsys):
    path = tmp_path / "gridnode.toml"
    path.write_text("[runtime]\ncpu_share = 0.5\n")
    assert main(["config", "check", str(path)]) == 0
    printed = capsys.readouterr()
    assert "cpu_share = 0.5" in printed.out
    assert printed.err == f"{path}: good\n"


@pytest.mark.parametrize("text", ["runtime.cpu_share", "=1"])
def test_a_setting_that_makes_no_sense_is_wrong_usage(text, capsys):
    assert main(["config", "show", "--set", text]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_a_key_below_a_value_is_wrong_usage(capsys):
    assert main(["config", "show", "--set", "runtime=1", "--set", "runtime.cpu_share=1"]) == 2
    assert "was set to a value" in capsys.readouterr().err


def test_the_file_is_looked_for_where_the_service_keeps_it(tmp_path):
    (tmp_path / "gridnode.toml").touch()
    assert default_config({"CONFIGURATION_DIRECTORY": str(tmp_path)}) == tmp_path / "gridnode.toml"
    assert default_config({"GRIDNODE_CONFIG": "/x/y.toml"}).name == "y.toml"


def test_an_error_of_a_nursery_is_told_as_itself():
    group = ExceptionGroup("", [ExceptionGroup("", [StoreError("disk"), GridError("x")])])
    assert str(foreseen(group)) == "disk"
    assert foreseen(StoreError("disk")) is not None


def test_a_bug_beside_a_foreseen_error_stays_a_bug():
    assert foreseen(ExceptionGroup("", [GridError("x"), KeyError("y")])) is None
    assert foreseen(KeyError("y")) is None
