# Two commands, each of which sets up all it needs:  make demo   make test
# Variables:  TORCH=cpu | cuda | cu130 ...   PYTHON=python3.12   VENV=.venv   DEMO_ARGS=...   PYTEST_ARGS=...
# On a machine with a GPU:  make gpu, or, where a Python with torch for CUDA is there already,  make gpu GPU_PYTHON=python3

PYTHON ?= python3
VENV ?= .venv
# cpu:   the CPU build, a few hundred megabytes (the default).
# cuda:  the build that the package index offers: on Linux CUDA's, several gigabytes.
# cuNNN: the build of that CUDA version from pytorch.org's own index.
TORCH ?= cpu
DEMO_ARGS ?=
PYTEST_ARGS ?=
# Processes that run the tests side by side.
TEST_JOBS ?= 2
JAX_VENV ?= .venv-jax
JAX_CUDA_VENV ?= .venv-jax-cuda
BENCH_ARGS ?=
GPU_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_STAMP := $(VENV)/.torch-$(TORCH)
PACKAGE_STAMP := $(VENV)/.package
CPP_FILES := $(wildcard $(foreach folder,csrc/* csrc/testing/programs,$(folder)/*.h $(folder)/*.cpp))
SOURCES := setup.py pyproject.toml constraints.txt kernels/__init__.py $(CPP_FILES) \
    csrc/solver/generate_methods.py vapo_fast/ode/tableaus.py

.PHONY: help setup demo test test-all lint types sanitize gpu on-device clean
.PHONY: bench bench-quick bench-table bench-curves bench-report bench-setup bench-peers bench-jax bench-jax-cuda
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

setup: $(PACKAGE_STAMP)  ## the virtual environment, the pinned dependencies and the package

demo: setup  ## eight Gaussians in the plane, then scikit-learn's digits; pictures and scores go to out/
	$(BIN)/python examples/eight_gaussians_demo.py
	$(BIN)/python examples/digits_demo.py $(DEMO_ARGS)

# The tests' tensors are small: threads gain nothing, and on a busy machine waiting for one another costs tenfold.
test test-all: export OMP_NUM_THREADS ?= 1

test: lint types  ## lint, types and the tests, but for those marked slow
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

test-all: lint types  ## lint, types and every test
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

lint: setup  ## ruff: rules and formatting; clang-format: formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

types: setup  ## mypy --strict on vapo_fast/, and on what the host calls in kernels/
	$(BIN)/mypy

# Both extensions are built apart, in build/sanitize, and that package comes before the tree's; VAPO_FAST_NATIVE_FROM makes
# the tests check that they have loaded it. Leaks are not reported: the interpreter leaves much behind on purpose. A test
# asks for more memory than there is and expects NULL, as from malloc. libstdc++ is loaded first, so that the sanitizers
# see its exceptions.
SANITIZED := $(CURDIR)/build/sanitize
NATIVE_TESTS := $(filter-out %_cpp.py %_assembly.py,$(wildcard tests/*/test_native*.py tests/*/*/test_native*.py)) \
    tests/core/test_extension.py tests/conformance
preloaded = $(foreach library,asan ubsan stdc++,$(shell $${CXX:-g++} -print-file-name=lib$(library).so))

sanitize: export OMP_NUM_THREADS ?= 1
sanitize: export VAPO_FAST_REQUIRE_NATIVE := 1
sanitize: export VAPO_FAST_BUILD_TESTING := 1
sanitize: setup  ## the native tests under AddressSanitizer and UBSan; the threads' under ThreadSanitizer too
	VAPO_FAST_SANITIZE=thread $(BIN)/python -m pytest tests/native/test_native_cpp.py $(PYTEST_ARGS)
	VAPO_FAST_SANITIZE=address,undefined $(BIN)/python -m pytest tests/native/test_native_cpp.py $(PYTEST_ARGS)
	VAPO_FAST_SANITIZE=address,undefined $(BIN)/python setup.py -q \
	    build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$(preloaded)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=$(SANITIZED)/lib VAPO_FAST_NATIVE_FROM=$(SANITIZED)/lib \
	    $(BIN)/python -P -m pytest -p no:cacheprovider -m "not slow" $(NATIVE_TESTS) $(PYTEST_ARGS)

# Each measures every arm that is installed, and names those that are not; BENCH_ARGS, see python -m benchmarks run -h.
bench: bench-setup  ## the benchmarks, through pytest-benchmark (10 minutes; all of it: PYTEST_ARGS=--bench-full)
	$(BIN)/python -m pytest benchmarks --benchmark-only $(PYTEST_ARGS)

# One thread: on a machine with other work, threads that wait for each other would take many times as long.
bench-quick: bench-setup  ## one small case of every kind, after a part of the conformance suite, in three minutes
	$(BIN)/python -m benchmarks run --select quick --threads 1 --rounds 5 --round-seconds 0.05 --case-seconds 30 --budget-seconds 140 $(BENCH_ARGS)

bench-table: bench-setup  ## what native must show, in one run and held against its targets; then kernels one by one
	$(BIN)/python -m benchmarks table $(BENCH_ARGS)
	$(BIN)/python -m benchmarks kernels

bench-curves: bench-setup  ## error against time, for the plots
	$(BIN)/python -m benchmarks run --select curves $(BENCH_ARGS)

bench-report: setup  ## write docs/benchmarks.md, all tables, plots and the README's table from benchmarks/results/
	$(BIN)/python -m benchmarks report

bench-setup: setup bench-peers bench-jax

bench-peers: $(VENV)/.peers  ## what the benchmarks measure against: torchdiffeq, torchode, torchebm, SciPy

bench-jax: $(JAX_VENV)/.installed  ## and diffrax with JAX, in an environment of their own

bench-jax-cuda: $(JAX_CUDA_VENV)/.installed  ## and for make gpu: JAX for CUDA, several gigabytes

$(VENV)/.peers: constraints.txt $(PACKAGE_STAMP)
	@$(PIP) install -q -c constraints.txt torchdiffeq torchode torchebm scipy
	@touch $@

$(JAX_VENV)/.installed: benchmarks/peers/jax-constraints.txt
	@echo "installing JAX and diffrax in $(JAX_VENV)"
	@$(PYTHON) -m venv $(JAX_VENV)
	@$(JAX_VENV)/bin/python -m pip --disable-pip-version-check install -q -c $< diffrax jax
	@touch $@

$(JAX_CUDA_VENV)/.installed: benchmarks/peers/jax-constraints.txt
	@echo "installing JAX for CUDA and diffrax in $(JAX_CUDA_VENV)"
	@$(PYTHON) -m venv $(JAX_CUDA_VENV)
	@$(JAX_CUDA_VENV)/bin/python -m pip --disable-pip-version-check install -q -c $< diffrax "jax[cuda12]"
	@touch $@

# GPU_PYTHON: an interpreter that has torch for CUDA, triton and pytest; it is used as it is and nothing is installed.
# GPU_PYTHON names an interpreter to use as it is; else the environment in VENV gets torch for CUDA and the peers.
# GPU_ARGS="--out DIR" leaves results and logs in DIR; --only STEP runs some of it; python -m benchmarks.gpu --help.
gpu:  ## on a CUDA machine: conformance, sanitizer, benchmarks in 8 minutes (GPU_PYTHON=python3: nothing is installed)
ifneq ($(GPU_PYTHON),)
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.gpu $(GPU_ARGS)
else
	@$(MAKE) --no-print-directory on-device TORCH=$(if $(filter cpu,$(TORCH)),cuda,$(TORCH))
endif

on-device: setup bench-peers
	@echo "JAX for CUDA comes next; without it, make gpu measures the other peers"
	@$(MAKE) --no-print-directory bench-jax-cuda || { rm -rf $(JAX_CUDA_VENV); echo "JAX for CUDA could not be installed: its arms are left out"; }
	$(BIN)/python -m benchmarks.gpu $(GPU_ARGS)

clean:  ## remove what was built; the environment in VENV and out/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f vapo_fast/_native*.so vapo_fast/_native_build.json $(PACKAGE_STAMP)

# pip, and not python, is what tells that an environment is whole: a creation that fails midway leaves only the latter.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11-3.13 or name one: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"error: Python 3.11-3.13 is needed, $(PYTHON) is {sys.version.split()[0]}; name another: make PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Local builds sort above plain ones, so "+cpu" is asked for by name first: wherever pip is already set up to look, then
# on pytorch.org; the plain wheel is the CPU build on macOS, and the last resort elsewhere.
$(TORCH_STAMP): constraints.txt | $(BIN)/pip
	@rm -f $(VENV)/.torch-*
	@echo "installing torch $(TORCH_VERSION) (TORCH=$(TORCH))"
	@case "$(TORCH)" in \
	cpu) \
	    { [ "$$(uname -s)" = Linux ] && { \
	        $(PIP) install -q -c constraints.txt "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || \
	        $(PIP) install -q --no-deps --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
	            "torch==$(TORCH_VERSION)+cpu" 2>/dev/null; }; } || \
	    $(PIP) install -q -c constraints.txt "torch==$(TORCH_VERSION)" ;; \
	cuda) \
	    { ! $(PIP) show torch 2>/dev/null | grep -q '^Version:.*+cpu' || $(PIP) uninstall -q -y torch; } && \
	    $(PIP) install -c constraints.txt "torch==$(TORCH_VERSION)" && \
	    $(BIN)/python -c 'import sys, torch; sys.exit(None if torch.version.cuda else "error: the index offered a torch without CUDA; name a build, for example make TORCH=cu130")' ;; \
	cu[0-9]*) \
	    $(PIP) install --index-url https://download.pytorch.org/whl/$(TORCH) "torch==$(TORCH_VERSION)+$(TORCH)" ;; \
	*) \
	    echo "error: TORCH must be cpu, cuda or a CUDA build such as cu130, got '$(TORCH)'" >&2; exit 2 ;; \
	esac
	@touch $@

# Editable, so that edits need no reinstall; a change to what is built or pinned does, and is what the stamp watches.
# The build's own requirements are installed first, pinned like the rest; .ci/run tries the isolated build.
$(PACKAGE_STAMP): $(SOURCES) $(TORCH_STAMP)
	@echo "installing the package and its pinned dependencies"
	@$(PIP) install -q -c constraints.txt setuptools pybind11 ninja
	@$(PIP) install -q -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@
