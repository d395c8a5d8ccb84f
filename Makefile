# make demo | test | mutate | check | format | bench | docs | lock: each makes .venv first. PYTHON=python3.12 chooses the interpreter.

SHELL := /bin/sh
.DEFAULT_GOAL := install
.DELETE_ON_ERROR:
.PHONY: help install demo test mutate check format bench docs lock clean

# The first interpreter that Sightline runs on.
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -E -c '$(SUITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := PIP_USER=0 PIP_REQUIRE_HASHES=0 $(BIN)/python -m pip --disable-pip-version-check install --quiet
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
JOBS ?= 2
TESTS ?= tests
MUTATE ?=

# What a caller's shell sets for other Pythons must not leak into ours.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE := 1

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## */\t/' | expand -t 12

install: .venv/.installed  ## make .venv with the locked packages (what plain make does)

demo: .venv/.installed  ## train, measure and search real photographs; names its page
	$(BIN)/sightline demo --out demo

test: .venv/.installed  ## run the tests (TESTS=tests/unit for some, JOBS=4 for more at a time)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

mutate: .venv/.installed  ## change one line at a time and see which changes no test notices (at most an hour; docs/mutants.md)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutate.py --jobs $(JOBS) $(MUTATE)

check: .venv/.installed  ## lint, formatting, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed  ## run every benchmark; the figures go to docs/results.md by hand, with the command
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: .venv/.installed  ## build the documentation into site/
	$(BIN)/zensical build --clean --strict

lock: .venv/.installed  ## pin the newest packages that fit pyproject.toml, with their hashes
	$(BIN)/uv pip compile pyproject.toml --extra demo --extra detect --extra onnx --extra docs --extra dev --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements.lock
	echo uv | $(BIN)/uv pip compile - --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements-uv.lock

clean:  ## remove what make made
	rm -rf .venv site demo mutants .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# uv installs the lock in a fraction of pip's time; pip follows where only pip is told how to reach packages here.
.venv/.installed: requirements.lock requirements-uv.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Sightline needs Python 3.11, 3.12 or 3.13 and finds none: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c '$(SUITS)' 2>/dev/null || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13: name one that is: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing the locked packages into .venv (about 6 GB with CUDA; minutes on a first run)" >&2
	@$(PIP) --require-hashes -r requirements-uv.lock
	@$(UV) --require-hashes -r requirements.lock || { echo "uv could not: trying pip" >&2; $(PIP) --require-hashes -r requirements.lock; }
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
