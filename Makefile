# Two commands for a fresh machine: `make demo` and `make test`. Both set up what they need in .venv; the tests of simulators that ask
# for an older MuJoCo and NumPy run in .venv-sim.
PYTHON ?= python3
VENV ?= .venv
VENV_SIM ?= .venv-sim
BIN := $(VENV)/bin
# uv where it is there, pip otherwise. setuptools says of every editable install that folders named like a package may shadow it; ours at
# the top are doors that nothing imports through (tests/test_repository.py), so that is not repeated to a newcomer.
UV := $(shell command -v uv 2>/dev/null)
NEW := $(if $(UV),$(UV) venv -q --seed --python $(PYTHON),$(PYTHON) -m venv)
export PYTHONWARNINGS := ignore:Editable installation
install = $(if $(UV),$(UV) pip install -q --python $(1)/bin/python,$(1)/bin/python -m pip install -q --disable-pip-version-check)
PYTEST = -m pytest -q -p xdist -p timeout -n 2 --dist worksteal
SIM_TESTS = $$(grep -rl mark.sim tests --include='test_*.py')

# Zarr, Hydra and others bring plugins for pytest, for whose sake all their code is compiled anew in each of its processes: 4 s a process.
test test-slow: export PYTEST_DISABLE_PLUGIN_AUTOLOAD := 1

.PHONY: demo test test-slow test-lowest bench build docs setup setup-test setup-sim lint clean

demo: setup  ## the main job: collect, train, evaluate, plot, render
	$(BIN)/dopr demo

test: setup-test setup-sim  ## everything that is checked
	$(BIN)/python -P $(PYTEST) -p hypothesispytest --durations 40 --durations-min 5 -m "not sim and not slow"
	$(VENV_SIM)/bin/python -P $(PYTEST) --durations 20 --durations-min 5 -m "sim and not slow" $(SIM_TESTS)

test-slow: setup-sim  ## what takes minutes: every expert of Meta-World's, policies from pixels, pictures of gym-aloha
	$(VENV_SIM)/bin/python -P $(PYTEST) -m slow $(SIM_TESTS)

test-lowest:  ## the main job on the oldest versions that pyproject.toml allows; takes uv
	uv venv -q --clear --python $(PYTHON) .venv-lowest
	uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e .
	cd $$(mktemp -d) && $(CURDIR)/.venv-lowest/bin/python -P $(CURDIR)/.ci/trial.py

bench: setup  ## the CPU benchmarks in short form, against the last lines of benchmarks/history.jsonl
	$(BIN)/python -P benchmarks/bench.py

build: setup  ## wheel and sdist into dist/, each installed alone in an empty environment and tried
	$(call install,$(VENV)) build
	$(BIN)/python .ci/build.py

docs: $(VENV)/.docs  ## the site, into build/site: a link that leads nowhere or a public name without a docstring fails
	$(BIN)/python -P .ci/docs.py

lint: setup-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(VENV)/.core
setup-test: $(VENV)/.test
setup-sim: $(VENV_SIM)/.test

$(BIN)/python:
	$(NEW) $(VENV)

# constraints.txt pins torch's CPU build where the index has one; edit it to train on a GPU.
$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	@echo "$(VENV): what dopr needs, 1.7 GB (4 GB more with a torch built for CUDA)"
	$(call install,$(VENV)) -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "$(VENV): what its tests need, 1.9 GB more"
	$(call install,$(VENV)) -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@

$(VENV_SIM)/.test: pyproject.toml constraints-sim.txt
	@echo "$(VENV_SIM): simulators that ask for an older MuJoCo and NumPy, 3.1 GB (4 GB more with a torch built for CUDA)"
	$(NEW) $(VENV_SIM)
	$(call install,$(VENV_SIM)) -c constraints-sim.txt -e ".[test-sim]"
	$(VENV_SIM)/bin/python -m pip download -q --no-deps -d $(VENV_SIM)/wheels robosuite==1.4.1  # carries human demonstrations
	touch $@

clean:
	rm -rf $(VENV) $(VENV_SIM) .venv-lowest build dist *.egg-info
