# Everything runs in .venv, which the first target that needs it makes; only test-newest has an environment of its own.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
NEWEST := .venv-newest
PYTEST := -m pytest -n auto --dist worksteal

.PHONY: help install train reproduce bench test test-newest test-all docs lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("metafew needs Python 3.11 or newer and $(PYTHON) is %d.%d: type make $(or $(MAKECMDGOALS),install) PYTHON=python3.11" % v)'
	@echo "Making the environment in .venv: about a minute, once."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(READY) ## create the environment in .venv, as every other target does if there is none

bench: $(READY) ## run the benchmarks, which report ratios of times
	$(BIN)/python scripts/benchmark.py $(ARGS)

train: $(READY) ## run the default experiment; ARGS="head=svm norm=batch" changes it
	$(BIN)/python train.py $(ARGS)

reproduce: $(READY) ## run every published table and figure at a small budget (13 hours; needs mini-ImageNet and Caltech-101); repeat to resume
	$(BIN)/python scripts/reproduce.py all $(ARGS)

test: $(READY) ## run the tests, without the slow ones
	$(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

test-newest: ## run the same tests with the newest releases of all dependencies but torch, in .venv-newest
	@$(PYTHON) -m venv $(NEWEST)
	@grep '^torch==' constraints.txt > $(NEWEST)/torch.txt
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(NEWEST)/torch.txt \
		--upgrade --upgrade-strategy eager --editable '.[dev]'
	$(NEWEST)/bin/python $(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY) ## run all tests, including the slow ones, with all optional packages
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[docs,export]' onnxruntime
	$(BIN)/python $(PYTEST) $(ARGS)

docs: $(READY) ## build the pages and the reference of the Python names in site/
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m mkdocs build

lint: $(READY) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

format: $(READY) ## apply automatic style fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environments, caches and pages, never results or data
	rm -rf .venv .venv-newest .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
	find . -name __pycache__ -prune -exec rm -rf {} +
