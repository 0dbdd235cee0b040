# One line a target; .ci/run calls the same ones. PYTHON chooses the interpreter, ARGS goes to the command.
PYTHON ?= python3
RUN = .venv/bin/python -P -m

.PHONY: setup setup-dev demo test test-fast test-slow check lock lock-check accelerated bench-peers clean

setup: ## environment for running
	@$(PYTHON) packaging/environment.py runtime

setup-dev: ## environment for developing
	@$(PYTHON) packaging/environment.py dev

demo: setup ## three nodes on loopback, street video, a node killed half way
	@$(RUN) gridnode demo $(ARGS)

test: setup-dev ## all tests
	@.venv/bin/pytest -q $(ARGS)

test-fast: setup-dev ## without real daemons
	@.venv/bin/pytest -q -m "not slow" $(ARGS)

test-slow: setup-dev ## only real daemons
	@.venv/bin/pytest -q -m slow $(ARGS)

check: setup-dev ## style, types, directions between packages
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

lock: setup-dev ## resolve the locks anew
	@packaging/lock/compile.sh .venv/bin/uv

lock-check: setup-dev ## every locked package has a wheel for both machines and all three Pythons
	@.venv/bin/python packaging/lock/check.py .venv/bin/uv

accelerated: setup-dev ## core and simulator compiled for long experiments (needs a C compiler): .venv/bin/gridnode-accelerated
	@.venv/bin/python packaging/accelerate.py

bench-peers: ## beside in-process onnxruntime, gRPC, zenoh, FastAPI and Ray Serve: docs/BENCHMARKS.md
	@$(PYTHON) packaging/environment.py bench
	@.venv-bench/bin/python -m benches.peers $(ARGS)

clean:
	@rm -rf .venv .venv-bench build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
