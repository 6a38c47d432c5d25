# Two commands for users: `make run` and `make test`. Everything else is for maintainers.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# what is compiled when it is installed is installed anew when it changes
FUSED  := $(wildcard $(addprefix plugins/layerlab-fused/,pyproject.toml setup.py src/layerlab_fused/*.[ch]))
# torch is named beside the rest so that the constraints' exact version is the one that is fetched
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/pytest -n 2 --dist loadgroup

.PHONY: run test test-slow test-soak test-gpu performance constraints clean

run: $(VENV)/.installed
	$(BIN)/layerlab run --plugin custom-module

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow and not soak and not gpu"

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow and not gpu"

test-soak: $(VENV)/.installed-dev
	$(PYTEST) -m soak

test-gpu: $(VENV)/.installed-dev
	$(BIN)/pytest -m gpu

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch -e .
	touch $@

# a step that was compiled before must not stand in for one that cannot be
$(VENV)/.installed-dev: pyproject.toml constraints.txt $(FUSED) plugins/layerlab-jax/pyproject.toml plugins/layerlab-compiled/pyproject.toml | $(BIN)/python
	rm -rf plugins/layerlab-fused/build plugins/layerlab-fused/src/layerlab_fused/*.so
	$(PIP) torch -e '.[dev,peers]' -e plugins/layerlab-fused -e plugins/layerlab-jax -e plugins/layerlab-compiled
	touch $(VENV)/.installed $@

performance: $(VENV)/.installed-dev  ## measure on this machine what docs/performance.md says
	$(BIN)/python benchmarks/performance.py

constraints: $(VENV)/.installed-dev  ## write down the exact versions that are installed now
	$(BIN)/python -m pip freeze --all --exclude-editable | sed -E '/^pip==/d; s/\+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) plugins/*/build plugins/*/src/*/*.so build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
