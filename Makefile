# Every target makes its environment when there is none.
#   make quickstart   train the quickstart's model and see it answer
#   make test         run the tests, in JOBS (3) processes: those with Ray wait for much of their time
#   make soak         kill runs at random SOAK times (20) and at exact points; takes ten minutes and more
#   make real MODEL=path   compare losses with TRL's on the real weights of SmolLM2-135M, step by step
#   make lint         ruff, mypy, import-linter
#   make docs         write the references and the JSON schemas
#   make site         build the documentation into site/; a broken link is an error
#   make format       format the code
#   make clean        remove the environment
# PYTHON is the interpreter to build with (3.10 or newer), VENV the environment's folder,
# PIP_ARGS goes to pip: without a GPU, PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# takes torch's smaller build.

PYTHON ?= python3
VENV ?= .venv
SOAK ?= 20
JOBS ?= 3
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: quickstart test soak real model-given lint docs site format clean

quickstart: $(VENV)/.installed
	$(BIN)/tailor run recipes/quickstart.yaml

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

soak: $(VENV)/.installed-dev
	SOAK=$(SOAK) $(BIN)/python -m pytest -s -m soak

real: model-given $(VENV)/.installed-bench
	$(BIN)/python benchmarks/parity/run.py "$(MODEL)"

model-given:
	@test -n "$(MODEL)" || { echo "make real needs the folder of SmolLM2-135M: make real MODEL=path" >&2; exit 1; }

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/tailor schema > recipes/schema.json
	$(BIN)/tailor schema --reference > docs/recipe-reference.md
	$(BIN)/tailor schema --cluster > cluster/schema.json
	$(BIN)/tailor schema --cluster --reference > docs/cluster-reference.md
	$(BIN)/tailor schema --evaluation > recipes/evaluation.schema.json
	$(BIN)/tailor schema --evaluation --reference > docs/evaluation-reference.md
	$(BIN)/tailor schema --output > docs/output.schema.json
	$(BIN)/tailor schema --trainers > docs/moving-over.md

site: $(VENV)/.installed-dev
	$(BIN)/python -m mkdocs build --strict

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "tailor needs Python 3.10 or newer; name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[bench]'
	touch $(VENV)/.installed $@
