# make demo | make test | make lint; each installs into .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where to get torch and torchaudio from: empty is PyPI (with CUDA on Linux, about 5 GB), CPU=1 the CPU builds.
ifdef CPU
TORCH_INDEX := --index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: help install demo reproduce test gpu lint format clean

help:
	@echo "make demo     the whole pipeline on generated sounds with an untrained encoder (minutes)"
	@echo "make reproduce [TASKS=\"esc50 icbhi\"] [DATA=folder] [YES=1] [ARGS=--dry-run]   the whole study"
	@echo "make test     the tests (no GPU, network or weights needed)"
	@echo "make gpu      on a machine with a GPU: its tests, and how fast it extracts and fits"
	@echo "make lint     ruff: rules and format"
	@echo "make install  only create .venv; CPU=1 takes the smaller CPU-only builds of torch"
	@echo "make clean    remove .venv and data/demo"

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info < (3, 14); sys.exit(0 if ok else \
	  "error: Python 3.10 to 3.13 is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install $(TORCH_INDEX) $$(grep -oE '^torch(audio)?==[0-9.]+' requirements.txt))
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

demo: install
	$(BIN)/python -m demo.run

reproduce: install
	$(BIN)/python -m analysis.reproduce $(TASKS) $(if $(DATA),--data "$(DATA)") $(if $(YES),--yes) $(ARGS)

test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

gpu: install
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/extraction.py --clips 4000 --seconds 4 --rate 16000 --compile
	$(BIN)/python benchmarks/extraction.py --clips 4000 --seconds 4 --rate 16000 --flac --precisions bf16
	$(BIN)/python benchmarks/fitting.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) data/demo
