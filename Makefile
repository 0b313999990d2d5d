# Every verb sets up what it needs: `make run` and `make test` work on a fresh Debian 12, as root.

SHELL := /bin/bash
# Where this is set, every start of jfsd would compile its modules anew.
unexport PYTHONDONTWRITEBYTECODE
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= /usr/bin/python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/pytest -q
# More arguments for pytest: make test-unit ARGS='-k units -x'
ARGS   ?=

# What the installed environment is made from; when one of these changes it is installed again.
SETUP_SOURCES := pyproject.toml constraints.txt $(wildcard setup.py jfsd/*/*.c jfsd/fuse/*.h)
STAMP := $(VENV)/.stamp

.PHONY: help run test test-unit test-component test-fs test-interop test-system deb rpm check docs fmt bench setup packages clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

run: setup ## Do real work on a volume, warm and cold, then replace its server under a checked load
	@$(BIN)/python tests/demo/run.py

test: setup ## Run all tests
	$(PYTEST) $(ARGS)

test-unit: setup ## Run the tests that need no server
	$(PYTEST) tests/unit $(ARGS)

test-component: setup ## Run the tests against real Redis and S3 servers
	$(PYTEST) tests/component $(ARGS)

test-fs: setup ## Run the tests on real mounts
	$(PYTEST) tests/fs $(ARGS)

test-interop: setup ## Run the tests together with the reference client
	$(PYTEST) tests/interop $(ARGS)

test-system: setup ## Run the tests on a real systemd, in a container
	$(PYTEST) tests/system $(ARGS)

deb: setup ## Build the Debian package into dist/
	@packaging/build-deb

rpm: setup ## Build the RPM package into dist/, for the release that this runs on
	@packaging/build-rpm

bench: setup ## Compare with the reference on this machine; prints ratios
	@$(BIN)/python tests/bench/run.py $(ARGS)

check: setup ## Lint, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup ## Write the manual pages and what else is made from the program
	$(BIN)/python -m jfsd.cli.manual

fmt: setup ## Format the code and mend what can be mended without thought
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: packages $(STAMP) ## Install what is needed: Debian packages and .venv

packages:
	@packaging/install-debian-packages

# Constraints hold for what builds the packages too, therefore the variable.
$(STAMP): $(SETUP_SOURCES) | packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install -q \
		--disable-pip-version-check --use-pep517 --config-settings editable_mode=compat -e '.[dev,test]'
	touch $@

clean: ## Remove everything that was built or installed here
	rm -rf $(VENV) build dist *.egg-info jfsd/*/*.so
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
