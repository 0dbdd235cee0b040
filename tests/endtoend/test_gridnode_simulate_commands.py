"""Every command of `gridnode simulate` as a process: what is on which stream, which files come, what is refused."""

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gridnode.simulation.load import shipped

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 120.0
"""Longest wait for one command; the longest takes about ten seconds."""
SHORT = ["--set", "duration_s=4", "--set", "warm_up_s=1"]
TWICE = [*SHORT, "--replications", "2", "--jobs", "1"]


def simulate(*arguments, cwd=None):
    """Run a command as a user does, with pipes in place of a terminal."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("GRIDNODE_", "COLUMNS"))}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gridnode", "simulate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert "\x1b" not in done.stdout + done.stderr, "no control codes without a terminal"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def in_order(*arguments):
    done = simulate(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def wrong(*arguments, cwd=None):
    """Run a command that must be refused; returns its last line."""
    done = simulate(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()[-1]


# ---------------------------------------------------------------- what they print


def test_list_names_every_scenario():
    found = json.loads(in_order("list", "--json").stdout)
    assert [each["name"] for each in found] == list(shipped())
    text = in_order("list").stdout
    assert all(each["name"] in text and each["about"][:20] in text for each in found)


COMMANDS = {
    "run": (["run", "pilot", *SHORT], dict),
    "compare": (["compare", "pilot", "--policy", "capd", "--policy", "jsq(d=2)", *TWICE], dict),
    "sweep": (["sweep", "pilot", "--vary", "sources.0.load=0.3,0.5", *TWICE], dict),
    "plan": (["plan", "pilot", "--what-if", "fast-1", "--what-if", "cameras+20%", *TWICE], dict),
    "theory": (["theory", "--fast", "--only", "flow"], list),
}
FILES = {
    "run": {"summary.csv", "nodes.csv", "cdf.csv", "flows.csv", "series.csv", "result.json", "report.html"},
    "compare": {"policies.csv", "comparison.json", "report.html"},
    "sweep": {"sweep.csv", "sweep.json", "report.html"},
    "plan": {"plan.csv", "plan.json", "report.html"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_document_on_stdout(name):
    arguments, kind = COMMANDS[name]
    done = in_order(*arguments, "--json")
    assert isinstance(json.loads(done.stdout), kind)
    assert done.stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_text_is_for_people_and_fits_a_pipe(name):
    done = in_order(*COMMANDS[name][0])
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert not done.stdout.startswith("{")


@pytest.mark.parametrize("name", FILES)
def test_out_writes_what_is_said(name, tmp_path):
    folder = tmp_path / "new" / "folder"
    done = in_order(*COMMANDS[name][0], "--out", folder)
    written = {path.name for path in folder.iterdir()}
    assert written >= FILES[name]
    (row,) = re.findall(rf"^\| `{name}` \|(.*?)\|", (ROOT / "docs" / "reports.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"`(.*?)`", row)) == FILES[name], "docs/reports.md tells the files"
    assert {path for path in written - FILES[name] if not path.endswith(".png")} == set()
    told = {line.removeprefix("wrote ") for line in done.stderr.splitlines() if line.startswith("wrote ")}
    assert told == {str(path) for path in folder.iterdir()}
    for path in folder.glob("*.json"):
        assert json.loads(path.read_text())
    for path in folder.glob("*.csv"):
        rows = list(csv.reader(path.read_text().splitlines()))
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}


def test_one_seed_is_one_run_and_a_trace_changes_nothing(tmp_path):
    plain = in_order("run", "pilot", *SHORT, "--seed", "x", "--hash", "--json").stdout
    trace = tmp_path / "trace.json"
    traced = in_order("run", "pilot", *SHORT, "--seed", "x", "--hash", "--json", "--trace-out", trace)
    assert traced.stdout == plain
    assert traced.stderr == f"wrote {trace}\n"
    assert len(json.loads(plain)["trace_hash"]) == 64
    assert json.loads(trace.read_text())["otherData"]["seed"] == "x"


@contextmanager
def watched(out, *arguments):
    """Run a command whose standard error is a terminal; gives the process and a function that reads on to a text."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "gridnode", "simulate", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with out.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=theirs, env=environment, start_new_session=True)
    os.close(theirs)

    def read(pattern=None):
        seen = b""
        with suppress(OSError):  # Linux: the other side is closed
            while (pattern is None or not re.search(pattern, seen)) and (data := os.read(ours, 65_536)):
                seen += data
        return seen

    try:
        yield process, read
    finally:
        os.close(ours)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(LIMIT_S)


def test_a_bar_is_shown_to_whoever_watches_and_goes_away(tmp_path):
    with watched(tmp_path / "out", "run", "pilot", *SHORT, "--json") as (process, read):
        seen = read()
        assert process.wait(LIMIT_S) == 0
    assert "━".encode() in seen
    assert b"pilot" in seen
    assert b"100%" in seen
    assert seen.rstrip().endswith(b"\x1b[2K"), "the bar is wiped out"
    assert json.loads((tmp_path / "out").read_text())["scenario"] == "pilot"


def test_ctrl_c_ends_runs_in_other_processes_at_once(tmp_path):
    """A terminal sends it to all processes of a command; runs of a minute would go on otherwise."""
    grid = ["--vary", "duration_s=2,4000,4001", "--set", "warm_up_s=1", "--replications", "1", "--jobs", "2"]
    with watched(tmp_path / "out", "sweep", "pilot", *grid) as (process, read):
        read(rb"33%")
        os.killpg(process.pid, signal.SIGINT)
        seen = read()
        assert process.wait(5.0) == 130
    assert b"interrupted" in seen
    assert b"Traceback" not in seen


# ---------------------------------------------------------------- what they refuse


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("duration_s = 5\nwarm_up_s = 9", "s.toml: line 3: warm_up_s: 9 s; it must be below duration_s (5)"),
        ("duration_s = -5", "s.toml: line 2: duration_s: -5; it must be a number above 0"),
        ("duratoin_s = 5", "s.toml: line 2: duratoin_s: no such key; did you mean duration_s? There are name,"),
        ("duration_s = ", "s.toml: line 2: no valid TOML: Invalid value"),
        ("policy = 'capdd'", "s.toml: line 2: policy: no policy is named 'capdd'; there are c3, capd,"),
    ],
)
def test_a_broken_file_is_told_by_line_key_value_and_range(tmp_path, text, said):
    (tmp_path / "s.toml").write_text(
        f'name = "s"\n{text}\n[[models]]\nname = "m"\n[models.mean_s]\nboard = 0.1\n[[nodes]]\ndevice = "board"\n'
    )
    line = wrong("run", "s.toml", cwd=tmp_path)
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere"], "no scenario is named 'nowhere'; there are b"),
        (["run", "no.toml"], "no.toml cannot be read: No such file or directory"),
        (["run", "folder.toml"], "folder.toml cannot be read: Is a directory"),
        (["run", "binary.toml"], "binary.toml cannot be read: 'utf-8' codec"),
        (["run", "pilot", "--policy", "jsq(d=0)"], "d is '0'; it must be a whole number from 1 to 4096"),
        (["run", "pilot", "--set", "duration_s"], "--set 'duration_s' is no key=value"),
        (["run", "pilot", "--set", "sources.3.load=1"], "there is no '3' in it; there are 0, and *"),
        (["run", "pilot", "--out", "file/x"], "file/x cannot be written to: Not a directory; give another"),
        (["run", "pilot", "--trace-out", "none/x.json"], "none/x.json cannot be written: No such file"),
        (["compare", "pilot", "--policy", "capd", "--policy", "nope"], "no policy is named 'nope'"),
        (["compare", "pilot", "--policy", "perfect_jsq(x=1)"], "perfect_jsq has no argument 'x'; it takes: d"),
        (["run", "pilot", "--policy", "oracle(d=2"], "'oracle(d=2' is no policy; write NAME or NAME(key=value, ...)"),
        (["compare", "pilot", "--replications", "-1"], "'-1' is no whole number from 1 to 10000"),
        (["compare", "pilot", "--out", "file"], "file cannot be written to: File exists; give another folder"),
        (["sweep", "pilot", "--vary", "sources.0.load"], "--vary 'sources.0.load' is no key=value,value"),
        (["sweep", "pilot", "--vary", "sources.0.laod=1"], "did you mean load?"),
        (["sweep", "pilot", "--vary", "seed=1", "--jobs", "0"], "'0' is no whole number from 1 to 256"),
        (["plan"], "nothing to plan with; give a scenario, or what daemons recorded with --trace FILE"),
        (["plan", "pilot", "--what-if", "gpu+1"], "there is no 'gpu' of which to take more or less; there are pi,"),
        (["plan", "pilot", "--what-if", "pi+1", "--trace", "no.csv"], "no.csv cannot be read: No such file"),
        (["plan", "pilot", "--what-if", "pi+1", "--trace", "words.csv"], "words.csv, line 2: 'b' is neither seconds"),
        (["theory", "--only", "perpetuum"], "no check has 'perpetuum' in its name"),
        (["calibrate", "--seconds", "1"], "1 s is too short, at least 4 are needed"),
        (["calibrate", "--load", "1.5"], "1.5 is too much to be compared, at most 0.95"),
        (["calibrate", "--load", "nan"], "'nan' is no number above 0"),
        (["calibrate", "--out", "file"], "file cannot be written to: File exists"),
        (["nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_wrong_input_is_named_in_one_line(tmp_path, arguments, said):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "file").write_text("")
    (tmp_path / "words.csv").write_text("a\nb\n")
    line = wrong(*arguments, cwd=tmp_path)
    assert "error: " in line
    assert said in line


def test_a_folder_for_daemons_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = simulate("calibrate", "--keep", "file", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot be made: File exists; give another with --keep" in done.stderr
