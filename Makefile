# `make check` is what has to hold before a commit; `python launch.py test` runs the same on a bare machine.
PYTHON ?= $(if $(wildcard venv/bin/python),venv/bin/python,python3)

.PHONY: check format test start

check:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest --ignore=tests/test_style.py

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

test:
	$(PYTHON) launch.py test

start:
	$(PYTHON) launch.py
