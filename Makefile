# Needs Rust, Python and make; everything else is put into a virtual environment here. Another Python wants another one:
#   make test PYTHON=python3.14 VENV=.venv-3.14

PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
# How many of CPython's test modules run at a time.
JOBS ?= 2

BIN := $(VENV)/bin
# One for each environment, so that what was built for one Python or system is never taken for another's.
CARGO_TARGET_DIR ?= $(abspath $(VENV))/target
export CARGO_TARGET_DIR

# The reactor by itself: without the `python` feature there is no Python to build against.
REACTOR := --no-default-features
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find src python -name '*.rs' -o -name '*.py' -o -name '*.pyi')
LINTERS := 'ruff>=0.17,<0.18' 'mypy>=2.4,<2.5'

.PHONY: help run build test test-reactor test-python test-cpython test-ecosystem compatibility lint format bench bench-check clean
.NOTPARALLEL:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.hotloop $(VENV)/.examples ## serve the example; PORT=8000 and HOST=127.0.0.1 say where
	@$(BIN)/python examples/serve.py --host $(HOST) --port $(PORT)

build: $(VENV)/.hotloop ## build a release and install it in .venv

test: test-reactor test-python test-cpython ## run all tests

test-reactor: ## the reactor's tests, without Python
	cargo test $(REACTOR)

test-python: $(VENV)/.hotloop $(VENV)/.tests ## hotloop's own tests
	$(BIN)/python -m pytest

test-cpython: $(VENV)/.hotloop ## CPython's asyncio tests, on hotloop
	$(BIN)/python tests/cpython/run.py --jobs $(JOBS)

test-ecosystem: $(VENV)/.hotloop $(VENV)/.ecosystem ## other people's servers, clients and databases on hotloop
	$(BIN)/python -m pytest tests/ecosystem

compatibility: $(VENV)/.hotloop $(VENV)/.ecosystem ## the same, and docs/compatibility.md says how it went
	$(BIN)/python -m pytest tests/ecosystem --compatibility docs/compatibility.md

lint: $(VENV)/.hotloop $(VENV)/.linters ## check format, style and types
	cargo fmt --check
	PYO3_PYTHON=$(abspath $(BIN))/python cargo clippy --all-targets -- --deny warnings
	cargo clippy --all-targets $(REACTOR) -- --deny warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest hotloop._core

format: $(VENV)/.linters ## put all sources into the project's format
	cargo fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.hotloop $(VENV)/.peers ## compare event loops, into docs/; ROWS=http or LOOPS=asyncio,hotloop for a part
	$(BIN)/python -m benchmarks $(if $(ROWS),--rows $(ROWS)) $(if $(LOOPS),--loops $(LOOPS)) $(ARGS)

bench-check: $(VENV)/.hotloop ## fail if scheduling costs more than it did; UPDATE=1 keeps what it costs now
	$(BIN)/python -m benchmarks.check $(if $(UPDATE),--update)

clean: ## remove all that was built and installed
	rm -rf $(VENV) target benchmarks/load/target benchmarks/reactor/target dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.hotloop: $(SOURCES) | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --force-reinstall --no-deps .
	@touch $@

$(VENV)/.tests: tests/requirements.txt | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --requirement tests/requirements.txt
	@touch $@

$(VENV)/.ecosystem: tests/ecosystem/requirements.txt | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --requirement tests/ecosystem/requirements.txt
	@touch $@

$(VENV)/.examples: examples/requirements.txt | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --requirement examples/requirements.txt
	@touch $@

$(VENV)/.peers: benchmarks/requirements.txt | $(VENV)/pyvenv.cfg
	@sed '/^#/d' $< | while read -r package; do \
	  $(BIN)/pip install --quiet --only-binary :all: "$$package" </dev/null || echo "$$package: not installed, and left out"; \
	done
	@touch $@

$(VENV)/.linters: Makefile | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet $(LINTERS)
	@touch $@
