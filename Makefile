# Everything below sets itself up first: .venv holds exactly envs/requirements.lock and this package.
# PYTHON (3.11, 3.12 or 3.13) and TORCH (docs/installing.md) count when .venv is made, and it is made again when
# they name others than it has.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(wildcard $(VENV)/bin/python) $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3))
MINOR := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
VARIANT := $(notdir $(TORCH:%/=%))
READY := $(VENV)/.ready
BENCHMARKS := $(filter-out %/gpu.py %/trainer.py %/lock_wheels.py %/peers.py, $(wildcard benchmarks/speed/*.py benchmarks/accuracy/*.py benchmarks/agreement/*.py))

.DEFAULT_GOAL := help
.PHONY: help run check test test-cluster mutants lint config bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(PYTHON) $(MINOR)) $(VARIANT),$(shell $(BIN)/python $(MINOR)) $(if $(TORCH),$(shell cat $(VENV)/.torch 2> /dev/null)))
OTHER := other
endif
endif
.PHONY: other
other:

$(READY): envs/requirements.lock pyproject.toml $(OTHER)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed: install one, or name it by make PYTHON=..."; exit 1; }
	python=$$($(PYTHON) -c 'import os, sys; print(os.path.realpath(sys.executable))'); \
		$(if $(OTHER),rm -rf $(VENV);) "$$python" -m venv $(VENV)
	@echo "installing the locked packages into $(VENV) (some minutes the first time)"
	$(if $(findstring /,$(TORCH)),PIP_EXTRA_INDEX_URL="$(TORCH) $$PIP_EXTRA_INDEX_URL") $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-r envs/requirements.lock $(if $(TORCH),"$$(grep '^torch==' envs/requirements.lock)+$(VARIANT)")
	$(if $(TORCH),@echo "$(VARIANT)" > $(VENV)/.torch)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(READY) ## the whole pipeline on the embedded demo data, ending with a report
	$(BIN)/snakemake --cores all
	@echo; echo "open results/demo/report.html"

check: $(READY) ## unit tests that are not slow, for every change (some minutes)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" tests/unit

test: $(READY) ## all tests, in two processes; those that need the whole machine after the others
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not alone" --ignore tests/cluster
	$(BIN)/python -m pytest -q -m alone tests/unit/training/test_processes.py

test-cluster: $(READY) ## the workflow on a real Slurm on this machine: Debian or Ubuntu; root, unless Slurm is installed
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

bench: $(READY) ## the benchmarks behind docs/measured.md but those of a GPU, of another checkout and of a network (long); ATOMLOOM_DATA names the data sets
	for name in $(subst /,.,$(basename $(BENCHMARKS))); do $(BIN)/python -m $$name || exit 1; done

clean: ## remove what the demo made (results/, store/), not the environment
	rm -rf results store .snakemake
