# make demo       segment example images with the bundled models -> output/demo/
# make test       run the tests that need no GPU
# make test-fast  run those that take no long time: about a minute
# make chaos      kill a tiny training N times (N=30), and compare what it leaves with an uninterrupted one
# make coverage   run the tests and print which lines of the package no test reaches
# make fuzz       damage files of every kind and look for what only an attacker would find: N cases of each kind
#                 (N=10000), KIND=coco for one kind, OFFSET=0 the first seed; CONTRIBUTING.md, "Tests"
# make lint       style, format and types
# make format     repair style and format
# make docs       the documentation as a site -> build/site/index.html
# make bench      measure this machine
# make learn      the regression test of learning: train on the shapes world and compare PQ with its bound; 20 minutes on
#                 a GPU, MATRIX=docs/training/learn_cpu.yaml for minutes on a CPU; docs/training.md
# make ops        compile the op for CPU and, where nvcc is, for CUDA (INSTALL.md, "The compiled op")
# make clean      remove build products and caches; results in output/ and the environment stay
#
# Each target makes or completes the environment first; that is a matter of seconds when nothing is missing. Where a
# compiler is there, that includes the op for CPU; where an NVIDIA GPU and nvcc are, for CUDA too.
# Variables: PYTHON (makes the environment), VENV (its directory), WORKERS (test processes), ARGS (added to the command).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=
N ?= 1000
KIND ?=
OFFSET ?= 0
MATRIX ?= docs/training/shapes_panoptic.yaml
RUN := $(VENV)/bin/python
# Core by core: on machines with many cores PyTorch's threads would be in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal
# These start programs, or run whole models.
SLOW_TESTS := tests/datasets tests/demo tests/docs tests/parity tests/tools
INSTALL := $(PYTHON) tools/install.py --venv $(VENV)

.PHONY: demo test test-fast fuzz chaos coverage lint types format docs bench learn ops env clean
.NOTPARALLEL:

demo:
	$(INSTALL) --extras demo
	$(RUN) demo/demo.py $(ARGS)

test: env
	$(PYTEST) -m "not gpu" $(ARGS)

test-fast: env
	$(PYTEST) -m "not gpu and not slow" $(addprefix --ignore=,$(SLOW_TESTS)) $(ARGS)

chaos: N = 30
chaos: env
	OMP_NUM_THREADS=1 $(RUN) tests/fuzz/chaos.py --kills $(N) $(ARGS)

coverage: env
	$(PYTEST) -m "not gpu" --cov --cov-report=term --cov-report=html:build/coverage/html $(ARGS)

fuzz: env
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz $(KIND) --count $(N) --offset $(OFFSET) $(ARGS)

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(MAKE) --no-print-directory types

types:
	$(RUN) -m mypy mask2former mask2former_video

format: env
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs:
	$(INSTALL) --extras docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict $(ARGS)

bench: env
	$(RUN) tools/benchmark.py $(ARGS)

learn: env
	$(RUN) tools/compare_recipes.py $(MATRIX) --restart --check $(ARGS)

ops: env
	$(RUN) tools/build_ops.py

env:
	$(INSTALL) --extras dev,demo

clean:
	rm -rf build dist mask2former.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis mask2former/ops/_*.so
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
