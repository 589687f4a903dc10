# Two commands for a fresh machine: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test setup setup-test lint clean

demo: setup  ## the main job: collect, train, evaluate, plot, render
	$(BIN)/dopr demo

test: setup-test  ## everything that is checked
	$(BIN)/python -P -m pytest -q -n 2 --dist worksteal

lint: setup-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(VENV)/.core
setup-test: $(VENV)/.test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

# constraints.txt pins torch's CPU build where the index has one; edit it to train on a GPU.
$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
