# make demo    train a character language model with torch.nn and with fastrnn, and compare
# make test    every check that a CPU machine can run
# make bench   fastrnn beside its peers; BENCHFLAGS="--mode infer" and the like
# make lint    style checks alone; CHECKS="rules types" for some of them
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
	$(wildcard cmake/* csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh csrc/include/fastrnn/*.h)

.DELETE_ON_ERROR:
.PHONY: demo test bench lint test-cpp test-sanitized test-install test-wheel test-python clean

demo: $(VENV)/.examples
	$(PY) examples/char_lm.py

# pytest comes last: its closing line sums up
test:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-cpp
	@$(MAKE) --no-print-directory test-sanitized
	@$(MAKE) --no-print-directory test-install
	@$(MAKE) --no-print-directory test-wheel
	@$(MAKE) --no-print-directory test-python

bench: $(VENV)/.bench
	$(PY) -m bench $(BENCHFLAGS)

lint: $(VENV)/.lint
	$(PY) tools/lint.py $(CHECKS)

test-cpp:
	@echo "-- C++ tests"
	@cmake $(CMAKE_TESTS) -B build/kernels >/dev/null
	@cmake --build build/kernels --parallel $(JOBS)
	@ctest --test-dir build/kernels --output-on-failure

test-sanitized:
	@echo "-- C++ tests under the address and undefined-behaviour sanitizers (the kernels take minutes to compile)"
	@cmake $(CMAKE_TESTS) -B build/sanitized -DFASTRNN_SANITIZE=address,undefined >/dev/null
	@cmake --build build/sanitized --parallel $(JOBS)
	@ctest --test-dir build/sanitized --output-on-failure
	@echo "-- the barrier under the thread sanitizer"
	@cmake $(CMAKE_TESTS) -B build/thread-sanitized -DFASTRNN_SANITIZE=thread >/dev/null
	@cmake --build build/thread-sanitized --parallel $(JOBS) --target test_team
	@ctest --test-dir build/thread-sanitized --output-on-failure --tests-regex '^team$$'

test-install: test-cpp
	@echo "-- the installed CMake package, from a program of its own"
	@rm -rf build/prefix
	@cmake --install build/kernels --prefix build/prefix >/dev/null
	@cmake -S tests/csrc/consumer -B build/consumer -DCMAKE_PREFIX_PATH=$(CURDIR)/build/prefix >/dev/null
	@cmake --build build/consumer >/dev/null
	@ctest --test-dir build/consumer --output-on-failure

test-wheel: $(VENV)/.extension $(VENV)/.audit
	@echo "-- the wheel"
	@rm -rf dist
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	@$(PY) tools/check_wheel.py dist/fastrnn-*.whl

test-python: $(VENV)/.extension $(VENV)/.test $(VENV)/.examples
	@echo "-- Python tests"
	@$(PY) -m pytest $(PYTESTFLAGS)

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
