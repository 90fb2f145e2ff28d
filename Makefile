# make demo   sets up everything in .venv and runs a federation of three nodes on this machine
# make test   sets up everything and passes all checks and tests
# Both need Python 3.11 or 3.12 and, on Linux and macOS, a C compiler with Python's and GMP's headers.

SHELL := /bin/sh
PYTHON ?= $(firstword $(shell for p in python3.11 python3.12 python3; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo "$$p"; done) python3)
BIN := .venv/bin
MODELS := smollm2-135m mtor-eyes whisper-tiny.en
export MTOR_MODELS ?= $(CURDIR)/.models
# Each node and each engine is a process of its own, and would compile the same files at every start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint types contracts format bench model-check models preflight venv clean

demo: models
	@$(BIN)/mtor demo

test: .venv/dev.stamp
	@$(MAKE) --no-print-directory -j2 check models
	@$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --cov=protocol --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=100

check: lint types contracts

lint: .venv/dev.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

types: .venv/dev.stamp
	@$(BIN)/mypy

contracts: .venv/dev.stamp
	@$(BIN)/lint-imports --no-cache

format: .venv/dev.stamp
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

bench: .venv/dev.stamp models
	@$(BIN)/python bench/engine.py
	@$(BIN)/python bench/gateway.py
	@$(BIN)/python bench/ledger.py

model-check: .venv/dev.stamp
	@$(BIN)/python -m spec.model

models: .venv/stamp
	@for each in $(MODELS); do \
	test -f "$(MTOR_MODELS)/$$each/manifest.json" || $(BIN)/mtor models pull "$$each" || exit 1; done

venv: .venv/stamp

preflight:
	@command -v "$(PYTHON)" >/dev/null || { echo "there is no Python here; install Python 3.11 or 3.12" >&2; exit 1; }
	@"$(PYTHON)" scripts/preflight.py

.venv/stamp: pyproject.toml
	@$(MAKE) --no-print-directory preflight
	@echo "setting up .venv with $(PYTHON) (a few minutes the first time; details in .venv/install.log)"
	@$(PYTHON) -m venv .venv
	@sh scripts/install.sh torch==2.13.0
	@sh scripts/install.sh -e .
	@touch $@

.venv/dev.stamp: .venv/stamp
	@echo "adding what the tests need"
	@sh scripts/install.sh -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
