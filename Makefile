# Each target sets up what it needs in .venv: a fresh machine with Python 3.11+ is enough.
PYTHON ?= python3
BIN := .venv/bin

# What carries events (sqlite, kafka) and what keeps objects (directory, s3) in the demo.
BUS ?= sqlite
STORE ?= directory

.PHONY: demo docs test soak fuzz lint schemas bench-memory bench-pipeline bench-cluster bench-lookup capacity capacity-check clean

# A real broker and a real S3 server need more than the base install.
demo: $(if $(filter kafka s3,$(BUS) $(STORE)),.venv/.dev,.venv/.base)  ## Real agent runs in, a seeded workspace out; no key, no server. BUS=kafka STORE=s3: on real ones.
	$(BIN)/python examples/demo.py --bus $(BUS) --store $(STORE)

test: .venv/.dev  ## Everything that CI runs.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 4 --dist worksteal

SEEDS ?= 1000

soak: .venv/.dev  ## Seeds of the whole deployment in simulated time, with faults: SEEDS=5000 (how many), SEEDS=17,18 (which). DEEP=1: exhaustive and random schedules besides. REPORT=FILE: figures as JSON.
	$(BIN)/python tests/simulation/soak.py $(SEEDS) $(if $(DEEP),--deep) $(if $(REPORT),--report $(REPORT))

TARGET ?=
SECONDS ?= 60

fuzz: .venv/.fuzz  ## Fuzz what reads bytes, guided by coverage: TARGET=archive (else all), SECONDS=60 of each. A crash is kept in tests/fuzz/corpus.
	$(BIN)/python tests/fuzz/fuzz.py "$(TARGET)" $(SECONDS)

docs: .venv/.docs  ## The documentation as a site, in site/; open site/index.html. No network is needed but for the install.
	$(BIN)/python docs/site/build.py

schemas: .venv/.dev  ## Write schemas/ anew from the models and the pipeline map.
	$(BIN)/python -m runlore.events.schemas

bench-memory: .venv/.base  ## What memory is worth on the runs in DATA (default: the samples).
	$(BIN)/python benchmarks/memory.py $(DATA)

bench-pipeline: .venv/.base  ## What the embedded pipeline costs.
	$(BIN)/python benchmarks/pipeline.py

bench-cluster: .venv/.dev  ## What it costs on a real broker and a real S3 server; about ten minutes.
	$(BIN)/python benchmarks/pipeline.py --cluster

bench-lookup: .venv/.dev  ## What a lookup costs, against bare routes, bare GETs and the SDK; about fifteen minutes.
	$(BIN)/python benchmarks/lookup.py

capacity: .venv/.dev  ## How far a deployment goes, what it costs, what breaks first: the tables of docs/SCALE.md.
	$(BIN)/python benchmarks/capacity.py

capacity-check: .venv/.dev  ## That model against a simulation of 1,000 runs/s over 10,000 memories; about an hour.
	$(BIN)/python benchmarks/capacity.py --check

.venv/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[server,agents]' --group dev
	touch $@

.venv/.fuzz: .venv/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt --group fuzz
	touch $@

.venv/.docs: .venv/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt --group docs
	touch $@

clean:
	rm -rf .venv site .pytest_cache .hypothesis .ruff_cache
