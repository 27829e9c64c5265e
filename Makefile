# Every target sets up what it needs by itself; `make help` lists them.

PYTHON ?= python3
SUITE ?= $(if $(CKPT),checkpoint,table1)
SITE ?= configs/site/local.toml
RUNS ?= runs
DATA ?=
ROOTS ?=
CKPT ?=
BRANCH ?= online
SET ?=
STRICT ?=

# Waiting threads spin for microseconds only: without spinning an idle machine trains half as fast,
# with the default (milliseconds) a busy one ten times slower.
export GOMP_SPINCOUNT ?= 10000

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
DATA_FLAGS = $(if $(DATA),--data "$(DATA)") $(foreach root,$(ROOTS),--data "$(root)")
WHERE = --site "$(SITE)" --runs "$(RUNS)" $(DATA_FLAGS) $(if $(STRICT),--strict) \
	$(if $(CKPT),--checkpoint "$(CKPT)" --branch $(BRANCH)) $(SET)
LAUNCH = $(BIN)/python -m launch
NO_GPU := not gpu and not longrun
PARALLEL = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
FAST := $(NO_GPU) and not slow and not slurm and not browser and not d2

.DEFAULT_GOAL := help
.PHONY: help setup demo plan doctor pretrain transfer-all svm report status \
	test test-fast test-d2 check format lint types clean

help: ## List the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'
	@echo
	@echo "  Variables: DATA=folder of data sets  CKPT=checkpoint to start from  BRANCH=online|target"
	@echo "             ROOTS='coco2017=folder ...' for single sets that lie elsewhere"
	@echo "             STRICT=1 refuses what departs from the published protocols"
	@echo "             SUITE=name or TOML  SITE=TOML  RUNS=folder of results  SET='key.sub=value ...'"

setup: $(STAMP) ## Virtual environment, torch, this package, Detectron2 where it can be had
$(STAMP): pyproject.toml constraints.txt .ci/setup
	@PYTHON=$(PYTHON) VENV=$(VENV) bash .ci/setup
	@touch $@

demo: $(STAMP) ## The whole pipeline on built-in pictures: pretrain, convert, detect, SVM, report
	@$(BIN)/python -m sslbench.scenes --out data/scenes
	@$(LAUNCH) run demo --site "$(SITE)" --runs "$(RUNS)"

plan: $(STAMP) ## Print the stages of SUITE and their state
	@$(LAUNCH) plan $(SUITE) $(WHERE)

doctor: $(STAMP) ## Are the data there, whole and official? All data sets, or those of SUITE=
	@$(LAUNCH) doctor $(if $(filter file,$(origin SUITE)),,$(SUITE)) --site "$(SITE)" $(DATA_FLAGS)

pretrain: $(STAMP) ## Run the pretraining stages of SUITE
	@$(LAUNCH) run $(SUITE) $(WHERE) --only pretrain

transfer-all: $(STAMP) ## Run every stage of SUITE and print the table; CKPT=path starts from a checkpoint
	@$(LAUNCH) run $(SUITE) $(WHERE)

svm: $(STAMP) ## Run the VOC07 SVM stages of SUITE
	@$(LAUNCH) run $(SUITE) $(WHERE) --only svm

report: $(STAMP) ## Write the report of SUITE from what is finished and print its table
	@$(LAUNCH) report $(SUITE) $(WHERE)

status: $(STAMP) ## Show the state and progress of SUITE
	@$(LAUNCH) status $(SUITE) $(WHERE)

test: $(STAMP) ## Every test that needs no GPU
	@$(PARALLEL) -m "$(NO_GPU)" $(PYTEST)

test-fast: $(STAMP) ## The tests of under five minutes
	@$(PARALLEL) -m "$(FAST)" $(PYTEST)

test-d2: $(STAMP) ## The tests against Detectron2; fails where it is missing
	@SSLBENCH_REQUIRE_D2=1 $(BIN)/python -m pytest -m "d2 and $(NO_GPU)" $(PYTEST)

check: lint types ## Format, lint, types and layering, in seconds
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m pytest -q tests/test_layering.py

format: $(STAMP) ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(STAMP) ## Lint the code
	@$(BIN)/ruff check .

types: $(STAMP) ## Check the types of sslbench, transfer and launch
	@$(BIN)/mypy

clean: ## Remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
