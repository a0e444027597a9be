# Each target sets up what it needs in .venv: a fresh machine with Python 3.11+ is enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint schemas bench-memory bench-pipeline clean

demo: .venv/.base  ## Real agent runs in, a seeded workspace out; no key, no server.
	$(BIN)/python examples/demo.py

test: .venv/.dev  ## Everything that CI runs.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal

schemas: .venv/.dev  ## Write schemas/ anew from the models and the pipeline map.
	$(BIN)/python -m runlore.events.schemas

bench-memory: .venv/.base  ## What memory is worth on the runs in DATA (default: the samples).
	$(BIN)/python benchmarks/memory.py $(DATA)

bench-pipeline: .venv/.base  ## What the embedded pipeline costs.
	$(BIN)/python benchmarks/pipeline.py

.venv/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[server]' --group dev
	touch $@

clean:
	rm -rf .venv .pytest_cache .hypothesis .ruff_cache
