# Each target makes the environment it needs in .venv; stamp files keep repeated calls fast.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
DEMO_RUN := runs/quickstart
DEMO_DB := $(DEMO_RUN)/data/demo/databases/shop.sqlite
QUESTION ?= Which customers have orders with status open? Give their names.

.PHONY: demo test test-slow check clean

# Self-evolution from nothing on the CPU, then one question searched live with its tree.
demo: $(RUN_STAMP)
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu_2.yaml -m rstar_trl evolve recipes/quickstart.yaml
	$(BIN)/rstar-trl ask --db $(DEMO_DB) --model $(DEMO_RUN) --tree "$(QUESTION)"

test: $(DEV_STAMP)
	$(BIN)/pytest

test-slow: $(DEV_STAMP)
	$(BIN)/pytest -m slow

check: $(DEV_STAMP)
	$(BIN)/ruff format --check rstar_trl tests
	$(BIN)/ruff check rstar_trl tests
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# Without an NVIDIA GPU the pinned torch is installed first, by itself: asked for together with the rest, pip may take
# the build that brings several gigabytes of CUDA.
$(RUN_STAMP): $(BIN)/python pyproject.toml constraints.txt
	command -v nvidia-smi >/dev/null || $(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,duckdb,openai,postgres]'
	touch $@
