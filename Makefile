# Two targets set everything up: `make demo` and `make test`. Each makes .venv and installs into it.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo   takes torch from another index (no CUDA libraries: 200 MB, not gigabytes).
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: demo test test-long lint clean

demo: .venv/demo-installed
	$(BIN)/python tools/demo.py

test: .venv/test-installed
	$(BIN)/python -m pytest

test-long: .venv/test-installed
	$(BIN)/python -m pytest -m 'long or not long'

lint: .venv/lint-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo build *.egg-info

.venv/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "phonedata needs Python 3.11 or newer, this is %s; name another one: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	touch $@

.venv/demo-installed: .venv/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]'
	touch $@

.venv/test-installed: .venv/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

# mypy reads what the packages import, so it wants them installed too.
.venv/lint-installed: .venv/test-installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lint]'
	touch $@
