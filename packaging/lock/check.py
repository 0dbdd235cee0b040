"""Checks that every locked package can be installed on all supported machines. Usage: check.py PATH_OF_UV

Asks the installer for a dry run on linux x86-64 and aarch64 with CPython 3.11 to 3.13, wheels only but for the
two pure-Python sdists, hashes required. Needs a package index; downloads metadata only.
"""

import pathlib
import subprocess
import sys
import tempfile

LOCKS = pathlib.Path(__file__).resolve().parent
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
PYTHONS = ("3.11", "3.12", "3.13")


def main() -> int:
    """Print one line per combination; return 1 if any fails."""
    failed = 0
    for platform in PLATFORMS:
        for python in PYTHONS:
            with tempfile.TemporaryDirectory() as target:
                command = [
                    sys.argv[1], "pip", "install", "--dry-run", "--quiet", "--no-deps", "--require-hashes",
                    "--only-binary", ":all:", "--no-binary", "varint", "--no-binary", "python-baseconv",
                    "--python-platform", platform, "--python-version", python, "--target", target,
                    "-r", str(LOCKS / "runtime.txt"),
                ]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            print(f"{platform} CPython {python}: {'ok' if done.returncode == 0 else 'FAILED'}")
            if done.returncode:
                print(done.stderr.strip()[-2000:])
                failed = 1
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
