# Two commands are enough: `make up` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install -qq -c constraints.txt
DEPENDENCIES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help up test check format load demo clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

up: $(VENV)/.up ## Install, convert what is missing, serve (Ctrl-C stops)
	@exec $(BIN)/tidegate up $(ARGS)

test: $(VENV)/.dev ## Install what is needed, run every check and the whole suite
	@TIDEGATE_PYTHON=$(BIN)/python $(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev ## Only the fast checks: lint, types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

demo: $(VENV)/.up ## Real sentences through the running stack
	@$(BIN)/tidegate demo $(ARGS)

load: $(VENV)/.load ## Load test against the running stack (HEADLESS=1: a table and an exit code)
	@$(BIN)/python -m loadtests $(if $(HEADLESS),--headless) $(ARGS)

clean: ## Remove the environment and everything built (not your models)
	rm -rf $(VENV) .tidegate .model_repository.staging build *.egg-info

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name it with PYTHON=..."; exit 1; }
	@echo "creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.up: $(DEPENDENCIES) | $(VENV)/bin/python
	@echo "installing the packages (once, about two minutes) ..."
	@$(PIP) -e '.[gateway,convert,server]'
	@touch $@

$(VENV)/.load: $(VENV)/.up
	@echo "installing the load test's packages ..."
	@$(PIP) -e '.[gateway,convert,server,load]'
	@touch $@

$(VENV)/.dev: $(VENV)/.load
	@echo "installing the test packages ..."
	@$(PIP) -e '.[gateway,convert,server,load,dev]'
	@touch $@
