# Every habit of this repository in one line each; `make help` lists them.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 30000

.PHONY: help setup demo test lint clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nsr needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH) setuptools wheel ninja
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml setup.py $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[test,video]'
	@touch $@

setup: $(VENV)/.installed  ## create .venv, install the dependencies, build the extension; nothing when up to date

demo: setup  ## reconstruct the built-in scene and report against its exact geometry
	$(BIN)/nsr reconstruct bust --budget 60 --out runs/demo --overwrite

test: setup  ## lint, compile-check the CUDA sources where nvcc exists, run the tests
	$(BIN)/ruff check .
	scripts/check_cuda_compile.sh
	$(BIN)/python -m pytest -n 2

lint: setup  ## ruff and the rules about layers and files, in seconds
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q tests/architecture

clean:  ## remove what setup and the build made
	rm -rf $(VENV) build *.egg-info nsr/*.so
