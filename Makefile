# Every target sets up what it needs in .venv; nothing is installed outside this folder.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test test-faults lint bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

# uv installs in seconds what pip takes minutes for; a local wheel folder (PIP_FIND_LINKS) is used where there is one
.venv/ready: pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)") \
		--constraint constraints/cpu.txt --editable '.[dev]'
	$(BIN)/uv pip install --quiet --target .venv/quant --no-deps $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)") \
		--constraint constraints/cpu.txt bitsandbytes
	touch $@

setup: .venv/ready  ## virtual environment with pinned dependencies

demo: .venv/ready  ## train the embedded tiny model: random numbers become random (about a minute)
	$(BIN)/python -m alignlab

# bitsandbytes lies apart: where it can be imported, every command that imports peft starts seconds later
test: lint  ## lint, types and every test
	$(BIN)/python -m pytest -n 2 --dist worksteal
	PYTHONPATH=.venv/quant $(BIN)/python -m pytest tests/quant

KILLS ?= 12
test-faults: .venv/ready  ## faults, and runs of every method killed at random instants; KILLS=200 for a long soak
	$(BIN)/python -m pytest tests/faults
	$(BIN)/python tests/soak/soak.py --kills $(KILLS) --each 2

lint: .venv/ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## the benchmarks, one after the other (about ten minutes)
	$(BIN)/python -m benchmarks

clean:  ## remove the virtual environment and caches; runs stay
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis
