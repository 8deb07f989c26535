# The front door for people and CI. `make run` and `make test` do all the set-up they need.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.orch-ready
RECIPE ?= recipes/quickstart.json

.PHONY: help env run test test-faults check format golden schema bench clean-env

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

env: $(STAMP) ## make the environment in .venv

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "orch needs Python 3.11 to 3.13; $$($(PYTHON) --version) was found. Set PYTHON=…"; exit 2; }
	@echo "Setting up $(VENV) (about a minute and 7 GB the first time)"
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet 'uv>=0.9,<1'; }
	UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --quiet --inexact --python $(BIN)/python --extra cpu --extra dev
	@touch $@

run: $(STAMP) ## serve, benchmark and tune with the quickstart recipe (RECIPE=… for another)
	$(BIN)/python orch.py $(RECIPE)

test: check ## lint, types, then the whole suite; what this machine lacks is skipped with its reason
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-faults: $(STAMP) ## the whole fault suite: the orchestrator killed at every step and more (an hour)
	ORCH_FAULTS=all $(BIN)/python -m pytest tests/faults tests/life/test_requeue_slurm.py $(PYTEST_ARGS)

bench: $(STAMP) ## measure what is claimed of cost and scale
	$(BIN)/python -m tests.bench.poll_scale
	$(BIN)/python -m tests.bench.load_clients

check: $(STAMP) ## lint, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vermin -q -t=3.6- --no-tips --violations orchestrator/supervisor.py orchestrator/models/stager.py orchestrator/containers/guard.py orchestrator/schedulers/local_jobs.py orchestrator/schedulers/steps.py

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .

golden: $(STAMP) ## write the golden scripts anew; look at the diff before you commit
	$(BIN)/python -m pytest tests/golden --write-golden -q

schema: $(STAMP) ## write the recipe schema and the table of fields anew
	$(BIN)/python orch.py schema > recipes/recipe.schema.json
	$(BIN)/python -m orchestrator.recipe.fields > docs/recipe-fields.md

clean-env: ## remove the environment
	rm -rf $(VENV)
