# Each target makes the virtual environment it needs; nothing has to be installed before but Python (3.11 or later) and make.  Tests
# that need more (a C compiler, redis-server) are skipped without it, and say so.

PYTHON ?= python3
VENV ?= .venv
PYTHONS ?= 3.11 3.12 3.13
PYTEST_OPTIONS ?=
# Test files side by side; each file stays in one process.
JOBS ?= 2

# A virtual environment is as new as what is built into it.
STAMP = $(VENV)/.made
TEST_STAMP = $(VENV)/.made-test
DEV_STAMP = $(VENV)/.made-dev
SOURCES = pyproject.toml setup.py $(wildcard memwatch/*/*.[ch])
# Setuptools tells whoever installs for editing to beware of folders; there is nothing here to beware of.
PIP = PYTHONWARNINGS="ignore:Editable" $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-all lint bench docs leaks clean

demo: $(STAMP)
	@$(VENV)/bin/memwatch demo

test: $(TEST_STAMP)
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_OPTIONS)

test-all:
	@set -e; for version in $(PYTHONS); do \
	  python=$$(bench/find-python $$version); \
	  echo "== Python $$version ($$python)"; \
	  $(MAKE) --no-print-directory test PYTHON="$$python" VENV=.venv-$$version; \
	done

lint: $(DEV_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/test_layers.py

bench: $(TEST_STAMP)
	$(VENV)/bin/python bench/run.py

leaks: $(TEST_STAMP)
	$(VENV)/bin/python bench/leaks.py

docs: $(DEV_STAMP)
	$(VENV)/bin/sphinx-build -W -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf .venv .venv-* build dist *.egg-info memwatch/evidence/*.so docs/_build .mypy_cache .ruff_cache .pytest_cache

$(STAMP): $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade "pip>=25.1"
	@$(PIP) install -e .
	@touch $@

$(TEST_STAMP): $(STAMP)
	@$(PIP) install -e . --group test
	@touch $@

$(DEV_STAMP): $(STAMP)
	@$(PIP) install -e . --group dev
	@touch $@ $(TEST_STAMP)
