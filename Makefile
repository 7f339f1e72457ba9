# What one can do here. `make` alone lists the targets; every target sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements-dev.lock
STAMP := $(VENV)/.setup.stamp

.DEFAULT_GOAL := help

# Where it is set, every process compiles torch and all else anew: 4 s more at each start, and the tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check fix bench evidence docs-screenshots container-check lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-17s %s\n", $$1, $$2 }'

setup: $(STAMP) ## create .venv with the locked packages (about 6 GB; again only when a lock changes)

demo: $(STAMP) ## two hospitals' nodes on this machine: distil drawn X-rays, pull, train, test; leaves them running (ARGS=--once ends)
	$(BIN)/ppdd demo $(ARGS)

test: $(STAMP) ## run the tests, one process per core
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP) ## format, lint, types and import contracts, as CI runs them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fix: $(STAMP) ## format, mend what can be mended, write the generated pages anew
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .
	$(BIN)/python docs/generate.py

bench: $(STAMP) ## time and peak memory of one distillation step, by engine and number of student steps
	$(BIN)/ppdd bench step --engine reverse --engine unroll --steps 5 --steps 20 $(ARGS)

evidence: $(STAMP) ## distilled against real images, three seeds, on DATA=PATH; report in runs/evidence (goes on where it stopped)
	@test -n "$(DATA)" || { echo "Which X-rays? For example: make evidence DATA=xrays.zip ARGS='--where hospital=a'" >&2; exit 2; }
	$(BIN)/ppdd sweep --data "$(DATA)" --out runs/evidence --ipc 1 --ipc 5 --sigma 0 --sigma 0.1 --seeds 3 $(ARGS)

docs-screenshots: $(STAMP) ## take the guides' pictures anew, on drawn X-rays (some ten minutes; needs chromium)
	$(BIN)/python -m docs.screenshots

container-check: $(STAMP) ## build and run docker compose for real, through a whole job (needs an engine)
	$(BIN)/python deploy/container_check.py $(ARGS)

lock: $(STAMP) ## resolve the dependencies of pyproject.toml anew into the lock files
	$(BIN)/uv pip compile $(COMPILE) -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile $(COMPILE) -o requirements-worker.lock --extra worker --extra dicom pyproject.toml
	$(BIN)/uv pip compile $(COMPILE) -o requirements-dev.lock --extra worker --extra dicom --extra dev pyproject.toml

clean: ## remove .venv and what the tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist

# No host name may enter a lock file: every machine has its own package index.
COMPILE := --quiet --universal --upgrade --generate-hashes --no-emit-index-url --no-header

# uv installs five times faster than pip (44 s against 230 s). It comes from the lock like the rest; it asks the
# index that pip is set up for, and where it cannot, pip does the work.
$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "PPDD needs Python 3.11 or newer; this is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  echo "Python's venv module does not work here (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@sed -n '/^uv==/,/[^\\]$$/p' $(LOCK) > $(VENV)/uv.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.txt
	index="$${PIP_INDEX_URL:-$$($(BIN)/pip config get global.index-url 2>/dev/null)}"; \
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes $${index:+--default-index "$$index"} $(LOCK) \
	  || $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
