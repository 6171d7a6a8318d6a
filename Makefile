# conv3d: what people run while working on it. `make` alone lists the targets.

VENV := .venv
BIN := $(VENV)/bin
# the newest Python that is new enough; `make PYTHON=/path/to/python` overrides
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; print("$(p)" if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
EXAMPLE4D = $$($(BIN)/python -c 'import nibabel, os; print(os.path.join(os.path.dirname(nibabel.__file__), "tests", "data", "example4d.nii.gz"))')
DEMO := demo_output
# the version that the table in tests/benchmarks/README.md was measured with
TORCH ?= torch==2.13.0

.PHONY: help install demo test test-all test-keras test-versions test-arm golden check-wheel audit lint fuzz bench clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */:/' | awk -F: '{printf "  make %-12s %s\n", $$1, $$2}'

PIP = $(BIN)/python -m pip --disable-pip-version-check install --editable

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; pass PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) '.[dev]'
	@touch $@

$(VENV)/.runs: pyproject.toml | $(BIN)/python
	@echo "Installing conv3d and the libraries that it needs into $(VENV)/"
	$(PIP) .
	@touch $@

install: $(VENV)/.installed ## create .venv with the package and the tools to work on it

# where the tools are installed, the package is
demo: $(VENV)/$(if $(wildcard $(VENV)/.installed),.installed,.runs) ## install and run the main job on sample data and on a real scan
	rm -rf $(DEMO) && mkdir $(DEMO)
	$(BIN)/conv3d apply sample_data/head.nii.gz -k gaussian:fwhm=6mm -o $(DEMO)/head_smooth.nii.gz
	$(BIN)/conv3d apply sample_data/head.nii.gz -k sobel:axis=d -o $(DEMO)/head_sobel.nii.gz
	$(BIN)/conv3d apply sample_data/series.nii.gz -k box:size=3 --strides 2 -o $(DEMO)/series_half.nii.gz
	$(BIN)/conv3d apply sample_data/beads.tif -k sample_data/psf.tif --flip --normalize -o $(DEMO)/beads_blurred.tif
	$(BIN)/conv3d apply sample_data/cube.npy -c sample_data/layer.toml -o $(DEMO)/cube_features.npy
	$(BIN)/conv3d apply "$(EXAMPLE4D)" -k gaussian:fwhm=6mm -o $(DEMO)/example4d_smooth.nii.gz -v
	$(MAKE) --no-print-directory -C sample_data/pipeline CONV3D=$(abspath $(BIN)/conv3d) OUT=$(abspath $(DEMO))/pipeline
	$(BIN)/conv3d info $(DEMO)/head_smooth.nii.gz $(DEMO)/series_half.nii.gz $(DEMO)/beads_blurred.tif
	@echo; echo "The results are in $(DEMO)/:"; find $(DEMO) -type f | sort | sed 's/^/  /'

test: install ## run the tests on all CPUs (a few minutes)
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-all: install ## run all tests, the slow ones too
	$(BIN)/python -m pytest -q --hypothesis-profile=thorough -m 'not keras'

test-keras: ## make an environment with Keras, torch, onnxruntime, xarray; compare with them
	test -d .venv-keras || $(PYTHON) -m venv .venv-keras
	.venv-keras/bin/python -m pip install --quiet --editable '.[dev]' keras jax torch onnxruntime onnxscript xarray monai
	.venv-keras/bin/python -m pytest -q -m keras tests/live

test-versions: ## run the tests on every Python, at the lowest and newest versions; VERSIONS='3.12 lowest' for one
	$(PYTHON) .ci/versions.py $(VERSIONS)

golden: install ## write the digests of results anew, and why they changed: WHY='...'
	@test -n "$(WHY)" || { echo "say why results change: make golden WHY='...'"; exit 1; }
	$(BIN)/python tests/golden/digests.py --write "$(WHY)"

# Debian's Python and the libraries of an ARM of 64 bits, unpacked here and run by an emulator, which
# looks for its files in this folder first: no chroot, and nothing is registered with the system.
ARM := $(abspath .arm)
ARM_SUITE ?= bookworm
ARM_PYTHON ?= 3.11
EMULATOR := qemu-aarch64-static

test-arm: ## compare the digests of results on an emulated ARM (an hour; needs root, and Debian's qemu-user-static and debootstrap)
	@for program in $(EMULATOR) debootstrap dpkg; do command -v $$program >/dev/null || { \
		echo "test-arm is skipped: $$program is missing; apt-get install qemu-user-static debootstrap"; exit 0; }; done; \
	test "$$(id -u)" = 0 || { echo "test-arm is skipped: debootstrap needs root"; exit 0; }; \
	$(MAKE) --no-print-directory compare-on-arm

$(ARM)/python:
	rm -rf $(ARM)
	debootstrap --foreign --variant=minbase --arch=arm64 --include=python3 $(ARM_SUITE) $(ARM)
	for package in $(ARM)/var/cache/apt/archives/*.deb; do dpkg --extract $$package $(ARM) || exit; done
	printf '%s\n' '#!/bin/sh' 'export PYTHONHOME=$(ARM)/usr PYTHONPATH=$(CURDIR):$(ARM)/packages' \
		'exec $(EMULATOR) -L $(ARM) -0 "$$0" $(ARM)/usr/bin/python$(ARM_PYTHON) "$$@"' >$@.new
	chmod +x $@.new && mv $@.new $@

$(ARM)/.installed: pyproject.toml $(ARM)/python $(BIN)/python
	rm -rf $(ARM)/packages
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --target $(ARM)/packages --only-binary :all: \
		--platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
		--python-version $(ARM_PYTHON) --implementation cp --abi cp$(subst .,,$(ARM_PYTHON)) --abi abi3 --abi none .
	rm -rf $(ARM)/packages/conv3d_cli
	@touch $@

.PHONY: compare-on-arm
compare-on-arm: $(ARM)/.installed
	mkdir -p $(ARM)/cache
	CONV3D_CACHE_DIR=/cache $(ARM)/python tests/golden/digests.py $(DIGESTS)

check-wheel: install ## build the wheel twice, compare, look into it, install and run it in a new environment
	$(BIN)/python -m pytest -q -m 'slow or not slow' tests/test_wheel.py

audit: install ## ask pip-audit for known vulnerabilities of the lowest versions that are allowed
	test -d .venv-audit || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	$(BIN)/python .ci/versions.py --print >.venv-audit/lowest.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r .venv-audit/lowest.txt

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv-fuzz/.installed: pyproject.toml
	test -d .venv-fuzz || $(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --editable '.[dev]' 'atheris>=3'
	@touch $@

fuzz: .venv-fuzz/.installed ## look for files that break a reader, a minute each; FUZZ='nifti 60' for one kind and its seconds
	.venv-fuzz/bin/python -m pytest -q --hypothesis-profile=fuzz tests/fuzz
	.venv-fuzz/bin/python tests/fuzz/fuzz.py $(FUZZ)

.venv-bench/.installed: pyproject.toml
	test -d .venv-bench || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet '$(TORCH)'
	.venv-bench/bin/python -m pip install --quiet --editable '.[bench,plot]'
	@touch $@

bench: .venv-bench/.installed ## measure the engine against the machine's limits and other libraries; BENCH='--quick' for options
	.venv-bench/bin/conv3d bench $(BENCH)

clean: ## remove the environment, results and caches
	rm -rf $(VENV) .venv-keras .venv-bench .venv-fuzz .venv-versions .venv-audit .fuzz $(ARM) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
