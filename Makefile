# Everything a developer runs. Needs Python 3.11 or newer and make; no root, no Docker.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# 3.12 and 3.11 come first: every dependency has a wheel for them.
PYTHONS ?= python3.12 python3.11 python3.13 python3.14 python3 python
BIN := .venv/bin
ENVIRONMENT := .venv/.installed
# A test starts several processes; a pool of threads in each would make them fight for the cores.
QUIET_THREADS := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}
# The page in a browser: built from web/ with types of the API that this very tree has.
PAGE := api/page_files/index.html
# A folder without web/, such as an unpacked package, has the page already or goes without.
PAGE_IF_ANY := $(if $(wildcard web/package.json),$(PAGE))
PAGE_SOURCES := $(shell find web -name node_modules -prune -o -type f ! -name schema.ts ! -name '.*' -print 2>/dev/null)
API_SOURCES := $(shell find api models_registry workers/distill/config -name '*.py' 2>/dev/null) models_registry/catalog.json
BROWSER := .venv/.browser
# Every process would compile what it imports anew, which takes longer than many a test.
BYTECODE := PYTHONDONTWRITEBYTECODE=
# What tests share is started once where they run in one process, in the order of tests/conftest.py.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-fast fuzz drill check flower gpu docs catalog web package measurements up clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(ENVIRONMENT) $(PAGE_IF_ANY) ## Teacher to downloaded student on this machine, in one go
	@$(BIN)/retort demo

test: check $(BROWSER) ## All checks, then the whole test suite
	@echo "test: the whole suite"
	@$(QUIET_THREADS) $(BYTECODE) $(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: $(ENVIRONMENT) $(PAGE_IF_ANY) ## Quick tests, a minute: no server, no process, no whole run
	@echo "test-fast: without journeys, slow tests, those in tests/medium.txt, and checks of shapes"
	@$(QUIET_THREADS) $(BYTECODE) $(BIN)/python -m pytest $(SIDE_BY_SIDE) \
	  -m "not slow and not medium and not journey" --jaxtyping-packages=

fuzz: $(ENVIRONMENT) ## 10,000 damaged uploads (COUNT=n SEED=n), 100 odd requests a route; many minutes
	@$(QUIET_THREADS) $(BIN)/python -m tests.drills.mutated_uploads --count $(or $(COUNT),10000) \
	  $(if $(SEED),--seed $(SEED))
	@$(QUIET_THREADS) ODD_REQUESTS=100 $(BIN)/python -m pytest -n 0 --timeout 7200 \
	  tests/api/test_openapi.py -k OddRequests

drill: $(ENVIRONMENT) ## Kill every process of a running service at random (KILLS=n SEED=n SLOTS=n); an hour
	@$(QUIET_THREADS) $(BIN)/python -m tests.drills.kills --kills $(or $(KILLS),1000) \
	  $(if $(SEED),--seed $(SEED)) $(if $(SLOTS),--slots $(SLOTS))

check: $(ENVIRONMENT) $(PAGE_IF_ANY) ## Lint, format, types, import contracts
	@echo "check: lint, format, types, import contracts"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet > /dev/null || { echo "check: run '$(BIN)/ruff format'" >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > .venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }

# Its pins collide with the service's, so Flower has an environment of its own.
flower: $(ENVIRONMENT) ## Federated methods under Flower's SuperLink, compared with the engine (minutes)
	@echo "flower: .venv/flower from examples/flower/requirements.txt"
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv/flower
	@$(BIN)/uv pip install --quiet --compile-bytecode --python .venv/flower/bin/python \
	  -r examples/flower/requirements.txt
	@$(QUIET_THREADS) PYTHONPATH=. .venv/flower/bin/python examples/flower/check.py $(METHODS)

gpu: ## Tests and train-step benchmark on a CUDA machine; installs nothing from a registry
	@scripts/gpu.sh

docs: $(ENVIRONMENT) ## The documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: site/index.html"

catalog: $(ENVIRONMENT) ## Write what is generated: catalog.json, docs, formats.py, metrics.py, .env.example
	@echo "catalog: catalog.json, docs/methods.md, docs/formats.md, retort/formats.py, retort/metrics.py, .env.example"
	@$(BIN)/python -m workers.export_catalog
	@$(BIN)/python -m models_registry.settings > .venv/env.example
	@mv .venv/env.example .env.example

web: $(ENVIRONMENT) $(PAGE) ## Build the page that the API serves at / (api/page_files)

package: $(ENVIRONMENT) $(PAGE_IF_ANY) ## The wheel, with the page in it, in dist/
	@rm -rf build
	@$(BIN)/uv build --wheel --no-build-isolation --quiet --python $(BIN)/python --out-dir dist
	@echo "package: $$(ls dist/*.whl)"

measurements: $(ENVIRONMENT) ## Make the tables of docs/measurements.md anew: hours; QUICK=1 tries them
	@$(BIN)/python -m benchmarks.measurements $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

up: $(ENVIRONMENT) $(PAGE_IF_ANY) ## Run the service on this machine (Ctrl-C stops it); OPTIONS=--detach
	@$(BIN)/retort up $(OPTIONS)

clean: ## Remove the environment and caches; data of `up` and `demo` stays
	@echo "clean: .venv and caches"
	@rm -rf api/page_files web/node_modules web/.openapi.* web/src/api/schema.ts
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@rm -rf .import_linter_cache
	@find api models_registry retort workers migrations tests benchmarks -name __pycache__ -prune \
	  -exec rm -rf {} +

# Written anew only where the document has changed: the types made from it take seconds.
web/.openapi.stamp: $(API_SOURCES) | $(ENVIRONMENT)
	@$(BIN)/python -m api > web/.openapi.new
	@cmp -s web/.openapi.new web/.openapi.json || cp web/.openapi.new web/.openapi.json
	@rm web/.openapi.new
	@touch $@

web/.openapi.json: web/.openapi.stamp
	@:

web/node_modules/.installed: web/package-lock.json web/.npmrc scripts/npm.sh | $(ENVIRONMENT)
	@echo "page: installing what it is built with"
	@scripts/npm.sh ci --silent
	@touch $@

web/src/api/schema.ts: web/.openapi.json web/node_modules/.installed
	@scripts/npm.sh run --silent types > /dev/null

$(PAGE): web/src/api/schema.ts web/node_modules/.installed $(PAGE_SOURCES)
	@echo "page: types, then build"
	@scripts/npm.sh run --silent check
	@scripts/npm.sh run --silent build

$(BROWSER): scripts/browser.sh | $(ENVIRONMENT)
	@if scripts/browser.sh; then touch $@; fi

# A candidate is run, not looked up: a version manager's shim may exist without its interpreter.
$(ENVIRONMENT): pyproject.toml constraints.txt
	@set -eu; \
	if [ ! -x $(BIN)/python ]; then \
	  found=; \
	  for candidate in $(PYTHONS); do \
	    if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	      >/dev/null 2>&1; then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: no Python 3.11 or newer with its venv module among: $(PYTHONS)" >&2; \
	    echo "       install one (Debian, Ubuntu: also python3-venv), or name it:" >&2; \
	    echo "       make PYTHONS=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "environment: .venv from $$($$found --version)"; \
	  $$found -m venv .venv; \
	fi; \
	echo "environment: installing dependencies (minutes the first time)"; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore; \
	$(BIN)/python -m pip install -qq -c constraints.txt uv; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[worker,dev]'; \
	touch $@
