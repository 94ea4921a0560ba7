# Two commands are enough: `make up` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install -qq -c constraints.txt
DEPENDENCIES := pyproject.toml constraints.txt
# A program of Debian's, installed where it is missing and we may: $(call DEBIAN,program,package).
DEBIAN = command -v $(1) >/dev/null || { [ "$$(id -u)" = 0 ] && { apt-get install -y -qq $(2) || \
	{ apt-get update -qq && apt-get install -y -qq $(2); }; } >/dev/null 2>&1; } \
	|| { echo "$(1) is not installed: apt-get install -y $(2)"; exit 2; }
# The load generator is compiled: a Python one would be what limits the figures.
WRK = $(call DEBIAN,wrk,wrk)
# Each peer in an environment of its own, with the same engine and tokeniser as ours.
PEERS := fastapi_onnx litserve_app bentoml_app
PEER_fastapi_onnx := fastapi 'uvicorn[standard]'
PEER_litserve_app := litserve
PEER_bentoml_app := bentoml
PEER_ENGINE := $(shell grep -E '^(numpy|onnxruntime|tokenizers)==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help up test check format load demo bench bench-peers clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

up: $(VENV)/.up ## Install, convert what is missing, serve (Ctrl-C stops)
	@exec $(BIN)/tidegate up $(ARGS)

test: $(VENV)/.dev ## Install what is needed, run every check and the whole suite
	@TIDEGATE_PYTHON=$(BIN)/python $(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(call DEBIAN,redis-server,redis-server)
	@$(call DEBIAN,nginx,nginx-light)
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev ## Only the fast checks: lint, types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

demo: $(VENV)/.up ## Real sentences through the running stack
	@$(BIN)/tidegate demo $(ARGS)

load: $(VENV)/.load ## Load test against the running stack (HEADLESS=1: a table and an exit code)
	@$(BIN)/python -m loadtests $(if $(HEADLESS),--headless) $(ARGS)

bench: $(VENV)/.load ## Measure what each layer costs against its floor (about 5 minutes)
	@$(WRK)
	@$(BIN)/python -m loadtests.bench $(ARGS)

bench-peers: $(VENV)/.load $(PEERS:%=.venv-bench/%/.installed) ## Measure against FastAPI, LitServe and BentoML
	@$(WRK)
	@$(BIN)/python -m loadtests.bench peers $(ARGS)

clean: ## Remove the environment and everything built (not your models)
	rm -rf $(VENV) .tidegate .model_repository.staging build *.egg-info

.venv-bench/%/.installed:
	@echo "installing the peer $* (once) ..."
	@$(PYTHON) -m venv .venv-bench/$*
	@.venv-bench/$*/bin/pip --disable-pip-version-check install -qq $(PEER_$*) $(PEER_ENGINE)
	@touch $@

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name it with PYTHON=..."; exit 1; }
	@echo "creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.up: $(DEPENDENCIES) | $(VENV)/bin/python
	@echo "installing the packages (once, about two minutes) ..."
	@$(PIP) -e '.[gateway,convert,server,charts]'
	@touch $@

$(VENV)/.load: $(VENV)/.up
	@echo "installing the load test's packages ..."
	@$(PIP) -e '.[gateway,convert,server,charts,load]'
	@touch $@

$(VENV)/.dev: $(VENV)/.load
	@echo "installing the test packages ..."
	@$(PIP) -e '.[gateway,convert,server,charts,load,dev]'
	@touch $@
