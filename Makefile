# Two targets set everything up: `make demo` and `make test`. Each makes .venv and installs into it.
# `make test-floor` runs the tests with the packages of Kaggle's and of Colab's image (tests/images/), `make test-newest`
# with the newest of everything: gigabytes each, into .venv-kaggle, .venv-colab and .venv-newest.
# `make wheel` puts the package into dist/; `make wheelhouse` puts beside it what Kaggle's image lacks (IMAGE=colab: Colab's).
# TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo   takes torch from another index (no CUDA libraries: 200 MB, not gigabytes).
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
# Neighbouring tests share what they made, so each worker begins with one stretch of them and takes from the others' later.
WORKERS := -n logical --maxprocesses 4 --dist worksteal
IMAGE ?= kaggle
kaggle_VERSION := 3.12
colab_VERSION := 3.13

.PHONY: demo test test-long test-floor test-kaggle test-colab test-newest wheel wheelhouse lint clean

demo: .venv/demo-installed
	$(BIN)/python tools/demo.py

test: .venv/test-installed
	$(BIN)/python -m pytest $(WORKERS)

test-long: .venv/test-installed
	$(BIN)/python -m pytest $(WORKERS) -m 'long or not long'

test-floor: test-kaggle test-colab

test-kaggle test-colab: test-%:
	python$($*_VERSION) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c tests/images/$*.txt -e '.[test]'
	.venv-$*/bin/python -m pytest

test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[test]'
	.venv-newest/bin/python -m pytest

wheel:
	rm -rf build
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

# Installed there with: pip install --no-index --find-links WHEELHOUSE phonedata
wheelhouse: wheel
	$(PYTHON) -m pip download --quiet --dest dist --only-binary :all: --platform manylinux_2_28_x86_64 \
	    --platform manylinux2014_x86_64 --python-version $($(IMAGE)_VERSION) -c tests/images/$(IMAGE).txt \
	    zarr cyclopts safetensors xxhash

lint: .venv/lint-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-kaggle .venv-colab .venv-newest demo build dist *.egg-info

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
