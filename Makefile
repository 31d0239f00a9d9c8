# Everything here sets up all it needs in a virtual environment of its own, and says what it is doing.
#
#   make demo VENV=somewhere    another environment
#   make demo PYTHON=python3.12 another Python (3.10 or newer)
#   make demo TORCH=torch==2.9  another PyTorch
#   make bench REPORT=somewhere another folder for the report

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TRANSFORMERS ?= transformers>=5.19
PYTEST_ARGS ?=
REPORT ?= build/bench
# Files of tests run side by side, each on one thread: tiny models gain nothing from more.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

BIN := $(VENV)/bin
BUILD := build/$(notdir $(abspath $(VENV)))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NATIVE := pyproject.toml CMakeLists.txt $(wildcard csrc/src/*) src/pia/__init__.py
PYTHON_FILES := src tests tools
say := @echo "pia:"

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-oldest lint format bench bench-batch bench-long bench-replay bench-cache
.PHONY: bench-sources bench-ipad code-model clean
.DELETE_ON_ERROR:

help:
	@echo "make demo         see PIA work: set up, then answer 20 questions plainly and with LOOKAHEAD"
	@echo "make test         run the tests (not the slow ones)"
	@echo "make test-all     run all tests"
	@echo "make test-oldest  run the tests with the oldest Transformers that PIA supports"
	@echo "make lint         check style and types"
	@echo "make bench        replay two recorded traces, then measure on 100 questions; report and plots go to"
	@echo "                  $(REPORT) (REPORT=DIR: elsewhere); the last line is JSON"
	@echo "make bench-batch  batches of 8 against Transformers' own; the last line is JSON"
	@echo "make bench-long   prompts of 32k tokens: prefill, memory, steps; the last line is JSON"
	@echo "make bench-replay only the replay: PIA's drafts beside those of others; the last line is JSON"
	@echo "make bench-sources each source of drafts alone and all in one tree, from an empty cache; the last line is JSON"
	@echo "make bench-ipad   halve the embedded model: in rounds, at once, and from scratch; the last line is JSON (under 40 minutes)"
	@echo "make bench-cache  measure the draft cache alone, at 10 million tokens; the last line is JSON"
	@echo "make code-model   train a small model of Python code, into build/code_model (about an hour of one core)"
	@echo "make setup        only create the environment and build"
	@echo "make clean        remove environments and build outputs"

setup: $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/pia demo

test: $(VENV)/.installed
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed
	@$(PYTEST) $(PYTEST_ARGS)

test-oldest:
	@$(MAKE) --no-print-directory test VENV=.venv-oldest TRANSFORMERS="transformers==5.19.*"

lint: $(VENV)/.installed
	@$(BIN)/ruff check $(PYTHON_FILES)
	@$(BIN)/ruff format --check $(PYTHON_FILES)
	@$(BIN)/mypy --strict src/pia

format: $(VENV)/.installed
	@$(BIN)/ruff check --fix $(PYTHON_FILES)
	@$(BIN)/ruff format $(PYTHON_FILES)

bench: bench-replay $(VENV)/.plots
	$(say) "compiling the demo model's steps, once (minutes)"
	@$(BIN)/pia compile demo || echo "pia: it cannot be compiled here, going on with the model as it is" >&2
	@$(BIN)/pia bench demo --questions 100 --rounds 3 --report $(REPORT)

bench-batch: $(VENV)/.installed
	@$(BIN)/pia bench demo --questions 100 --rounds 3 --batch 8

bench-long: $(VENV)/.installed
	@$(BIN)/python tools/bench_long_context.py

bench-replay: $(VENV)/.installed $(VENV)/.peers
	@$(BIN)/pia replay --budgets 8,16,32,64,auto

bench-sources: $(VENV)/.installed
	@$(BIN)/pia bench demo --compare-sources --questions 100 --rounds 1

bench-ipad: $(VENV)/.plots
	@$(BIN)/python tools/bench_ipad.py

bench-cache:
	@tools/bench_cache.sh

code-model: $(VENV)/.installed
	@$(BIN)/python tools/train_code_model.py --run-dir runs/code --export build/code_model

clean:
	rm -rf build dist .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# What a replay compares with, where it can be had; without it the replay says so and goes on.
$(VENV)/.peers: $(VENV)/.torch
	$(say) "installing Arctic Inference's suffix decoding, to compare with (a minute, the first time)"
	@$(PIP) --no-deps arctic-inference || echo "pia: it cannot be had here, going on without it" >&2
	@touch $@

# What the report's plots are drawn with, where it can be had; without it the report has none.
$(VENV)/.plots: $(VENV)/.installed
	@$(PIP) "matplotlib>=3.8" || echo "pia: Matplotlib cannot be had here, going on without plots" >&2
	@touch $@

# The environment with PyTorch, made once. A CPU build is enough; where an index has none, any build will do.
$(VENV)/.torch:
	$(say) "checking for Python, its headers and a C++ compiler"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "pia: $(PYTHON) is missing or older than 3.10; choose one with 'make PYTHON=...'" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo "pia: $(PYTHON) has no C headers; install them (Debian, Ubuntu: apt-get install python3-dev)" >&2; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
	  || { echo "pia: there is no C++ compiler; install one (Debian, Ubuntu: apt-get install g++)" >&2; exit 1; }
	$(say) "creating the environment $(VENV)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv --quiet $(VENV) 2>/dev/null || { rm -rf $(VENV); \
	  echo "pia: '$(PYTHON) -m venv' failed; install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(say) "installing PyTorch (a large download, the first time)"
	@$(PIP) "$(TORCH)" || { echo "pia: no $(TORCH) for this machine, taking the newest there is"; $(PIP) "torch>=2.6"; }
	@touch $@

# Built without isolation: paths stay the same from build to build, so nothing stale is left and only what changed is compiled.
$(VENV)/.installed: $(VENV)/.torch $(NATIVE)
	$(say) "building and installing PIA"
	@$(PIP) "scikit-build-core>=0.11" "nanobind>=2.4" cmake ninja
	@$(PIP) --no-build-isolation --config-settings=build-dir="$(BUILD)/{wheel_tag}" --editable ".[dev]" "$(TRANSFORMERS)"
	@touch $@
