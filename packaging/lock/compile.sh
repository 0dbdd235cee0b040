#!/bin/sh
# Writes the lock files anew from pyproject.toml. Usage: packaging/lock/compile.sh PATH_OF_UV
# One resolution serves linux x86-64 and aarch64, CPython 3.11 to 3.13.
set -eu
cd "$(dirname "$0")/../.."
uv=${1:?usage: compile.sh PATH_OF_UV}
compile() { "$uv" pip compile --quiet --universal --python-version 3.11 --override packaging/lock/overrides.txt \
    --generate-hashes --no-header --no-annotate "$@"; }
compile pyproject.toml --output-file packaging/lock/runtime.txt
compile pyproject.toml --extra dev --constraint packaging/lock/runtime.txt --output-file packaging/lock/dev.txt
compile pyproject.toml --extra bench-grpc --extra bench-zenoh --extra bench-fastapi --extra bench-ray \
    --constraint packaging/lock/runtime.txt --output-file packaging/lock/bench.txt
compile packaging/lock/bootstrap.in --output-file packaging/lock/bootstrap.txt
