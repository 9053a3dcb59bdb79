# make demo    segment the default pictures with the bundled model -> output/demo/
# make test    run the tests that need no GPU
# make lint    style and types
# make bench   measure this machine
# make ops     compile the op for CPU and, where nvcc is, for CUDA (INSTALL.md, "The compiled op")
# make clean   remove build products and caches; results in output/ and the environment stay
#
# Each target makes or completes the environment first; that is a matter of seconds when nothing is missing. Where a
# compiler is there, that includes the op for CPU.
# Variables: PYTHON (makes the environment), VENV (its folder), WORKERS (test processes), ARGS (added to the command).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=
RUN := $(VENV)/bin/python
INSTALL := $(PYTHON) tools/install.py --venv $(VENV) --ops cpu

.PHONY: demo test lint types bench ops env clean
.NOTPARALLEL:

demo:
	$(INSTALL) --extras demo
	$(RUN) demo/demo.py $(ARGS)

test: env
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m "not gpu" -n $(WORKERS) --dist worksteal $(ARGS)

lint: env
	$(RUN) -m ruff check .
	$(MAKE) --no-print-directory types

types:
	$(RUN) -m mypy mask2former/modeling mask2former/ops

bench: env
	$(RUN) tools/benchmark.py $(ARGS)

ops: env
	$(RUN) tools/build_ops.py

env:
	$(INSTALL) --extras dev,demo

clean:
	rm -rf build dist mask2former.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis mask2former/ops/_*.so
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
