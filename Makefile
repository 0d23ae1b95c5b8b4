# Every path is relative: the project may lie under a folder with spaces in its name.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: compare test lint clean

compare: $(VENV)/installed
	$(VENV)/bin/python -m fisherlab compare --model mnist-mlp

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	rm -rf build/imports && mkdir -p build/imports/fisherlab
	ln -s $(foreach part,$(wildcard fisherlab/*) cli figures,../../../$(part)) build/imports/fisherlab
	cd build/imports && ../../$(VENV)/bin/lint-imports ../../pyproject.toml

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt torch -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@
