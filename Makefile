# Everything happens in .venv, which the first command makes; python3 with venv and make are all it takes.
PYTHON ?= python3
BIN := .venv/bin

# So many tests at once: most of their time they wait. A worker that crashed ends the run: xdist would wait for it for ever.
JOBS ?= 10
TOGETHER := $(BIN)/pytest --numprocesses $(JOBS) --max-worker-restart=0 --no-loadscope-reorder

.PHONY: demo test quick soak lint bench release-check clean

demo: .venv/installed
	$(BIN)/python contrib/demo.py

test: .venv/tested
	$(TOGETHER) -m 'not soak and not alone'
	$(BIN)/pytest -m 'alone and not soak'

# What needs no server, within a minute.
quick: .venv/tested
	EFFORT=0.1 $(TOGETHER) -m 'not soak and not alone and not servers and not slow'

# What repeats: kills, crashes, stores that go away, thousands of objects. EFFORT=10 make soak for ten times as long.
soak: .venv/tested
	$(TOGETHER) --numprocesses 2 -m soak

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Before a release: the sdist and the wheel are built, installed into fresh environments, and tried; so is each extra.
release-check: .venv/tested
	RELEASE=1 $(BIN)/pytest tests/test_packaging.py

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
