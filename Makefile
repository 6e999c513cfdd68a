# `make chat` and `make test` work on a fresh clone that has nothing but Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := src tests benchmarks recipes
# Tests run in one process a core, so each keeps to one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -q

.DEFAULT_GOAL := help
.PHONY: help chat test check lint types imports fast docs compat eval speedrun-tiny clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Two stamps: the package alone is enough to chat; tests need the development extras.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Ossia needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Ossia into $(VENV) (some minutes the first time) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools into $(VENV) ..."
	$(PIP) -e '.[dev]'
	@touch $@

chat: $(VENV)/.installed  ## talk to nano, the model that ships in the package
	@$(BIN)/ossia chat

test: $(VENV)/.installed-dev  ## every test, the slow ones too
	$(PYTEST)

check: lint types imports fast  ## what CI checks: ruff, pyright, import-linter, the fast tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(VENV)/.installed-dev
	$(BIN)/pyright

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

fast: $(VENV)/.installed-dev
	$(PYTEST) -m 'not slow'

docs: $(VENV)/.installed-dev  ## build the documentation, strictly
	$(BIN)/mkdocs build --strict

compat: $(VENV)/.installed-dev  ## drive the server by clients from npm, and an MCP server from there (needs Node 20)
	npm --prefix tests/integration/clients ci
	$(BIN)/python -m pytest -q tests/integration/test_server_npm_clients.py tests/integration/test_tools_mcp.py

eval: $(VENV)/.installed  ## measure the shipped nano on its held-out problems
	$(BIN)/ossia eval nano

speedrun-tiny: $(VENV)/.installed-dev  ## the whole way from text to a model, in minutes on a CPU
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 bash recipes/speedrun.sh tiny

clean:  ## remove what the other targets made
	rm -rf $(VENV) runs/tiny site build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
