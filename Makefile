# make demo | make test | make lint; each installs what it needs into .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where to get torch and torchaudio from: empty is PyPI (with CUDA on Linux, about 5 GB), CPU=1 the CPU builds.
ifdef CPU
TORCH_INDEX := --index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: help install install-dev new-environment new-dev-environment adapters new-adapters-environment demo reproduce test test-slow torture gpu lint format docs clean

help:
	@echo "make demo         all seven tasks on generated sounds with an untrained encoder (minutes)"
	@echo "make reproduce    the whole study: [TASKS=\"esc50 icbhi\"] [ENCODERS=\"audiosep logmel\"] [DATA=folder] [YES=1] [ARGS=--dry-run]"
	@echo "make test         the tests (no GPU, network or weights needed)"
	@echo "make test-slow    the long tests: real features, minutes of audio, UMAP"
	@echo "make torture      kills, damage, code in files, full disks: about 10 minutes"
	@echo "make gpu          on a machine with a GPU: its tests, and the benchmarks"
	@echo "make adapters     AudioSep in HEAR, MTEB, X-ARES and EVAR: the suites' checkers, in .venv-adapters"
	@echo "make lint         ruff (rules and format) and mypy"
	@echo "make docs         the manual as a site, into site/"
	@echo "make install      only create .venv with what the scripts need; CPU=1 takes the smaller CPU builds of torch"
	@echo "make install-dev  the same, and what tests, lint and docs need"
	@echo "make clean        remove .venv, site/ and data/demo"

# What was installed is noted by its content, not by time: the files of a fresh clone are newer than an environment that it
# shares with another.
NOTED = cat requirements.txt pyproject.toml; pwd
NOTED_DEV = $(NOTED); cat requirements-dev.txt requirements-encoders.txt examples/encoders/requirements.txt

install:
	@{ $(NOTED); } | cmp -s - $(VENV)/.installed || $(MAKE) --no-print-directory new-environment GOALS="$(MAKECMDGOALS)"

install-dev: install
	@{ $(NOTED_DEV); } | cmp -s - $(VENV)/.installed-dev || $(MAKE) --no-print-directory new-dev-environment GOALS="$(MAKECMDGOALS)"

new-environment:
	@$(PYTHON) common/requirements_check.py $(GOALS)
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install $(TORCH_INDEX) $$(grep -oE '^torch(audio)?==[0-9.]+' requirements.txt))
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m common.precompile
	@{ $(NOTED); } > $(VENV)/.installed

new-dev-environment:
	$(BIN)/python -m pip install -r requirements-dev.txt
	$(BIN)/python -m pip install --no-deps -r examples/encoders/requirements.txt
	@{ $(NOTED_DEV); } > $(VENV)/.installed-dev

NOTED_ADAPTERS = $(NOTED); cat requirements-adapters.txt

# A separate environment, for the suites' versions.
adapters:
	@{ $(NOTED_ADAPTERS); } | cmp -s - .venv-adapters/.installed || $(MAKE) --no-print-directory new-adapters-environment
	.venv-adapters/bin/python -m tests.integrations.adapters_check

new-adapters-environment:
	@$(PYTHON) common/requirements_check.py adapters
	$(PYTHON) -m venv .venv-adapters
	.venv-adapters/bin/python -m pip install -r requirements-adapters.txt
	.venv-adapters/bin/python -m pip install --no-deps --ignore-requires-python xares==0.1.3 hearvalidator==2021.0.6
	@{ $(NOTED_ADAPTERS); } > .venv-adapters/.installed

demo: install
	$(BIN)/python -m demo.run

reproduce: install
	$(BIN)/python -m analysis.reproduce $(TASKS) $(if $(DATA),--data "$(DATA)") $(if $(ENCODERS),--encoders $(ENCODERS)) $(if $(YES),--yes) $(ARGS)

test: install-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: install-dev
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

torture: install-dev
	$(BIN)/python -m tests.torture --write

gpu: install-dev
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/extraction.py --clips 4000 --seconds 4 --rate 16000
	$(BIN)/python benchmarks/extraction.py --clips 4000 --seconds 4 --rate 16000 --flac --precisions bf16
	$(BIN)/python benchmarks/fitting.py

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install-dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-adapters site data/demo
