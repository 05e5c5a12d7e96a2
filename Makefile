# make serve   set up and serve on TOMAU_HOST:TOMAU_PORT (127.0.0.1:8000)
# make test    set up and run the tests
# CONTRIBUTING.md lists all targets. Each target sets up what it needs in .venv; a second call skips that.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A service for a GPU: make serve TARGET=gpu VENV=.venv-gpu
TARGET ?= cpu
GPU_VENV ?= .venv-gpu
LOWEST_VENV ?= .venv-lowest
# Photographs for `make train` and `make export`: tar shards and folders.
DATA ?=
RUN ?= runs/compact
RECIPE ?= compact
# Where `make export` writes: into the folder of the run, so that no served model is replaced unasked.
OUTPUT ?= $(RUN)/$(RECIPE).onnx
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: serve test test-fast test-containers test-lowest test-suites test-all lint train export bench bench-gpu bench-data fuzz soak audit lock clean

serve: $(VENV)/.serve
	$(BIN)/tomau serve

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'not long'

# All tests but those that train or export a network.
test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'not slow'

# Check the image and the compose project, gateway and monitoring included. Skipped, with a warning, where no container
# engine can run.
test-containers: $(VENV)/.dev
	PYTHON=$(BIN)/python tests/containers/run.sh $(ARGS)

# Run the fast tests with the lowest versions of the dependencies that pyproject.toml allows.
test-lowest:
	$(MAKE) VENV=$(LOWEST_VENV) $(LOWEST_VENV)/.lowest
	$(LOWEST_VENV)/bin/python -m pytest -m 'not slow'

# Try the image suites of other projects, from their source packages: make test-suites ARGS=--write
test-suites: $(VENV)/.dev
	$(BIN)/python -m tests.suites $(ARGS)

# Include what .ci/run leaves out or shortens: long tests, lowest versions, image suites, full fuzzing and soaking.
test-all: lint test-containers test-lowest test-suites audit
	$(BIN)/python -m pytest
	$(MAKE) fuzz ARGS="--seconds 600"
	$(MAKE) soak

lint: $(VENV)/.dev
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/vulture
	$(BIN)/codespell --quiet-level 3
	$(BIN)/python -m tests.prose

train: $(VENV)/.dev
	@test -n "$(DATA)" || { echo 'say where the photographs are: make train DATA="shard.tar folder"'; exit 2; }
	$(BIN)/python -m model_export train $(RECIPE) --data $(DATA) --run $(RUN) $(ARGS)

export: $(VENV)/.dev
	@test -n "$(DATA)" || { echo 'say where held-out photographs are: make export DATA="shard.tar folder"'; exit 2; }
	$(BIN)/python -m model_export export --run $(RUN) --output $(OUTPUT) --data $(DATA) $(ARGS)

# Measure the service next to its peers: make bench ARGS=--quick takes two minutes.
bench: $(VENV)/.bench
	$(BIN)/python -m tests.bench.serving $(ARGS)

# Measure a GPU: the model alone, through the batcher, and over HTTP. It has an environment of its own.
bench-gpu:
	$(MAKE) VENV=$(GPU_VENV) $(GPU_VENV)/.bench-gpu
	$(GPU_VENV)/bin/python -m tests.bench.gpu $(ARGS)

# Send damaged files to the decoder and odd requests to the API: make fuzz ARGS="--seconds 3600"
fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz $(ARGS)

# Look for known vulnerabilities of the dependencies.
audit: $(VENV)/.audit
	$(BIN)/python -m tests.audit

# Send 20,000 mixed requests, with faults and clients that hang up.
soak: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz.soak $(ARGS)

bench-data: $(VENV)/.dev
	$(BIN)/python -m tests.bench.data $(ARGS)

# Write the lock files. To take new versions within the ranges of pyproject.toml: make lock ARGS=--upgrade
lock: $(VENV)/.dev
	PATH="$(BIN):$$PATH" requirements/compile.sh $(ARGS)

clean:
	rm -rf $(VENV) $(GPU_VENV) $(LOWEST_VENV) .suites .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# The development environment has all packages that serving needs, in the same versions.
$(VENV)/.serve: requirements/serve-$(TARGET).lock pyproject.toml | $(BIN)/pip
	$(INSTALL) --no-deps --require-hashes -r requirements/serve-$(TARGET).lock
	$(INSTALL) --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements/dev.lock pyproject.toml | $(BIN)/pip
	$(INSTALL) --no-deps --require-hashes -r requirements/dev.lock
	$(INSTALL) --no-deps --editable .
	$(BIN)/pip check
	touch $@ $(VENV)/.serve

$(VENV)/.bench: requirements/bench.lock pyproject.toml | $(BIN)/pip
	$(INSTALL) --no-deps --require-hashes -r requirements/bench.lock
	$(INSTALL) --no-deps --editable .
	touch $@ $(VENV)/.serve

$(VENV)/.fuzz: $(VENV)/.dev requirements/fuzz.lock
	$(INSTALL) --no-deps --require-hashes -r requirements/fuzz.lock
	touch $@

$(VENV)/.audit: $(VENV)/.dev requirements/audit.lock
	$(INSTALL) --no-deps --require-hashes -r requirements/audit.lock
	touch $@

$(VENV)/.lowest: requirements/lowest.lock pyproject.toml | $(BIN)/pip
	$(INSTALL) --no-deps --require-hashes -r requirements/lowest.lock
	$(INSTALL) --no-deps --editable .
	touch $@

# Both runtimes install into the same folder, so both are removed before the GPU's is installed.
$(VENV)/.bench-gpu: $(VENV)/.bench requirements/serve-gpu.lock
	$(BIN)/pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	$(INSTALL) --no-deps --require-hashes -r requirements/serve-gpu.lock
	touch $@
