# make demo: install and run the main job.  make test: install and run the tests; test-all: the long ones too.
# make check: format, lint, types, imports.  make docs: the documentation as a site, in site/.
# make wheel: dist/*.whl, for `pip install` anywhere.
PYTHON ?= python3
# The pair the committed results were made with; any pair allowed by pyproject.toml works:
#   make demo TORCH="torch torchvision"
TORCH ?= torch==2.14.1 torchvision==0.29.1
# One worker on each core; a file's tests share what its fixtures set up.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all check docs reproduce format install wheel clean

demo: $(VENV)/.installed
	$(BIN)/fgbench demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(WORKERS)

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(WORKERS) -m ""

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_rooms.py

docs: $(VENV)/.installed-docs
	$(BIN)/python scripts/make_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reproduce:  # all of results/, many hours; scripts/reproduce.sh --quick: a small part of each
	scripts/reproduce.sh

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed

wheel: | $(VENV)/bin/python  # dist/fgbench-VERSION-py3-none-any.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	ls dist/*.whl

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fgbench needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(TORCH)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist site .pytest_cache .ruff_cache .mypy_cache
