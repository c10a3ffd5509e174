# make demo   set up .venv, then train, fold, export, verify, bench and bundle on embedded data
# make test   set up .venv, then run the tests, one process on each core
# make lint   set up .venv, then check format, style and types
# make slow   the tests that take minutes, one after another, then the mutants of the folds
# make figures   which stated figures are stale; measure again those that take minutes
# make gpu-check ARGS="--minutes 9"   set up .venv, then prove and time the networks on an NVIDIA GPU

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One wheel holds the CPU and the CUDA providers on Linux x86-64; elsewhere there is only the CPU one.
RUNTIME := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),gpu,cpu)
STAMP := $(VENV)/installed
MUTATION := $(VENV)/mutation-installed

.PHONY: demo test lint slow figures gpu-check clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,$(RUNTIME)]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/resdeploy demo --force

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(MUTATION): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mutation,$(RUNTIME)]'
	touch $(MUTATION)

slow: $(MUTATION)
	$(BIN)/python -m pytest -m slow
	$(BIN)/python tests/mutations/survivors.py

figures: $(STAMP)
	$(BIN)/python -m benchmarks.figures

gpu-check: $(STAMP)
	$(BIN)/python -m benchmarks.cuda $(ARGS)

clean:
	rm -rf $(VENV) demo-out
