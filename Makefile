# make demo      a PixelCNN learns handwritten digits and draws new ones (installs everything first)
# make test      proves every kernel against its reference
# make test-all  the same and the campaigns of hours, before a release
# make sanitize  runs the tests of ops and sampler on C++ with the address and undefined-behaviour sanitizers
# make lint      style of the Python and C++ code, and the types of the public surface
# make bench     measures every op and the sampler, and writes bench/results/<machine>.json
# make gpu       on a machine with an NVIDIA GPU: builds the CUDA kernels, runs the suite on the GPU, then the benchmarks
# make clean     removes everything that make made

PYTHON ?= python3
BIN := .venv/bin
# The versions that the tests are run with. A torch that is there already (a CUDA build, say) is kept if it is this one.
TORCH := torch==2.13.0
SOURCES := setup.py pyproject.toml $(wildcard csrc/*/*)

.DEFAULT_GOAL := test
.PHONY: demo test test-all sanitize lint bench gpu clean

$(BIN)/python:
	$(PYTHON) -m venv .venv

# torch first and pinned: a range would pull the largest build there is. Triton only where torch did not bring its own.
.venv/requirements: requirements.txt requirements-peers.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint requirements.txt --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-peers.txt
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install --quiet triton==3.9.0
	touch $@

# Built against the torch in the environment, hence without build isolation.
.venv/installed: .venv/requirements $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@$(BIN)/fastgen info | sed -n 's/^ *not built: /fastgen: not built: /p'
	touch $@

demo: .venv/installed
	$(BIN)/fastgen demo

# One process per core, one thread each: on a small machine two threads of one process mostly wait for each other.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-all: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not gpu"

# In a folder of its own, so that what is installed stays as it is. Python was not built with a sanitizer, hence the
# preload, of the C++ library too, whose exceptions the sanitizer looks up when it starts; Python's own allocator hides
# nothing that these tests look for, and never gives everything back (no leaks are sought). PyTorch allocates each tensor by
# itself, in its exact size. Uncaptured: a report would die with the process. Left out: what tests send signals for, what
# only optimised code keeps (denormal numbers), and libraries cut short, which load here without their debug information.
sanitize: .venv/installed
	FASTGEN_SANITIZE=1 FASTGEN_BUILD_CUDA=0 $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 PYTHONPATH=build/sanitize/lib \
	$(BIN)/python -P -m pytest -s --timeout 3000 tests/ops tests/sampling -k "not triton and not compile and not inductor and not test_library and not test_denormals"

lint: .venv/requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

bench: .venv/installed
	$(BIN)/fastgen bench --json bench/results/

gpu:
	$(PYTHON) bench/gpu.py

clean:
	rm -rf .venv build fastgen/*.so fastgen/_build.json *.egg-info
