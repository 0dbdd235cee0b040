"""Dispatch, exit codes and errors of the command line; how light it is to start."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from gridnode import errors
from gridnode.cli import main as cli
from gridnode.cli.grid import find_node
from gridnode.cli.options import UsageError

ROOT = Path(__file__).parent.parent.parent
COMMANDS = ("demo", "grid", "run", "status", "peers", "submit", "explain", "model", "invite", "join", "config")
HEAVY = ("onnxruntime", "onnx", "libp2p", "trio", "numpy", "PIL", "rich", "cryptography", "tuf", "msgspec", "psutil")


def test_help_names_every_command_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(f"\n    {command} " in text for command in COMMANDS)
    assert "3 no daemon answers" in text


def test_help_is_answered_without_heavy_imports():
    script = f"""
import sys
from gridnode.cli.main import build_parser
build_parser().format_help()
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.GridError("x"), 1),
        (errors.StateDirectoryError("x"), 1),
        (errors.JobFailedError("x"), 1),
        (errors.ConfigError("x"), 2),
        (errors.InvalidInputError("x"), 2),
        (UsageError("x"), 2),
        (errors.DaemonUnreachableError("x"), 3),
        (errors.JobDeadlineError("x"), 4),
        (errors.DrainingError("x"), 4),
    ],
)
def test_each_error_has_its_exit_code(error, code):
    assert cli.exit_code(error) == code


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["no-such-command"])
    assert caught.value.code == 2
    assert "no-such-command" in capsys.readouterr().err


def test_an_error_is_one_line_with_a_remedy_and_no_traceback(tmp_path, capsys):
    code = cli.main(["status", "--socket", str(tmp_path / "none.sock")])
    printed = capsys.readouterr()
    assert code == 3
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "none.sock" in printed.err


def test_a_daemon_needs_a_grid_first(tmp_path, capsys):
    assert cli.main(["run", "--state-dir", str(tmp_path), "--preset", "loopback"]) == 1
    assert "gridnode grid create NAME" in capsys.readouterr().err


def test_a_wrong_token_is_named(tmp_path, capsys):
    assert cli.main(["join", "gn1.nonsense", "--state-dir", str(tmp_path / "a"), "--name", "a"]) == 1
    assert "copy it again" in capsys.readouterr().err


def test_a_name_that_cannot_travel_is_refused(tmp_path, capsys):
    assert cli.main(["join", "gn1.x", "--state-dir", str(tmp_path / "a"), "--name", "a b"]) == 2
    assert "--name" in capsys.readouterr().err


def commands_of(parser):
    [action] = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return set(action.choices)


def test_a_command_draws_in_its_own_group_and_anything_else_all_of_them():
    everything = commands_of(cli.build_parser())
    groups = {frozenset(commands_of(cli.build_parser(command))) for command in everything}
    assert frozenset({"run", "config"}) in groups
    assert sum(map(len, groups)) == len(everything) == len(frozenset().union(*groups))
    assert commands_of(cli.build_parser("rum")) == everything


def test_a_grid_is_made_once_in_one_place(tmp_path, capsys):
    arguments = ["grid", "create", "yard", "--state-dir", str(tmp_path / "a"), "--json"]
    assert cli.main(arguments) == 0
    assert '"name": "yard"' in capsys.readouterr().out
    assert (tmp_path / "a" / "node.key").stat().st_mode & 0o777 == 0o600
    assert cli.main(arguments) == 1
    assert "holds a node already" in capsys.readouterr().err


def test_an_interrupt_inside_a_nursery_counts_as_one(monkeypatch, capsys):
    def interrupted(options):
        raise BaseExceptionGroup("", [KeyboardInterrupt()])

    parser = cli.build_parser()
    monkeypatch.setattr(cli, "build_parser", lambda command: parser)
    monkeypatch.setattr(parser, "parse_args", lambda arguments: type("Options", (), {"run": staticmethod(interrupted)}))
    assert cli.main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


OWN = {"name": "alpha", "node": "12D3KooWalphaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
PEERS = [
    {"name": "beta", "node": "12D3KooWbetaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaAbC"},
    {"name": "twin", "node": "12D3KooWtwinnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn1"},
    {"name": "twin", "node": "12D3KooWtwinnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn2"},
]


@pytest.mark.parametrize("text", ["beta", PEERS[0]["node"], "aaaAbC"])
def test_a_node_is_meant_by_name_id_or_end_of_id(text):
    assert find_node(text, own=OWN, peers=PEERS) == PEERS[0]["node"]


def test_a_node_never_seen_is_meant_by_its_whole_id():
    stranger = "12D3" + "x" * (len(OWN["node"]) - 4)
    assert find_node(stranger, own=OWN, peers=PEERS) == stranger


@pytest.mark.parametrize("text", ["alpha", "twin", "delta", "AbC"])
def test_no_node_is_put_out_by_guessing(text):
    with pytest.raises(UsageError):
        find_node(text, own=OWN, peers=PEERS)


def test_the_reference_names_every_command():
    text = (ROOT / "docs" / "cli.md").read_text()
    assert all(f"`{command}" in text or f"gridnode {command}" in text for command in (*COMMANDS, "doctor"))
