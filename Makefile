# One command each for everything a person does here. `make` alone lists them.
#
#   PYTHON=python3.12 make test      another interpreter (3.11 or newer)
#   VENV=/tmp/ayf make test          another place for the environment
#   make test ARGS="-k flow_map"     arguments for the tool that runs

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))/bin
STAMP := $(VENV)/.installed
# Stages are started as `python -m pipelines ...`: the environment's Python has to come first.
RUN := PATH="$(BIN):$$PATH" VIRTUAL_ENV="$(BIN:/bin=)" PYTHONNOUSERSITE=1

.DEFAULT_GOAL := help
.PHONY: help install demo repro test test-fast mutants lint format ui bench bench-gpu clean

help: ## list these commands
	@echo "make TARGET, where TARGET is"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## build the environment in .venv (the other commands do it by themselves)

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "There is no '$(PYTHON)' here: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1): Python 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	@echo "Building the environment in $(VENV) (some minutes the first time) ..."
	@"$(PYTHON)" -m venv "$(VENV)"
	@"$(BIN)/python" -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[platform,dev]"
	@touch "$@"

repro: $(STAMP) ## run the whole chain: data, teacher, distillation, evaluation, report
	@$(RUN) ayf repro $(ARGS)

demo: $(STAMP) ## draw digits from a small student that ships with the project: demo.png
	@$(RUN) ayf demo $(ARGS)

# How the tests are shared out: tests/scheduling.py.
PYTEST := python -m pytest --numprocesses 2 --dist loadfile

test: $(STAMP) ## run all tests, two processes at once
	@$(RUN) $(PYTEST) $(ARGS)

test-fast: $(STAMP) ## run those that need neither Ray, Slurm, a server nor a browser: minutes, for daily work
	@$(RUN) $(PYTEST) -m "not slow" $(ARGS)

mutants: $(STAMP) ## change one line of the code at a time, see which changes the fast tests notice
	@$(RUN) python -m tests.mutants $(ARGS)

lint: $(STAMP) ## check style (ruff), types (mypy) and the direction of imports (import-linter)
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) lint-imports

format: $(STAMP) ## rewrite the code in the project's style
	@$(RUN) ruff check --fix-only .
	@$(RUN) ruff format .

ui: $(STAMP) ## open the MLflow pages of all runs
	@$(RUN) ayf ui $(ARGS)

bench: $(STAMP) ## run the benchmarks, each against a named baseline
	@set -e; for file in benchmarks/[a-z]*.py; do \
	  [ -e "$$file" ] || { echo "There are no benchmarks here yet."; exit 1; }; \
	  echo "== $$file"; $(RUN) python "$$file" $(ARGS); done

bench-gpu: $(STAMP) ## measure a GPU: its use by a step, what a step costs, encoding, and the tests that need one
	@$(RUN) python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("There is no CUDA device here: make bench measures the CPU.")'
	@$(RUN) python benchmarks/device_use.py $(ARGS)
	@$(RUN) python benchmarks/device_use.py --compile $(ARGS)
	@for precision in float32 bfloat16; do \
	  $(RUN) python benchmarks/step_cost.py --device cuda --networks mlp dit dit_256_tokens dit_4096_tokens --precision $$precision || exit 1; done
	@$(RUN) python benchmarks/encoding.py
	@$(RUN) $(PYTEST) -m gpu

clean: ## remove scratch, outputs and tool caches (keeps .venv, the MLflow store and DVC's cache)
	rm -rf runs models reports data/latents build dist ./*.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
