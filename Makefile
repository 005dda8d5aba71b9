# `make help` lists the targets. A fresh machine needs Python >= 3.11 with pip, make, and a package index.

PYTHON ?= python3
VENV := .venv
JOBS ?= 2
ARGS ?=

# Compiled programs are kept between runs, and so is Python's bytecode, without which each process compiles all it imports.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export PYTHONDONTWRITEBYTECODE =

EXTRAS_demo := train,convert,eval
EXTRAS_test := $(EXTRAS_demo),test
EXTRAS_lint := dev
EXTRAS_docs := docs
EXTRAS_types := types
EXTRAS_interop := interop
EXTRAS_compile := $(EXTRAS_demo),tpu

PYTEST = $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -q $(ARGS)

PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all test-interop bench compile-check lint types docs dist clean

help: ## Lists the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1  /' | expand -t 18

demo: $(VENV)/.installed-demo ## Aligns a small real model; the report is runs/demo/report/index.html.
	$(VENV)/bin/python -m experiments.demo --config=configs/demo.py --workdir=runs/demo $(ARGS)

test: $(VENV)/.installed-test ## Runs every test but those marked slow; CONTRIBUTING.md has the time.
	$(PYTEST) -m "not slow"

PART ?= 0/1
test-slow: $(VENV)/.installed-test ## Runs the tests marked slow, or a part of them: make test-slow PART=0/6
	$(PYTEST) -m slow --part=$(PART)

test-all: $(VENV)/.installed-test ## Runs every test.
	$(PYTEST)

bench: $(VENV)/.installed-demo ## Ours and the peers in turn, about an hour; tables in experiments/benchmarks/RESULTS.md.
	$(VENV)/bin/python -m experiments.benchmarks.bench.run $(ARGS)

compile-check: $(VENV)/.installed-compile ## Compiles the paper configs for TPU slices, hours on two cores; the table is in docs/pods.md.
	$(VENV)/bin/python -m experiments.studies.compile_table $(ARGS)

test-interop: ## Runs the examples in other people's loops against the real packages, in an environment of their own.
	$(MAKE) VENV=.venv-interop .venv-interop/.installed-interop
	.venv-interop/bin/python -m pytest tests/interop_test.py $(ARGS)

lint: $(VENV)/.installed-lint ## Checks the code's style and formatting.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-types ## Checks the public modules' annotations.
	$(VENV)/bin/pyright

docs: $(VENV)/.installed-docs ## Builds the documentation into site/; any warning fails.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

dist: $(VENV)/bin/python ## Builds the wheel and the sdist into dist/.
	@$(PIP) "setuptools>=77"
	$(VENV)/bin/python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"

clean: ## Removes what make, pip and Python made, except runs/.
	rm -rf $(VENV) .venv-interop .jax_cache .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps keep a second call from installing again; changed metadata makes them stale. uv installs four times as fast as pip,
# which takes over where uv cannot be had.
$(VENV)/.installed-%: setup.py pyproject.toml | $(VENV)/bin/python
	@echo "Installing qempo_jax[$(EXTRAS_$*)] into $(VENV) ..."
	@{ $(PIP) uv && $(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python -e '.[$(EXTRAS_$*)]'; } || \
	  $(PIP) -e '.[$(EXTRAS_$*)]'
	@touch $@

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here: install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "qempo_jax needs Python 3.11 or newer, and $(PYTHON) is older:" \
	    "name another, as in make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) could not make $(VENV): install its venv module (on Debian, python3-venv)." >&2; exit 1; }
