# `make help` lists the targets. Variables may be set on the command line or in the environment.

VENV ?= .venv
PYTHON ?= python3

# On Linux, PyPI's torch is the CUDA build, several GB. For the CPU build of the same version:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# What `make train` runs.
ALGO ?= pmpo
ENV ?= dm_control/cartpole-swingup-v0
# Decisions: with the suite's action repeat of 2, two environment steps each.
STEPS ?= 20000
SEED ?= 0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip

.DEFAULT_GOAL := help
.PHONY: help train unit test gpu coverage lint format docs dist clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

train: $(VENV)/.installed-train  ## train ALGO on ENV for STEPS with SEED
	MUJOCO_GL=disabled $(BIN)/sb3-pmpo train --algo $(ALGO) --env $(ENV) -n $(STEPS) \
		--seed $(SEED) --eval-freq $$(( $(STEPS) / 10 )) --tensorboard-log tb --progress
	$(BIN)/sb3-pmpo plot --algo $(ALGO) --env $(ENV) -o logs/learning_curve.png

unit: $(VENV)/.installed-tests  ## run the unit tests alone, in under a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m unit

# pytest runs last, so that its summary ends the output. One thread for each of the two workers; a
# file's tests share what its fixtures train, so they stay with one worker. The files' order is that of
# tests/conftest.py: xdist's own leaves the files of one long test for the end.
test: lint  ## check everything that needs no GPU: lint, then the tests
	OMP_NUM_THREADS=1 MUJOCO_GL=disabled $(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder --durations 20 \
		$(PYTEST_FLAGS)

gpu: $(VENV)/.installed-tests  ## run the tests that need a GPU
	MUJOCO_GL=disabled $(BIN)/python -m pytest -m gpu

# Apart from the tests, whose time it adds a third to.
coverage: PYTEST_FLAGS = --cov
coverage: test  ## the same, and list the lines that no test reaches

lint: $(VENV)/.installed-tests  ## check format, style, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-tests  ## format the code and apply ruff's safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Warnings are errors; then what the builder does not check: local links and public names.
docs: $(VENV)/.installed-docs  ## build the documentation site into docs/_build/html
	OMP_NUM_THREADS=1 MUJOCO_GL=disabled $(BIN)/python -m sphinx -W --keep-going -q -b html \
		docs docs/_build/html
	$(BIN)/python docs/check.py docs/_build/html

dist: $(VENV)/.installed-release  ## build the wheel and the source distribution, and check them
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:  ## remove build outputs and caches, but no virtual environment
	rm -rf build dist docs/_build *.egg-info .coverage .coverage.* htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find sb3_pmpo tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Without the package and what it needs.
$(VENV)/.installed-release: constraints.txt | $(VENV)/pyvenv.cfg
	$(PIP) install -c constraints.txt build twine
	touch $@

# The stamps say what is installed; a changed requirement installs again.

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, because it alone may come from another index: resolved together
# with the rest, its range would take the newest CUDA build. What it depends on comes next.
$(VENV)/.installed-torch: constraints.txt | $(VENV)/pyvenv.cfg
	$(PIP) install --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	touch $@

$(VENV)/.installed-%: setup.cfg pyproject.toml constraints.txt $(VENV)/.installed-torch
	$(PIP) install -c constraints.txt -e '.[$*]'
	touch $@
