# Every target makes or refreshes the environment first, so each is enough on a fresh machine.
#   make repro BUDGET=smoke                   another budget than the one in params.yaml
#   make setup PYTHON=python3.11              another interpreter (3.10 or newer)
#   make setup TORCH_INDEX=<index address>    torch from an index of your choice, such as the one of your CUDA version
#   make setup VENV=<folder>                  an environment of your own; an active conda environment "replicate" is taken by itself

PYTHON ?= python3
VENV ?= $(if $(filter replicate,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),.venv)
TORCH_INDEX ?=
BUDGET ?=
JOBS ?= 2
TARGET ?=
FILES ?= 2000

# The stages of the pipeline call `python` and `dvc`: the environment's own come first.
RUN = PATH="$(abspath $(VENV))/bin:$$PATH" DVC_NO_ANALYTICS=1

# A file's tests share costly fixtures, so they stay in one process.
TESTS = python -m pytest -n $(JOBS) --dist loadfile
PYTEST = $(RUN) $(TESTS)

.DEFAULT_GOAL := help
.PHONY: help setup test test-all faults sanitize lint smoke stages repro repro-all grid lab lock clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: ## the environment: .venv, pinned packages, FFCV, the package itself, the crop decoder
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "setup: Python 3.10 or newer is needed and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --torch-index "$(TORCH_INDEX)"

lint: setup ## ruff, and the order of imports
	$(RUN) ruff check .
	$(RUN) lint-imports --no-cache

test: lint ## lint, the tests, and the whole pipeline at the smoke budget in a temporary folder
	$(RUN) python tools/side_by_side.py $(TESTS) -- python tools/smoke_pipeline.py

test-all: lint ## as test, with the slow tests
	$(PYTEST) -m "slow or not slow"
	$(RUN) python tools/smoke_pipeline.py

faults: setup ## every fault of docs/faults.md, injected, and several processes against one; the slow tests too
	$(PYTEST) -m "slow or not slow" $$(grep -ohE '(crop_decode/)?tests/test_[a-z_]*\.py' docs/faults.md | sort -u) tests/test_distributed.py

sanitize: setup ## the C decoder under AddressSanitizer and UBSan, on mutated JPEGs (FILES=2000)
	$(RUN) python tools/sanitize.py $(FILES)

smoke: setup ## the pipeline at the smoke budget alone
	$(RUN) python tools/smoke_pipeline.py

# A downloaded archive has no git repository, which DVC must be told.
stages: setup
	@git rev-parse --git-dir >/dev/null 2>&1 || $(RUN) dvc config --local core.no_scm true
	@$(RUN) python -m replicate stages

repro: stages ## the main job: data, training, tables, figures, notebooks (BUDGET=smoke|laptop|...; TARGET=notebook@PAPER)
	$(if $(BUDGET),$(RUN) python -m replicate budget $(BUDGET))
	$(RUN) python -m replicate repro $(TARGET)

repro-all: ## the same as repro, with every pre-training trained here: hours on two cores (budget evening)
	$(MAKE) repro BUDGET=evening

grid: stages ## the papers' full grids, or one stage of them (TARGET=evaluate@NAME, TARGET=notebook@PAPER)
	cp grids/pipeline.yaml grids/dvc.yaml
	$(RUN) dvc repro grids/dvc.yaml$(if $(TARGET),:$(TARGET))
	if [ -f dvc.lock ] && grep -q '^  scoreboard:' dvc.lock; then $(RUN) dvc repro --single-item --force scoreboard site; fi

lab: setup ## JupyterLab with the project's kernel
	$(RUN) jupyter lab --MultiKernelManager.default_kernel_name=replicate $$([ "$$(id -u)" = 0 ] && echo --allow-root)

lock: ## requirements.lock and environment.yml from what the environment holds now
	$(RUN) python tools/write_lock.py

clean: ## remove caches and build products; environment, data and results stay
	rm -rf build crop_decode/build crop_decode/src/*.egg-info .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove the environment as well
	rm -rf "$(VENV)"
