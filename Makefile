# Every target sets up what it needs in .venv; `make` alone lists them. PYTHON=... chooses the interpreter (3.11 to 3.13).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

BIN := .venv/bin
JOBS ?= 2
CODE := src tests $(wildcard scripts benchmarks)
SETUP := pyproject.toml scripts/install.sh $(wildcard requirements/*.txt)
FAST := -m pytest -q -n $(JOBS) --dist loadfile -m "not slow and not gpu and not peer and not lm_eval and not seahelm"
DEMO := build/demo

# Nothing that runs here may reach for a hub, or use more threads than there are test processes.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test test-all test-latest crash-test lock check format lint types layers bench gpu-check real-input docs clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | awk -F '\t' '{ printf "make %-11s %s\n", $$1, $$2 }'

demo: .venv/.installed  ## the lab: cold start, SFT continued, DuDi, their evaluation and the report (ten minutes on two cores)
	$(BIN)/dudi demo --output $(DEMO)

test: export OMP_NUM_THREADS := 1
test: .venv/.installed-test  ## the fast tests (JOBS=2 processes)
	$(BIN)/python $(FAST)

test-all: export OMP_NUM_THREADS := 1
test-all: .venv/.installed-test .venv/.installed-peer  ## all tests but those that need a GPU, the comparison with TRL included
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not gpu"

test-latest: export OMP_NUM_THREADS := 1
test-latest:  ## the fast tests with the newest release of everything, in .venv-latest; not in CI
	@bash scripts/install.sh --latest test
	.venv-latest/bin/python $(FAST)

crash-test: export OMP_NUM_THREADS := 1
crash-test: .venv/.installed-test  ## kill -9 at named and at random moments, a full disk, signals: the same end, bit for bit
	$(BIN)/python -m pytest -q tests/failure/test_crash.py tests/failure/test_faults.py

check: lint types layers test  ## what CI runs: lint, types, layers, test

format: .venv/.installed-dev  ## rewrite the code in the project's style
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

lint: .venv/.installed-dev  ## ruff: style and common mistakes
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: .venv/.installed-dev  ## mypy on the package
	$(BIN)/mypy

layers: .venv/.installed-dev  ## import-linter: which module may import which
	$(BIN)/lint-imports --no-cache

# On the Python that has torch, transformers and accelerate already: a machine with a GPU may reach no index.
GPU_PYTHON ?= $(or $(wildcard $(BIN)/python),python3)
gpu-check: export PYTHONPATH := src
gpu-check:  ## the benchmark and the tests that need a CUDA device, on the Python that is there; fails where there is none
	@$(GPU_PYTHON) -c 'import torch; raise SystemExit(not torch.cuda.is_available())' \
	  || { echo "gpu-check: no CUDA device here; run it on a machine with one (nothing was checked)" >&2; exit 1; }
	$(GPU_PYTHON) benchmarks/gpu_check.py
	@$(GPU_PYTHON) -c 'import pytest, hypothesis' || { echo "gpu-check: the tests need pytest and hypothesis" >&2; exit 1; }
	$(GPU_PYTHON) -m pytest -q -m gpu $(shell grep -rl mark.gpu tests)

bench: .venv/.installed-peer  ## the benchmarks of docs/benchmarks.md: CPU seconds, one thread, TRL beside (some hours; MORE="--rounds 1" is shorter)
	$(BIN)/python benchmarks/memory.py --repeats 5
	$(BIN)/python benchmarks/rollouts.py $(MORE)
	$(BIN)/python benchmarks/step.py $(MORE)
	$(BIN)/python benchmarks/cache.py $(MORE)
	$(BIN)/python benchmarks/growth.py $(MORE)
	$(BIN)/python benchmarks/baseline.py $(MORE)

REAL := $(DUDI_DATA_DIR)/sea_instruct_mini
real-input: .venv/.installed  ## the full method on real sentences, from the folder in DUDI_DATA_DIR (up to an hour on two cores)
	@test -d "$(REAL)" || { echo "real-input: set DUDI_DATA_DIR to a folder with sea_instruct_mini/ and qwen_tokenizer/" >&2; exit 2; }
	$(BIN)/python scripts/make_models.py --out build/real --data $(REAL) --format sea_instruct \
	  --tokenizer $(DUDI_DATA_DIR)/qwen_tokenizer --steps 250 --batch 8
	@rm -rf build/real-input
	$(BIN)/dudi run benchmarks/real_input.toml --set data.source=$(REAL) --output build/real-input

docs: export NO_MKDOCS_2_WARNING := 1
docs: .venv/.installed-docs  ## the site, from docs/ into build/site; a link that leads nowhere is an error
	$(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html (search works over HTTP only: python3 -m http.server -d build/site)"

lock:  ## raise the versions in requirements/ to the newest that pyproject.toml accepts
	@$(or $(PYTHON),python3) scripts/lock.py

clean:  ## remove .venv, .venv-latest, build/ and the tools' caches; runs/ stays
	rm -rf .venv .venv-latest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# install.sh leaves one stamp for each extra it installed.
.venv/.installed: $(SETUP)
	@bash scripts/install.sh

.venv/.installed-test: $(SETUP)
	@bash scripts/install.sh test

.venv/.installed-dev: $(SETUP)
	@bash scripts/install.sh test dev

.venv/.installed-peer: $(SETUP)
	@bash scripts/install.sh test peer

# `docs` is locked beside `dev`: they share packages.
.venv/.installed-docs: $(SETUP)
	@bash scripts/install.sh test dev docs
