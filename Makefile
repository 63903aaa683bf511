# Every target first installs petscale into .venv if it is not there: `make demo` and `make test` need nothing before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Hundreds of processes of the tests import the same files: they are compiled once.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint format docs chaos bench bench-gate lock sbom audit clean

demo: $(STAMP)
	$(BIN)/petscale demo

# Three streams at once. Tests that start clusters wait for their processes most of the time: the others use the cores.
# To collect all tests takes half a minute of a core, so that two streams look only where their marks stand.
MARKED = $$(grep -rl --include='test_*.py' mark.$(1) tests)
test: $(STAMP)
	@$(BIN)/python -m pytest -q -m beside $(call MARKED,beside) > $(VENV)/beside.log 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest -q -m "slow and not beside" $(call MARKED,slow) > $(VENV)/slow.log 2>&1 & slow=$$!; \
	$(BIN)/python -m pytest -q -m "not slow and not beside"; others=$$?; \
	wait $$slow; slow=$$?; wait $$beside; beside=$$?; \
	echo "slow:"; cat $(VENV)/slow.log; echo "beside:"; cat $(VENV)/beside.log; \
	[ $$others = 0 ] && [ $$slow = 0 ] && [ $$beside = 0 ]

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of docs/ as a site in site/; a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# Every long command killed at random moments and run again: docs/results/reliability.md.
KILLS := 300
chaos: $(STAMP)
	$(BIN)/python benchmarks/chaos.py $(KILLS)

# petscale beside other libraries, and the accuracy of the demo: docs/results/performance.md; the gate compares with it.
bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.performance

bench-gate: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.performance --gate

# requirements.lock anew: what pip would install, each file with its hash; asks the package index.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --report $(VENV)/report.json -c constraints.txt hatchling ".[dev]"
	$(BIN)/python deploy/supply/lock.py $(VENV)/report.json

# What is installed, as CycloneDX.
sbom: $(STAMP)
	$(BIN)/python deploy/supply/bill.py > petscale.cdx.json

# Known vulnerabilities of what the lock names, from the database of osv.dev; only names and versions are sent.
audit: $(STAMP)
	@$(BIN)/python -c 'import socket; socket.create_connection(("api.osv.dev", 443), 10)' 2> /dev/null || \
	{ echo "api.osv.dev cannot be reached from here: nothing was checked"; exit 3; }
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install --quiet pip-audit; }
	$(VENV)/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --vulnerability-service osv

# torch is installed first, so that no other package installs a build with gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "petscale needs Python 3.11 or newer: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

clean:
	rm -rf $(VENV) demo site .mypy_cache .ruff_cache .pytest_cache
