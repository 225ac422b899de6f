# Every target starts from a bare machine with Python 3.11 and make.
# The environment is made anew when setup.cfg, pyproject.toml or constraints.txt change.
PYTHON ?= python3.11
VENV ?= .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_DIR ?= runs/demo
PYTEST_ARGS ?=
# Test files side by side; one thread each, since tests are many small computations.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile

.PHONY: help demo demo-ddl test test-slow lint bench docs clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	rm -rf build nestling.egg-info
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)  ## Train one nested encoder, measure 27 budgets, export three slices, prove them
	HF_HUB_OFFLINE=1 $(RUN)/nestling train recipe=delta_encoder/demo output_dir=$(DEMO_DIR) --resume

demo-ddl: $(STAMP)  ## Train all six residual variants on bytes, put them into one table, draw the explorer
	HF_HUB_OFFLINE=1 $(RUN)/nestling train recipe=ddl/demo --all-variants output_dir=$(DEMO_DIR)-ddl --resume
	$(RUN)/nestling explore $(DEMO_DIR)-ddl --snapshot $(DEMO_DIR)-ddl/explorer.svg

test: $(STAMP)  ## Lint, type-check and run the default test suite with coverage
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN)/python -m pytest $(SIDE_BY_SIDE) --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

test-slow: $(STAMP)  ## Run the tests marked slow as well
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN)/python -m pytest $(SIDE_BY_SIDE) -m "slow or not slow" $(PYTEST_ARGS)

lint: $(STAMP)  ## ruff and mypy --strict
	$(RUN)/ruff check .
	$(RUN)/mypy

bench: $(STAMP)  ## Run every benchmark suite; JSON goes to runs/bench
	$(RUN)/nestling bench all --output runs/bench

docs: $(STAMP)  ## Write the generated tables and plots of docs/ from the measured JSON
	$(RUN)/python -m nestling.recipes.docs_tables

clean:  ## Remove the environment and everything runs have written
	rm -rf $(VENV) build nestling.egg-info runs
