"""The state directory: one daemon at a time, and a boot counter that only grows."""

import os
import stat
import subprocess
import sys

import pytest

from gridnode.errors import NotJoinedError, StateDirectoryError
from gridnode.statedir import StateDirectory


@pytest.fixture
def state(tmp_path):
    directory = StateDirectory(tmp_path / "state")
    directory.create()
    directory.certificate.write_text("x")
    directory.node_key.write_text("x")
    return directory


def test_it_is_made_for_its_owner_alone(state):
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700


def test_a_place_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirectoryError, match="--state-dir"):
        StateDirectory(tmp_path / "file" / "below").create()


def test_a_directory_without_a_node_says_what_to_do(tmp_path):
    with pytest.raises(NotJoinedError, match="gridnode join TOKEN"):
        StateDirectory(tmp_path).open()


def test_a_second_daemon_is_refused_by_process_number_until_the_first_lets_go(state):
    state.open()
    second = StateDirectory(state.path)
    with pytest.raises(StateDirectoryError, match=f"process {os.getpid()}"):
        second.open()
    state.close()
    second.open()
    second.close()
    second.close()


def test_the_lock_of_a_process_that_died_is_free(state):
    code = (
        "import sys, os, pathlib; from gridnode.statedir import StateDirectory; "
        "StateDirectory(pathlib.Path(sys.argv[1])).open(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(state.path)], check=False, timeout=30)
    state.open()
    state.close()


def test_the_lock_does_not_pass_to_child_processes(state):
    state.open()
    program = "print('up', flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, close_fds=False) as child:
        child.stdout.readline()  # between fork and exec a child has all descriptors
        state.close()
        state.open()
        state.close()
        child.communicate(b"\n")


def test_each_life_has_a_higher_epoch(state):
    assert [state.next_epoch() for _ in range(3)] == [1, 2, 3]
    assert state.next_epoch(at_least=10) == 11
    assert state.next_epoch(at_least=5) == 12


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xfe", b"1.5", b"-"])
def test_a_damaged_counter_starts_from_what_is_known(state, content):
    (state.path / "epoch").write_bytes(content)
    assert state.next_epoch(at_least=7) == 8


def test_a_counter_below_zero_or_huge_still_grows(state):
    (state.path / "epoch").write_text("-5")
    assert state.next_epoch() == 1
