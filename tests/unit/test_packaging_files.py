"""What is shipped: the wheel holds what the program needs, and the locks pin everything without naming a place."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "packaging" / "lock"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    program = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


def test_the_wheel_holds_every_module_and_data_file_that_git_tracks(wheel):
    packages = ("gridnode/", "scheduler/", "transport/", "models/", "simulator/")
    listed = subprocess.run(["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.split() if (ROOT / name).exists()}
    assert len(tracked) > 100
    assert tracked - set(wheel.namelist()) == set()
    assert {"models/zoo/street/street.onnx", "models/zoo/street/street-small.onnx", "gridnode/py.typed"} <= tracked


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "gridnode",
        "scheduler",
        "transport",
        "models",
        "simulator",
    }


def test_the_detectors_keep_their_size(wheel):
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    assert sizes["models/zoo/street/street.onnx"] <= 1_500_000
    assert sizes["models/zoo/street/street-small.onnx"] <= 400_000


@pytest.mark.parametrize("name", ["runtime.txt", "dev.txt", "bench.txt", "bootstrap.txt"])
def test_every_locked_package_has_a_version_and_hashes(name):
    entries = re.split(r"\n(?=\S)", (LOCKS / name).read_text().strip())
    assert len(entries) > 3
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]
        assert "://" not in entry, entry[:80]


def test_the_environment_for_developing_is_the_one_for_running_and_more():
    def pins(name):
        return set(re.findall(r"^([a-z0-9-]+==[^ \\]+)", (LOCKS / name).read_text(), re.MULTILINE))

    assert pins("runtime.txt") < pins("dev.txt")
    assert "fastecdsa==4.0.0" in pins("runtime.txt")  # 2.3.2, which libp2p asks for, needs a compiler
    assert not {pin for pin in pins("dev.txt") if pin.startswith("torch==")}


def test_a_wrong_python_is_named_with_a_remedy(tmp_path):
    """The set-up script must run on any Python 3; told here to find none that will do."""
    program = (
        (ROOT / "packaging" / "environment.py")
        .read_text()
        .replace("NEWEST, OLDEST = (3, 13), (3, 11)", "NEWEST, OLDEST = (3, 99), (3, 98)")
    )
    copy = tmp_path / "packaging" / "environment.py"
    (tmp_path / "packaging" / "lock").mkdir(parents=True)
    for name in ("bootstrap.txt", "runtime.txt"):
        (tmp_path / "packaging" / "lock" / name).write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    copy.write_text(program)
    done = subprocess.run(
        [sys.executable, str(copy), "runtime"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 1
    assert "gridnode needs CPython" in done.stderr
    assert "remedy: install one" in done.stderr
