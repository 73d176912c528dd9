# Everything below sets itself up first: .venv holds exactly envs/requirements.lock and this package.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCHMARKS := $(filter-out %/gpu.py %/trainer.py, $(wildcard benchmarks/speed/*.py benchmarks/accuracy/*.py benchmarks/agreement/*.py))

.DEFAULT_GOAL := help
.PHONY: help run check test test-cluster mutants lint config bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): envs/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed: install it, or name it by make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing the locked packages into $(VENV) (some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(READY) ## the whole pipeline on the embedded demo data, ending with a report
	$(BIN)/snakemake --cores all
	@echo; echo "open results/demo/report.html"

check: $(READY) ## unit tests that are not slow, for every change (some minutes)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" tests/unit

test: $(READY) ## all tests, in two processes; those that need the whole machine after the others
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not alone" --ignore tests/cluster
	$(BIN)/python -m pytest -q -m alone tests/unit/training/test_processes.py

test-cluster: $(READY) ## the workflow on a real Slurm on this machine: Debian or Ubuntu, as root
	@command -v /usr/sbin/slurmctld > /dev/null || \
		{ apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge > /dev/null; }
	$(BIN)/python -m pytest -q tests/cluster

mutants: $(READY) ## small errors, one at a time, that tests should notice; prints those that none did (long)
	$(BIN)/python tests/mutants.py

lint: $(READY) ## format, style, types, workflow
	$(BIN)/ruff format --check workflow tests benchmarks examples resources setup.py
	$(BIN)/ruff check workflow tests benchmarks examples resources setup.py
	$(BIN)/snakefmt --check Snakefile workflow/Snakefile workflow/rules
	$(BIN)/mypy
	$(BIN)/snakemake --lint

config: $(READY) ## update config/config.yaml, the schema and the table of keys from the config models
	$(BIN)/python -m atomloom.config.generate

bench: $(READY) ## the benchmarks behind docs/measured.md but those of a GPU and of another checkout (long); ATOMLOOM_DATA names the data sets
	for name in $(subst /,.,$(basename $(BENCHMARKS))); do $(BIN)/python -m $$name || exit 1; done

clean: ## remove what the demo made (results/, store/), not the environment
	rm -rf results store .snakemake
