# Every target makes its own environment in .venv, once, with the versions of constraints.txt.
PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
BIN := .venv/bin
# Without --no-compile, pip compiles every module of every package; Python compiles those that are used.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# One process per core, at most three: each takes up to 5 GB. The tests of a file share what they train.
# In the order of the folders: files of few long tests would otherwise come last, and one process waits.
PARALLEL := --numprocesses auto --maxprocesses 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-minimum test-exhaustive test-backbones test-ecosystem test-qlora test-ray fuzz lint minimum bench gpu-check docs release clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: .venv/.installed  ## a language model becomes a text encoder: three stages, at most 15 minutes
	$(BIN)/llm2comp demo --out runs/demo

test: .venv/.dev  ## run the tests, with coverage
	$(BIN)/python -m slipcover -m pytest $(PARALLEL) -m "not exhaustive"

test-minimum: .venv-minimum/.dev  ## run the quick tests with the lowest versions allowed
	.venv-minimum/bin/python -m pytest -m "not slow and not exhaustive"

test-exhaustive: .venv/.dev  ## run the cases that the tests leave out, which takes hours; those of an extra need it installed
	$(BIN)/python -m pytest $(PARALLEL) -m exhaustive

test-backbones: .venv/.dev  ## take tiny models of all families, and all recipes, through the stages; writes docs/reference/backbones.md
	LLM2COMP_WRITE_BACKBONES=1 $(BIN)/python -m pytest tests/backbones tests/training/test_shipped_recipes.py

test-ecosystem: .venv/.dev  ## load encoder folders with the clients that people use, each in an environment of its own; writes docs/reference/clients.md
	$(BIN)/python tests/ecosystem/run_clients.py

test-qlora: .venv/.dev  ## train on weights in 4 bits; installs bitsandbytes, which takes 45 MB
	$(PIP) --no-build-isolation --editable '.[qlora]'
	$(BIN)/python -m pytest tests/model/loading/test_four_bit.py tests/training/test_qlora.py

test-ray: .venv/.dev  ## kill workers and drivers of Ray while they encode; installs Ray, which takes 240 MB
	$(PIP) --no-build-isolation --editable '.[ray]'
	$(BIN)/python -m pytest tests/inference/bulk

fuzz: .venv/.dev  ## run CASES=100000 cases of the fuzz tests, in place of the 2,000 of `make test`
	LLM2COMP_FUZZ_CASES=$(or $(CASES),100000) $(BIN)/python -m pytest tests/fuzz

lint: .venv/.dev  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src

minimum: .venv/.dev  ## check that the lowest versions allowed go together, without installing them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed \
		--no-build-isolation --constraint constraints-minimum.txt '.[dev]'

bench: .venv/.dev  ## measure speed and memory; writes to benchmarks/results
	@set -e; for script in $(filter-out benchmarks/gpu_check.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

gpu-check: .venv/.installed  ## check a GPU in at most 8 minutes: numbers, memory, speed; exits with 1 if a check fails
	$(BIN)/python benchmarks/gpu_check.py

docs: .venv/.docs  ## build the documentation into site/; warnings and broken links are errors
	$(BIN)/python docs/generate_reference.py
	$(BIN)/zensical build --strict --clean

release: .venv/.installed  ## train the released encoder anew, from nothing (see README for the time)
	$(BIN)/llm2comp train recipes/smollm2-135m.yaml --out runs/release
	$(BIN)/python tools/pack_release.py runs/release smollm2-135m-llm2comp

clean:  ## remove what the other targets made, except runs/
	rm -rf .venv .venv-minimum site .pytest_cache .mypy_cache .ruff_cache
	rm -f docs/reference/commands.md docs/reference/recipe.md docs/reference/study.md

# torch first and by its exact version: a CPU build that is at hand is then taken as it is.
.venv/.torch: constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (once) ..."
	$(PIP) "$$(grep '^torch==' constraints.txt)" hatchling editables
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(PIP) --no-build-isolation --editable '.[report]'
	@touch $@

.venv/.dev: .venv/.installed
	$(PIP) --no-build-isolation --editable '.[dev,onnx,openvino]'
	@touch $@

.venv-minimum/.dev: constraints-minimum.txt pyproject.toml
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet --disable-pip-version-check \
		"$$(grep '^torch==' constraints.txt)" hatchling editables
	.venv-minimum/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints-minimum.txt --no-build-isolation --editable '.[dev]'
	@touch $@

.venv/.docs: .venv/.installed
	$(PIP) --no-build-isolation --editable '.[docs]'
	@touch $@
