# SPDX-License-Identifier: MIT
#
# The developer's commands.  They need a C compiler, make and Python.  Everything else goes into $(VENV) and build/.
#
#   PYTHON   the Python to use; for example: make test PYTHON=python3.13 VENV=.venv-3.13
#   ARGS     further arguments for memslots perf, for pytest in test-python, bench and bench-compare, or for bench-goals,
#            bench-readers, bench-workers, callgrind and mutants
#   LEAVE_OUT  tests with this marker are not run by test-python; LEAVE_OUT= runs every test
#   JOBS     processes that run tests at the same time; ARGS=-n0 runs pytest in one, for a debugger
#   T, SEED  seconds and seed of torture
#   A, B     the versions for bench-compare: commits, or . for the files as they are
#   NAME     the folder in docs/results that `make results` writes
#   POOL     the file of error-pool and error-rates
#   REASON   why a hot path needs more instructions, for ledger

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= $(shell nproc)
LEAVE_OUT ?= builds
T ?= 60
SEED ?= 20211206
A ?= HEAD
B ?= .
POOL ?= docs/results/error-pool/pool.json.gz
REASON ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq install
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
ASAN_SITE := build/asan-python
CALLGRIND_SITE := build/callgrind-python
# The list includes folders, so that the removal of a file counts as a change.
SOURCES := CMakeLists.txt pyproject.toml README.md LICENSE $(shell find src -not -name '*.py[co]' -not -name __pycache__)

C_FILES := $(shell find src tests bench -name '*.[ch]' -o -name '*.cpp')
# Prints each line of more than 120 columns and fails if there is one.  clang-format leaves comments as they are.
LONG_LINES := awk '{ s = $$0; while (i = index(s, "\t")) s = substr(s, 1, i - 1) substr("        ", (i - 1) % 8 + 1) substr(s, i + 1) } \
	length(s) > 120 { print FILENAME ":" FNR ": " length(s) " columns, 120 are allowed"; long = 1 } END { exit long }'

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SECONDARY:
.PHONY: help perf test built-for-test built-for-ci test-core test-python test-builds test-arrays test-examples test-another test-others test-kernel test-fuzz asan asan-core asan-python tsan torture \
	torture-short leaks mutants coverage bench bench-goals bench-readers bench-workers bench-compare error-pool error-rates ledger ledger-check callgrind results figures lint format ci \
	nightly clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# ---- the main commands -----------------------------------------------------------------------------------------

perf: $(VENV)/.package $(VENV)/.with-plot ## install into .venv, and measure all designs and the kernel: prints a table, writes perf.png
	@$(BIN)/memslots perf --picture perf.png $(ARGS)

test: built-for-test test-core test-python ## run before each commit: the tests of the core and of the package

# ---- the parts of make test ------------------------------------------------------------------------------------

# Configures and builds a preset of the core with the cmake and ninja of the virtual environment.
build-preset = cmake --preset $(1) --log-level=NOTICE && cmake --build --preset $(1) -- --quiet

define run-preset
	@echo "the core, preset $(1)"
	@PATH="$(abspath $(BIN)):$$PATH" && $(call build-preset,$(1)) && ctest --preset $(1) --parallel $(JOBS)
endef

# Runs the shell command $(1) next to the shell command $(2), and fails if one of them fails.
next-to = { $(1); } & other=$$!; { $(2); }; status=$$?; wait $$other && exit $$status

WITH_TESTS := $(VENV)/.with-test $(VENV)/.with-bench $(VENV)/.with-plot $(VENV)/.with-verdict

# pip, Cython and the compilation of its large file use one CPU.  The core is built next to them.
built-for-test: $(VENV)/.with-build $(VENV)/.with-perf
	@PATH="$(abspath $(BIN)):$$PATH"; $(call next-to,$(MAKE) --no-print-directory $(VENV)/.package $(WITH_TESTS),$(call build-preset,dev))

test-core: $(VENV)/.with-build ## run only the tests of the C core
	$(call run-preset,dev)

test-python: $(VENV)/.package $(WITH_TESTS) ## run only pytest; ARGS="-k overlap" runs some tests
	@$(PYTEST) $(if $(LEAVE_OUT),-m "not $(LEAVE_OUT)") $(ARGS)

# ---- more of the Python suite ----------------------------------------------------------------------------------

# Runs the suite on other interpreters, each in its own virtual environment.  $(1): options of tools/interpreters.py,
# $(2): LEAVE_OUT.
define on-others
	@$(BIN)/python tools/interpreters.py $(1) >build/interpreters && failed= && while read -r version python; do \
		echo "the package on Python $$version ($$python)"; \
		$(MAKE) --no-print-directory test-python PYTHON="$$python" VENV="$(VENV)-$$version" LEAVE_OUT="$(2)" </dev/null || \
			failed="$$failed $$version"; \
	done <build/interpreters && [ -z "$$failed" ] || { echo "failed on Python:$$failed"; exit 1; }
endef

# The code above the binding is Python only; make test-others runs its tests too.
test-another: export ARGS = $(ABOVE_BINDING)
test-another: $(VENV)/.made build/. ## run the tests of the binding, without the slow ones, on one more supported Python, if one is found
	$(call on-others,--most 1,($(LEAVE_OUT) or slow or above_binding))

test-others: $(VENV)/.made build/. ## run pytest on all supported Pythons that are found
	$(call on-others,,)

test-builds: $(VENV)/.package $(VENV)/.with-test $(VENV)/.with-bench ## run the tests that compile packages and benchmarks, which make test leaves out
	@$(PYTEST) -m builds $(ARGS)

test-arrays: $(VENV)/.package $(VENV)/.with-test $(VENV)/.with-arrays ## run the tests of pandas and pyarrow objects, which make test skips
	@$(BIN)/python -m pytest -q -n0 tests/python/test_bad_input.py -k "pandas or pyarrow"

test-examples: $(VENV)/.package $(VENV)/.with-test $(VENV)/.with-examples ## run the tests of examples/ that need Dask, which make test skips
	@$(BIN)/python -m pytest -q -n0 tests/python/test_examples.py tests/python/test_dask_example.py

test-kernel: $(VENV)/.package $(VENV)/.with-test ## make a million random calls, and compare each result with that of the running kernel; 20,000 through the mirror
	@MEMSLOTS_KVM_CALLS=1000000 MEMSLOTS_KVM_SECONDS=inf $(PYTEST) tests/python/test_kvm_differential.py $(ARGS)
	@MEMSLOTS_MIRROR_OPERATIONS=20000 $(PYTEST) -s tests/python/test_kvm_mirror_machine.py $(ARGS)

test-fuzz: $(VENV)/.package $(VENV)/.with-test $(VENV)/.with-plot ## read and play many more changed vector files than make test
	@MEMSLOTS_FUZZ_EXAMPLES=4000 $(PYTEST) tests/python/test_hostile_vectors.py $(ARGS)

# ---- sanitizers, coverage, mutants, benchmarks, style ----------------------------------------------------------

asan: asan-core asan-python ## test core and package with AddressSanitizer and UndefinedBehaviorSanitizer

asan-core: $(VENV)/.with-build
	$(call run-preset,asan)

# Tests of code above the binding.  Sanitizers would find nothing there, because it is Python only.
# Single tests have the marker above_binding.
ABOVE_BINDING := $(patsubst %,--ignore=tests/python/test_%.py,anchors answers bench_example bench_goals bench_names cli dask_example diff examples figures flatten flips geometry given_figures goal_figures hostile_vectors interpreters ioctls kvm_differential kvm_mirror_kernel kvm_mirror_machine layers layouts ledger locking logs map mutants noise perf plans_on_kvm plot readme records recorder reports results runs scale snapshot_files statistics timing typing vectors verdicts)

# The interpreter itself is not instrumented.  So LD_PRELOAD loads the sanitizers' libraries before it, and
# PYTHONMALLOC=malloc turns off its own allocator, which would hide small blocks.  Leaks are checked only in the tests
# of the core, because the interpreter leaks many blocks.
asan-python: build/.asan-package $(VENV)/.with-test
	@echo "the package, with address,undefined"
	@LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
		PYTHONMALLOC=malloc PYTHONPATH=$(abspath $(ASAN_SITE)) \
		$(PYTEST) -m "not slow and not above_binding" $(ABOVE_BINDING)

tsan: $(VENV)/.with-build ## test the core with ThreadSanitizer
	$(call run-preset,tsan)

torture: $(VENV)/.with-build ## run readers next to a writer that never stops, and check every answer: T seconds over all builds
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/torture.py --seconds $(T) --seed $(SEED) $(ARGS)

torture-short: $(VENV)/.with-build
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/torture.py --seconds 15 --build dev --build asan --build tsan

# A test fails if it leaks memory, or reads memory that it has not written.  test_faults replaces the allocator of the C
# library; --soname-synonyms makes valgrind intercept this replacement.
LEAKS := test_faults test_update test_hooks test_dirty_log test_lookup
leaks: $(VENV)/.with-build ## test failed allocations, updates, hooks, logs and lookups of the core with valgrind, if it is installed
	@if ! command -v valgrind >/dev/null; then echo "leaks: NOT run, valgrind is not installed"; exit 0; fi; \
	PATH="$(abspath $(BIN)):$$PATH" && cmake --preset dev --log-level=NOTICE && \
	cmake --build --preset dev --target $(LEAKS) -- --quiet && \
	for test in $(LEAKS); do \
		MEMSLOTS_VALGRIND=1 MEMSLOTS_TEST_SLOW=1 MEMSLOTS_TEST_SCALE=0.2 \
			valgrind -q --leak-check=full --errors-for-leak-kinds=definite --error-exitcode=9 \
			--fair-sched=yes --child-silent-after-fork=yes --soname-synonyms=somalloc=NONE build/dev/$$test || exit 1; \
	done && echo "leaks: 0 errors and 0 blocks left in $(words $(LEAKS)) tests"

coverage: $(VENV)/.with-build $(VENV)/.with-coverage ## show the lines and branches of the core that its own tests run
	@if [ -d build/coverage ]; then find build/coverage -name '*.gcda' -delete; fi
	$(call run-preset,coverage)
	@$(BIN)/gcovr -j $(JOBS) --root . --filter src/_core/ --exclude-branches-by-pattern '.*ms_assert\(.*' \
		--merge-mode-functions=merge-use-line-0 --gcov-ignore-parse-errors=negative_hits.warn \
		--json build/coverage/gcovr.json build/coverage
	@$(BIN)/python tools/coverage.py build/coverage/gcovr.json

mutants: $(VENV)/.package $(VENV)/.with-test $(VENV)/.with-plot ## plant bugs one at a time, and check that tests catch each; ARGS=--quick takes a minute, ARGS=--markdown lists them
	@$(BIN)/python tools/mutants.py $(ARGS)

bench: $(VENV)/.package $(VENV)/.with-test $(VENV)/.with-bench ## run the benchmarks; each checks the answer that it times
	@$(BIN)/python -m pytest bench/suite $(ARGS)

bench-goals: $(VENV)/.package $(VENV)/.with-bench ## measure the goals of docs/benchmarks.md, each together with its yardstick
	@PYTHONPATH=bench $(BIN)/python -m goals $(ARGS)

bench-readers: $(VENV)/.package ## measure readers next to a writer that never stops, and the writer next to 1 to 8 readers
	@$(BIN)/python bench/readers.py $(ARGS)

bench-workers: $(VENV)/.package $(VENV)/.with-examples ## measure examples/dask_translate.py in one process and on Dask workers; ARGS="-o FILE" records it
	@$(BIN)/python bench/workers.py $(ARGS)

callgrind: build/.callgrind-package ## count the instructions of a scalar lookup, by function
	@$(BIN)/python bench/callgrind.py --site $(CALLGRIND_SITE) $(ARGS)

bench-compare: $(VENV)/.package $(VENV)/.with-verdict $(VENV)/.with-test $(VENV)/.with-bench ## measure two versions in turns: is B faster than A?  Default: A=HEAD, B=. (the files)
	@$(BIN)/python tools/bench_compare.py $(A) $(B) $(ARGS)

error-pool: $(VENV)/.package $(VENV)/.with-verdict ## record a pool of 400 measured processes of one version in POOL; about 10 minutes on a quiet machine
	@$(BIN)/python tools/error_rates.py record $(POOL) $(ARGS)

error-rates: $(VENV)/.package $(VENV)/.with-verdict ## compute from POOL how often verdicts are wrong: false alarms, and slow-downs of 3 % that are found
	@$(BIN)/python tools/error_rates.py rates $(POOL) $(ARGS)

ledger: $(VENV)/.package ## count the instructions of the hot paths and record those that differ; REASON="..." if there are more
	@$(BIN)/python tools/ledger.py record --reason "$(REASON)"

ledger-check: $(VENV)/.package ## fail if a hot path needs 0.5 % more or fewer instructions than bench/ledger.csv says; needs valgrind
	@$(BIN)/python tools/ledger.py check

results: $(VENV)/.package $(VENV)/.with-bench $(VENV)/.with-plot build/.callgrind-package ## record every measurement in docs/results/NAME: text, JSON, pictures
	@$(BIN)/python tools/results.py $(or $(NAME),$(error make results NAME=folder, such as NAME=epyc-2cpu)) $(ARGS)

figures: $(VENV)/.package ## write the figures of README.md and docs again, from the records that docs/figures.toml names
	@$(BIN)/python tools/figures.py write

lint: $(VENV)/.package $(VENV)/.with-lint ## check style, types, spelling, and the layers of includes and imports
	@failed=; \
	$(BIN)/ruff check . || failed="$$failed ruff-check"; \
	$(BIN)/ruff format --check --quiet . || failed="$$failed ruff-format (make format repairs it)"; \
	$(BIN)/mypy || failed="$$failed mypy"; \
	$(BIN)/clang-format --dry-run --Werror $(C_FILES) || failed="$$failed clang-format (make format repairs it)"; \
	$(LONG_LINES) $(C_FILES) || failed="$$failed long-lines"; \
	$(BIN)/codespell || failed="$$failed codespell"; \
	$(BIN)/python tools/layers.py || failed="$$failed layers"; \
	$(BIN)/python tools/python_layers.py || failed="$$failed python-layers"; \
	echo "lint:$${failed:- all passed}"; [ -z "$$failed" ]

format: $(VENV)/.with-lint ## format the Python and C files
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(C_FILES)

# Most of the package with sanitizers is one large file of Cython, and most of lint is mypy: both use one CPU.
built-for-ci: $(VENV)/.package $(VENV)/.with-test
	@PATH="$(abspath $(BIN)):$$PATH"; $(call next-to,$(MAKE) --no-print-directory build/.asan-package lint,$(call build-preset,asan) && $(call build-preset,tsan))

ci: built-for-ci asan tsan torture-short ledger-check ## run the checks of continuous integration that follow make test

nightly: T = 600
nightly: test-others test-builds test-arrays test-examples test-kernel test-fuzz mutants coverage leaks torture ## run the long checks: all Pythons, a million calls to the kernel, fuzzing, mutants, coverage, valgrind, 10 minutes of torture

clean: ## remove the virtual environment and everything built
	rm -rf "$(VENV)" "$(VENV)"-3.* build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +

build/.:
	@mkdir -p build

# ---- the virtual environment -----------------------------------------------------------------------------------

$(VENV)/.made:
	@sh tools/prerequisites.sh "$(PYTHON)"
	@echo "creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@touch $@

# cmake and ninja come as wheels, so that the system does not need them.
$(VENV)/.with-build: pyproject.toml tools/requirements.py $(VENV)/.made
	@echo "installing the requirements of the build into $(VENV)"
	@$(BIN)/python tools/requirements.py build >$@.txt
	@$(PIP) -r $@.txt 'cmake>=3.25' ninja
	@touch $@

# The requirements of one extra of pyproject.toml.
$(VENV)/.with-%: pyproject.toml tools/requirements.py $(VENV)/.made
	@echo "installing the requirements of extra $* into $(VENV)"
	@$(BIN)/python tools/requirements.py $* >$@.txt
	@$(PIP) -r $@.txt
	@touch $@

# ---- the package -----------------------------------------------------------------------------------------------

$(VENV)/.package: $(SOURCES) $(VENV)/.with-build $(VENV)/.with-perf
	@echo "building memslots and installing it into $(VENV)"
	@$(PIP) --no-build-isolation --config-settings='build-dir=$(VENV)/build/{wheel_tag}' .
	@touch $@

build/.asan-package: $(SOURCES) $(VENV)/.package
	@echo "building memslots with address,undefined into $(ASAN_SITE)"
	@rm -rf $(ASAN_SITE)
	@$(PIP) --no-build-isolation --no-deps --target $(ASAN_SITE) \
		--config-settings='build-dir=build/asan-extension/{wheel_tag}' --config-settings=install.strip=false \
		--config-settings=cmake.build-type=Debug --config-settings=cmake.define.CMAKE_C_FLAGS_DEBUG='-O1 -g' \
		--config-settings=cmake.define.MEMSLOTS_SANITIZE=address,undefined .
	@touch $@

# The same options as for a release, but with symbols.
build/.callgrind-package: $(SOURCES) $(VENV)/.package
	@echo "building memslots with symbols into $(CALLGRIND_SITE)"
	@rm -rf $(CALLGRIND_SITE)
	@$(PIP) --no-build-isolation --no-deps --target $(CALLGRIND_SITE) \
		--config-settings='build-dir=build/callgrind-extension/{wheel_tag}' --config-settings=install.strip=false \
		--config-settings=cmake.define.CMAKE_C_FLAGS_RELEASE='-O3 -DNDEBUG -g' .
	@touch $@
