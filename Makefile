# `make demo` on a fresh machine needs Python 3.11 to 3.13, bash, and the network once, for the packages. Every target
# sets up .venv by itself; `make` alone lists the targets.
SHELL := bash
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

# Without TensorFlow's notes about its build.
export TF_CPP_MIN_LOG_LEVEL ?= 2

BIN := .venv/bin
# Which tests `make test` runs, a pytest marker expression: `make test MARKERS=` runs all.
MARKERS ?= not slow
# How many files of tests run side by side: often one waits for a process of its own. Each takes some gigabytes.
TEST_PROCESSES ?= 3
# More arguments of pytest: `make test PYTEST_ARGS="tests/layers -x"`.
PYTEST_ARGS ?=
PYTEST = $(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder
# The public modules of packages, and the top modules that `make docs` leaves out.
PUBLIC = data.sources data.pipeline data.picture_folder models.nvae models.latents models.outlier_scores \
  models.denoising models.restoration models.reweighted_prior optimization.adamax optimization.schedule \
  optimization.step_guard runs.loading runs.sharing published.torch_file generation.sampling generation.latents_file \
  evaluation.likelihood evaluation.batch_norm_statistics evaluation.fid evaluation.outliers reports.figures \
  training.prior serving.client serving.saved_model
INTERNAL = command_line|distributions|errors|files|flows|layers|objective|progress|replicas|schemas
# Another Python than the first that fits: `make demo PYTHON=/usr/local/bin/python3.12`.
export PYTHON ?=

# Empty where an installation was cut off, the folder was moved, or the environment's Python is gone.
HEALTHY := $(shell [ ! -e .venv/.installing ] && [ "$$(cat .venv/.installed 2>/dev/null)" = "$(CURDIR)" ] \
  && $(BIN)/python -c '' 2>/dev/null && echo yes)

.PHONY: help demo test test-slow lint format docs torch clean not-healthy

help:  ## This list.
	@sed -nE 's/^([a-z-]+):.*## */\1|/p' Makefile | while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

demo: .venv/.installed  ## Train on handwritten digits, look at samples, export; images in runs/demo (some minutes).
	$(BIN)/python -m train.demo --workdir=runs/demo

test: .venv/.installed  ## The test suite, less the slow tests.
	$(PYTEST) -m "$(MARKERS)" $(PYTEST_ARGS)

test-slow: .venv/.installed  ## The slow tests alone.
	$(PYTEST) -m slow $(PYTEST_ARGS)

lint: .venv/.installed  ## Check style and formatting.
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/.installed  ## Fix formatting and the order of imports.
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

docs: .venv/.installed  ## The reference page of the public API, from the docstrings, in build/docs.
	$(BIN)/python -W error::UserWarning -m pdoc --output-directory build/docs \
	  nvae_tf '!nvae_tf[.]\w+[.]' '!nvae_tf[.]($(INTERNAL))$$' $(PUBLIC:%=nvae_tf.%)

torch: .venv/.installed-torch  ## Add PyTorch: for published *.pt files and for the yardstick of the benchmarks.

clean:  ## Remove .venv and caches; runs/ stays.
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: setup.cfg pyproject.toml constraints.txt $(if $(HEALTHY),,not-healthy)
	@bash scripts/set_up_environment.sh serving,tflite,onnx,reports,compress,test,docs

.venv/.installed-torch: .venv/.installed
	@echo "Adding PyTorch (from 200 MB for a CPU to 3 GB with CUDA, as the package index has it for this machine)."
	@bash scripts/set_up_environment.sh serving,tflite,onnx,reports,compress,test,docs,torch
	@touch $@
