"""Makes an environment from the pinned locks. Usage: python3 packaging/environment.py runtime|dev|bench

The one for running or developing is in .venv. The one for comparing with peers is in .venv-bench: nobody who works on
gridnode need have Ray and FastAPI, and a daemon measured beside them should not find other libraries than usual.

Runs on any Python 3, so that a wrong version is named instead of failing on syntax. Needs no root, no compiler
and nothing but CPython 3.11 to 3.13 with venv and a package index that pip can reach.

Everything is installed with hashes and without dependency resolution: the locks are complete. Only wheels are
taken, save two sdists of pure Python (varint, python-baseconv), built by the pinned setuptools.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOCKS = ROOT / "packaging" / "lock"
KINDS = {"runtime": ".venv", "dev": ".venv", "bench": ".venv-bench"}
NEWEST, OLDEST = (3, 13), (3, 11)
PACKAGES = ("gridnode", "scheduler", "transport", "models", "simulator")
PURE_SDISTS = ("varint", "python-baseconv")


def fail(what, remedy):
    """Say what is missing and how to get it, and stop."""
    sys.stderr.write("\nset-up stopped: %s\n  remedy: %s\n" % (what, remedy))
    raise SystemExit(1)


def suitable_python():
    """Return the path of a CPython that we support, the running one first."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        path = shutil.which("python3.%d" % minor)
        if path:
            return path
    fail(
        "python3 is %d.%d, gridnode needs CPython 3.11 to 3.13" % sys.version_info[:2],
        "install one, e.g. 'apt install python3.11 python3.11-venv', or call 'make PYTHON=/path/to/python3.12 ...'",
    )


def run(command, what, remedy):
    """Run a command; on failure show what it printed."""
    done = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-4000:])
        fail(what, remedy)


def wanted(kind):
    """Return the fingerprint of what an environment of this kind holds."""
    state = hashlib.sha256()
    for path in [LOCKS / "bootstrap.txt", LOCKS / (kind + ".txt"), ROOT / "pyproject.toml", pathlib.Path(__file__)]:
        state.update(path.read_bytes())
    return state.hexdigest()


def main():
    """Make or complete the environment."""
    kind = sys.argv[1] if len(sys.argv) == 2 else ""
    if kind not in KINDS:
        fail("unknown kind of environment %r" % kind, "call it with %s" % " or ".join(map(repr, KINDS)))
    if sys.platform != "linux":
        fail("this is %s" % sys.platform, "gridnode runs on Linux, x86-64 or aarch64")
    if sys.maxsize < 2**32:
        fail("this Python is 32-bit", "use a 64-bit system: onnxruntime has no 32-bit ARM build")
    environment = ROOT / KINDS[kind]
    for stamp in (environment / ".dev", environment / (".%s" % kind)):
        made_for = "dev" if stamp.name == ".dev" else kind
        if stamp.exists() and stamp.read_text() == wanted(made_for):
            return
    python = suitable_python()
    inside = environment / "bin" / "python"
    sys.stderr.write("set-up: environment for %s in %s\n" % (kind, KINDS[kind]))
    if not (inside.exists() and (inside.parent / "pip").exists()):
        # One without pip was made by another tool, or left half-made.
        run(
            [python, "-m", "venv", "--clear", str(environment)],
            "python3 -m venv does not work",
            "install the venv module, e.g. 'apt install python3-venv'",
        )
    reach = "check that pip can reach a package index: 'pip download --no-deps six'"
    run(
        [
            str(inside),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "-r",
            str(LOCKS / "bootstrap.txt"),
        ],
        "the installer could not be installed",
        reach,
    )
    uv = [str(environment / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(inside), "--no-deps"]
    flags = ["--require-hashes", "--no-build-isolation", "--only-binary", ":all:"]
    for name in PURE_SDISTS:
        flags += ["--no-binary", name]
    run(
        # Compiled now: at the first demo, daemons that all compile at once would keep the first frame waiting, and
        # where PYTHONDONTWRITEBYTECODE is set they would do so each time.
        [*uv, *flags, "--compile-bytecode", "-r", str(LOCKS / (kind + ".txt"))],
        "the locked packages could not be installed",
        reach + "; every package has a wheel for linux x86-64 and aarch64, so no compiler is needed",
    )
    run([*uv, "--no-build-isolation", "-e", str(ROOT)], "gridnode itself could not be installed", "report this")
    # Whatever cannot be compiled, in a checkout that may not be written, is compiled at each start as ever.
    own = [str(ROOT / name) for name in PACKAGES]
    subprocess.run([str(inside), "-m", "compileall", "-q", *own], stdout=subprocess.DEVNULL, check=False)
    # A stub package of an old time, drawn in by libp2p's requirements, hides trio's own types from the type checker.
    for stale in environment.glob("lib/python3*/site-packages/trio-stubs"):
        shutil.rmtree(str(stale))
    (environment / (".%s" % kind)).write_text(wanted(kind))


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    main()
