# Everything happens in .venv, which the first command makes; python3 with venv and make are all it takes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/python contrib/demo.py

test: .venv/tested
	$(BIN)/pytest

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/pip install --quiet --editable '.[bench,test]'
	$(BIN)/python benchmarks/bench.py $(BENCH)

.venv/installed: setup.py whisperbackup/__init__.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/tested: .venv/installed setup.py
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
