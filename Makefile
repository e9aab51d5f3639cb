# One command a chore, the same by hand and in CI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test lint format docs bench fuzz soak kill clean

help:
	@echo "make demo    export, verify and bench a network that decides, beside static ones of the same training"
	@echo "make test    run the tests"
	@echo "make lint    check style, types and the direction of imports"
	@echo "make docs    build the site of docs/ into build/site; a broken link fails"
	@echo "make bench   print the benchmarks of docs/performance.md"
	@echo "make fuzz    give hostile files to every reader (READER=, CASES=, SEED=, CASE=)"
	@echo "make soak    run a network a million times, and watch memory and results (SCALE=, SEED=)"
	@echo "make kill    kill export, prepare and train in the middle (WORK=, RANDOM_KILLS=, EVERY=, SEED=)"

$(INSTALLED): pyproject.toml $(wildcard setup.py)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/dfs-deploy demo --out build/digits.dfs

test: $(INSTALLED)
	$(BIN)/python -m pytest $(if $(COVERAGE),--cov --cov-report=term:skip-covered)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.dispatch

SEED ?= 0
CASES ?= 10000
SCALE ?= 1
RANDOM_KILLS ?= 100
EVERY ?= 1

fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz $(READER) --cases $(CASES) --seed $(SEED) $(if $(CASE),--case $(CASE))

soak: $(INSTALLED)
	$(BIN)/python -m tests.fuzz.soak --scale $(SCALE) --seed $(SEED)

kill: $(INSTALLED)
	$(BIN)/python -m tests.fuzz.kills $(WORK) --random $(RANDOM_KILLS) --every $(EVERY) --seed $(SEED)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
