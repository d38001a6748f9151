# The two commands of the README are `make demo` and `make test`. CI runs `make demo` and `make check`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
XLA_VENV := .venv-xla
CONSTRAINTS := constraints.txt
# The tests' worker processes: more than two cores have work for, since most tests wait, for Slurm's clock or for ranks.
WORKERS ?= 4
PARALLEL := --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder --timeout 900

.PHONY: help install install-dev demo test test-slow test-quick test-gpu test-xla faults check format lint types layers benchmark clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## Create .venv and install hpcgemma with all that its recipes need

# pip (not uv or poetry) is what finds a CPU build of torch where one is at hand; constraints.txt pins every version.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	sh tools/install_venv.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[train,data,vision,evaluation,deepspeed,quantization]'
	@touch $@

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[train,data,vision,evaluation,deepspeed,quantization,dev]'
	@touch $@

demo: install  ## Train, resume-safe, on this machine: the embedded default, in a few minutes
	$(BIN)/hpcgemma submit --profile local --recipe svg_captions_tiny --wait
	$(BIN)/hpcgemma status

test: install-dev  ## Run all tests; installs Slurm and a browser from Debian's packages where it may
	sh tools/install_test_programs.sh slurm browser
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

test-slow: install-dev  ## Run the tests that take long: torch.compile under each strategy, the whole matrix, doubled scenarios
	$(BIN)/python -m pytest $(PARALLEL) -m slow

test-quick: install-dev  ## Run the tests that need neither Slurm nor a training
	$(BIN)/python -m pytest -m 'not slurm and not slow' --ignore tests/train --ignore tests/local

# Each goes on where it was: outcomes are lines of files in $(FAULTS).
FAULTS ?= runs/faults

faults: install-dev  ## Play the fault matrix, kill and stop runs by the hundred, and write docs/faults.md; takes hours
	sh tools/install_test_programs.sh slurm
	$(BIN)/python -m tests.faults.matrix --folder $(FAULTS)
	$(BIN)/python -m tests.faults.race_takers --trials 100 --folder $(FAULTS)
	$(BIN)/python -m tests.faults.kill_checkpoints --trials 1000 --folder $(FAULTS)
	$(BIN)/python -m tests.faults.kill_checkpoints --asynchronous --trials 1000 --folder $(FAULTS)
	$(BIN)/python -m tests.faults.kill_runs --trials 200 --folder $(FAULTS)
	$(BIN)/python -m tests.faults.stop_runs --trials 200 --through ranks --folder $(FAULTS)
	$(BIN)/python -m tests.faults.stop_runs --trials 200 --through profile --folder $(FAULTS)
	$(BIN)/python -m tests.faults.stall_submits --trials 100 --folder $(FAULTS)
	$(BIN)/python -m tests.faults.report --folder $(FAULTS)

test-gpu: install-dev  ## Run the GPU tests on a machine with one GPU; prints tokens/s, MFU and peak memory per recipe
	$(BIN)/python -m pytest -m gpu -s

# torch_xla 2.9, its last release, needs torch 2.9: an environment of its own, of 7 GB, since PyPI's torch brings CUDA.
$(XLA_VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	sh tools/install_venv.sh $(PYTHON)
	$(PYTHON) -m venv $(XLA_VENV)
	sed '/^torch==/d' $(CONSTRAINTS) > $(XLA_VENV)/constraints.txt
	$(XLA_VENV)/bin/python -m pip install --quiet --constraint $(XLA_VENV)/constraints.txt --editable '.[xla]' pytest
	@touch $@

test-xla: $(XLA_VENV)/.installed  ## Run the tests of XLA on its CPU device, with the torch that torch_xla needs
	$(XLA_VENV)/bin/python -m pytest tests/xla

check: install-dev  ## All that CI runs: format, lint, types, layers, tests
	$(MAKE) lint types layers
	$(MAKE) test

format: install-dev  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install-dev  ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install-dev  ## Check types
	$(BIN)/mypy

layers: install-dev  ## Check that imports point down
	$(BIN)/lint-imports

benchmark: install-dev  ## Time the commands beside bare Python and bare Slurm
	$(BIN)/python -m tests.benchmarks.commands

clean:  ## Remove what make has made
	rm -rf $(VENV) $(XLA_VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
