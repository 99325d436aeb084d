# Every task of the repository; `make` alone lists them.

PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests run test test-guest docs check chaos soak powerloss fuzz bench fmt proto lock clean
.NOTPARALLEL:

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what `make run` needs: Debian packages (as root), .venv with the locked dependencies, .venv/bin/atoll
	@$(PYTHON) scripts/setup.py run

setup-tests: ## as setup, and what the tests and checks need
	@$(PYTHON) scripts/setup.py tests

run: setup ## set up, then run a real pod of two containers, show it and remove it
	@scripts/demo.sh

test: setup-tests ## set up, then run every test (as root)
	@scripts/test.sh

test-guest: ## set up, then run pods in small virtual machines with cgroups v1, hybrid and v2 (as root, some minutes each)
	@$(PYTHON) scripts/setup.py guest
	@scripts/guest-test

check: setup-tests ## format, lint, types, imports and unit tests
	@scripts/check.sh

docs: setup-tests ## build the documentation as a site into build/site; a warning is an error
	@$(BIN)/mkdocs build --quiet --strict

chaos: setup-tests ## strike at every fault point of every use case in every way, and print the matrix (as root, half an hour)
	@$(BIN)/python -m tests.chaos.run

soak: setup-tests ## lives of every kind under random kills and faults for MINUTES (60), with SEED where it is given (as root)
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

powerloss: setup-tests ## lose the power at every write of the stores and start again from each disk it may leave (as root, two minutes)
	@$(BIN)/python -m tests.powerloss.run

fuzz: setup-tests ## feed every decoder of foreign bytes with what a fuzzer makes, for MINUTES (10) in all
	@$(BIN)/python -m tests.fuzz.run --minutes $(or $(MINUTES),10)

bench: setup-tests ## measure Atoll beside the container runtimes that this machine has
	@$(BIN)/python bench/run.py

fmt: ## format the code and fix what the linter can fix
	@$(BIN)/ruff check --quiet --fix-only --exit-zero
	@$(BIN)/ruff format --quiet

proto: ## generate src/atoll/api from its .proto files
	@$(BIN)/python scripts/proto.py

lock: ## pin the dependencies of pyproject.toml, with hashes, in the two lock files
	@$(PYTHON) scripts/lock.py

clean: ## remove what make made
	rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	find src tests scripts bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
