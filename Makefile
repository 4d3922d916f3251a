# make demo    train a character language model with torch.nn and with fastrnn, and compare
# make test    every check that a CPU machine can run
# make bench   fastrnn beside its peers; BENCHFLAGS="--mode infer" and the like
# make lint    style checks alone; CHECKS="rules types" for some of them
# make test-torch    the Python tests on another torch: TORCH=torch==2.11.0 VENV=.venv-2.11
# make gpu-test, make gpu-bench    on a machine with an NVIDIA GPU
#
# Each makes the environment it needs in $(VENV). Nothing is installed outside this folder.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BENCHFLAGS ?=
CHECKS ?=
PYTESTFLAGS ?= -q

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
GENERATOR := $(if $(shell command -v ninja),-G Ninja)
CMAKE_TESTS := $(GENERATOR) -S . -DCMAKE_BUILD_TYPE=Release -DFASTRNN_WERROR=ON -DFASTRNN_CUDA=0
EXTENSION_SOURCES := setup.py pyproject.toml CMakeLists.txt tools/build_backend.py \
	$(wildcard cmake/* csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh csrc/*/*/*.h csrc/*/*/*.def)

.DELETE_ON_ERROR:
.PHONY: demo test bench lint build-cpp test-cpp test-sanitized test-install test-wheel test-python test-torch test-emulated \
	gpu-test gpu-bench run-gpu-test run-gpu-bench clean

demo: $(VENV)/.examples
	$(PY) examples/char_lm.py

# pytest comes last: its closing line sums up
test:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-cpp
	@$(MAKE) --no-print-directory test-sanitized
	@$(MAKE) --no-print-directory test-install
	@$(MAKE) --no-print-directory test-emulated
	@$(MAKE) --no-print-directory test-wheel
	@$(MAKE) --no-print-directory test-python

bench: $(VENV)/.bench
	$(PY) -m bench $(BENCHFLAGS)

lint: $(VENV)/.lint
	$(PY) tools/lint.py $(CHECKS)

build-cpp:
	@echo "-- building the kernels and their tests"
	@cmake $(CMAKE_TESTS) -B build/kernels >/dev/null
	@cmake --build build/kernels --parallel $(JOBS)

test-cpp: build-cpp
	@echo "-- C++ tests"
	@ctest --test-dir build/kernels --output-on-failure --parallel $(JOBS)

test-sanitized:
	@echo "-- C++ tests under the address and undefined-behaviour sanitizers"
	@cmake $(CMAKE_TESTS) -B build/sanitized -DFASTRNN_SANITIZE=address,undefined >/dev/null
	@cmake --build build/sanitized --parallel $(JOBS)
	@ctest --test-dir build/sanitized --output-on-failure --parallel $(JOBS)
	@echo "-- the barrier, the account of cores and the pool of memory under the thread sanitizer"
	@cmake $(CMAKE_TESTS) -B build/thread-sanitized -DFASTRNN_SANITIZE=thread >/dev/null
	@cmake --build build/thread-sanitized --parallel $(JOBS) --target test_team test_cores test_kept_memory
	@ctest --test-dir build/thread-sanitized --output-on-failure --tests-regex '^(team|cores|kept_memory)$$'

test-install: build-cpp
	@echo "-- the installed CMake package, from a program of its own"
	@rm -rf build/prefix
	@cmake --install build/kernels --prefix build/prefix >/dev/null
	@cmake -S tests/csrc/consumer -B build/consumer -DCMAKE_PREFIX_PATH=$(CURDIR)/build/prefix >/dev/null
	@cmake --build build/consumer >/dev/null
	@ctest --test-dir build/consumer --output-on-failure

# FASTRNN_WERROR as for the extension: with other flags everything would be compiled again
test-wheel: $(VENV)/.extension $(VENV)/.audit
	@echo "-- the wheel"
	@rm -rf dist
	@FASTRNN_WERROR=1 $(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	@$(PY) tools/check_wheel.py dist/fastrnn-*.whl

test-python: $(VENV)/.extension $(VENV)/.test $(VENV)/.examples
	@echo "-- Python tests"
	@$(PY) -m pytest $(PYTESTFLAGS)

# the extension as it lies there, for one is to serve every torch; not a part of test, for it downloads another torch
test-torch: $(VENV)/.torch $(VENV)/.test
	@test -e fastrnn/_C.abi3.so || { echo "test-torch: no extension; make test-python builds one"; exit 1; }
	@echo "-- Python tests on $(TORCH)"
	@$(PY) -m pytest $(PYTESTFLAGS)

# the ops on the text of the CUDA kernels, compiled for the CPU
test-emulated: $(VENV)/.torch $(VENV)/.test
	@echo "-- the ops on emulated CUDA kernels"
	@cmake $(GENERATOR) -S . -B build/emulated -DCMAKE_BUILD_TYPE=Release -DFASTRNN_WERROR=ON -DFASTRNN_CUDA=0 \
		-DFASTRNN_TESTS=OFF -DFASTRNN_TORCH=ON -DFASTRNN_EMULATED=ON -DPython_EXECUTABLE=$(abspath $(PY)) \
		-DFASTRNN_TORCH_DIR=$$(cd tools && $(abspath $(PY)) -c 'import build_backend; print(build_backend.torch_dir())') \
		>/dev/null
	@cmake --build build/emulated --parallel $(JOBS) --target _C
	@rm -rf build/emulated/package
	@mkdir -p build/emulated/package/fastrnn
	@cp fastrnn/*.py build/emulated/_C.abi3.so build/emulated/libfastrnn_ops.so build/emulated/package/fastrnn
	@FASTRNN_EMULATED=1 $(VENV)/bin/pytest $(PYTESTFLAGS) -o pythonpath=build/emulated/package tests/test_cuda.py tests/test_ops.py \
		tests/test_toy.py

gpu-test gpu-bench: gpu-%:
	@nvidia-smi >/dev/null 2>&1 || { echo "gpu-$*: there is no NVIDIA GPU here"; exit 1; }
	@$(MAKE) --no-print-directory run-gpu-$*

run-gpu-test: $(VENV)/.extension $(VENV)/.test
	@$(PY) -m pytest $(PYTESTFLAGS) tests/test_cuda.py tests/test_plan.py

run-gpu-bench: $(VENV)/.extension
	@$(PY) -m bench.gpu --json build/gpu/bench.json $(BENCHFLAGS)

clean:
	rm -rf build dist *.egg-info fastrnn/*.so

# -- the environment ---------------------------------------------------------------------------------------------------

$(VENV)/.venv: tools/make_venv.sh
	@tools/make_venv.sh $(PYTHON) $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.venv
	@echo "-- installing $(TORCH) and build tools"
	@$(PIP) install "$(TORCH)" "setuptools>=77" wheel packaging
	@touch $@

# setup.py shows what it compiles, where pip would hide it
$(VENV)/.extension: $(VENV)/.torch $(EXTENSION_SOURCES)
	@echo "-- building the extension"
	@FASTRNN_WERROR=1 $(PY) setup.py --quiet build_ext --inplace
	@FASTRNN_WERROR=1 $(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

# the packages of an extra of pyproject.toml
$(VENV)/.lint $(VENV)/.audit $(VENV)/.test: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	@echo "-- installing what $* needs"
	@$(PIP) install $$($(PY) tools/extras.py $*)
	@touch $@

$(VENV)/.bench $(VENV)/.examples: $(VENV)/.%: $(VENV)/.extension
	@echo "-- installing what $* needs"
	@$(PIP) install $$($(PY) tools/extras.py $*)
	@touch $@
