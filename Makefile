# Two commands: `make demo` shows it, `make test` proves it. Each sets itself up in .venv.

PYTHON ?= python3
DURATION ?= 20s
# Of tests: one more than there are cores, because those of cameras and faults mostly wait.
PROCESSES ?= $(shell expr $$(nproc) + 1)
PY := .venv/bin/python

.PHONY: demo test coverage lint docs install clean

demo: .venv/installed
	@.venv/bin/streamexit demo --duration $(DURATION)

test: .venv/installed
	@.venv/bin/pytest --numprocesses $(PROCESSES) --dist worksteal

# Of the parts that pyproject.toml names, by the tests that are theirs.
coverage: .venv/installed
	@.venv/bin/coverage run -m pytest -q tests/scheduling tests/budget tests/engine tests/wire tests/config \
	  tests/sinks/test_spool.py tests/sinks/test_delivery.py tests/sinks/test_lost_copies.py tests/test_*.py \
	  --ignore tests/test_commands.py --ignore tests/test_architecture.py
	@.venv/bin/coverage report

lint: .venv/installed
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

docs: .venv/installed
	@$(PY) docs/site_pages.py out/pages
	@.venv/bin/zensical build --clean --strict

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "streamexit needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv (PyTorch is large: about 5 GB, some minutes on a slow line) ..."
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	$(PY) -m pip install --disable-pip-version-check --no-input uv
	.venv/bin/uv pip install --compile-bytecode --python $(PY) --constraints constraints.txt --editable '.[broker,http,clips,plots,benchmarks,scenes,int8,docs,test]'
	@touch $@

clean:
	rm -rf .venv
