# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
export TOKENIZERS_PARALLELISM = true

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.core  ## teacher, students and their comparison on the embedded corpus, in about five minutes
	@rm -rf runs/demo
	$(BIN)/kdresearch train study=demo threads=1 student=ngram strategy=supervised hydra.run.dir=runs/demo/floor
	@mkdir -p runs/demo && echo "feature and attention run beside the others: runs/demo/layers.log"
	@$(BIN)/kdresearch train -m experiment=demo strategy=feature,attention seed=1,2,3 \
	    hydra.sweeper.report=false hydra.sweep.dir=runs/demo/layers > runs/demo/layers.log 2>&1 & layers=$$!; \
	$(BIN)/kdresearch train -m experiment=demo strategy=supervised,soft_label seed=1,2,3 \
	    hydra.sweeper.report=false hydra.sweep.dir=runs/demo/students && \
	$(BIN)/kdresearch train -m experiment=demo strategy=generative generator=resample student.training.batch_size=64 \
	    seed=1,2,3 hydra.sweeper.report=false hydra.sweep.dir=runs/demo/generative && \
	wait $$layers || { cat runs/demo/layers.log; exit 1; }
	$(BIN)/kdresearch report runs/demo --output runs/demo/report

test: $(VENV)/.dev  ## the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:  ## remove the environment, the demo's runs and what was built
	rm -rf $(VENV) dist runs/demo .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/pip pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) --editable '.[dev,hub,tensorboard,launch]'
	touch $@
