# Each verb makes the virtual environment it needs and builds what is out of date; a second run starts at once.
#
#   make demo FILE=big.bin           a file of yours instead of random bytes
#   make test ARGS="-k redirect"     arguments for pytest
#   make bench ARGS=--quick          arguments for the benchmark
#   make check PYTHON=python3.13     another Python (the environment is made anew for it; VENV= keeps two)

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
FILE   ?=
BASE   ?= main
REQUIRE ?=

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --quiet --disable-pip-version-check --no-input
NATIVE := $(wildcard engine/*.pyx engine/*.pxd engine/*.h)
EXTENSIONS := $(patsubst engine/%.pyx,engine.%,$(wildcard engine/*.pyx))
SCRIPTS := $(sort $(wildcard bench/micro_*.py))
SANITIZERS := $(sort $(wildcard tests/fuzz/run_*.sh))

.PHONY: help demo test check bench bench-micro bench-gate bench-scaling sanitize clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:
	@echo 'make demo      a file is refused by one server, stored by another, and sent once (loopback, no account)'
	@echo 'make test      the tests, without root and without other servers'
	@echo 'make check     formatting, lint, types, stubs'
	@echo 'make bench     engine beside every other client that is installed: 20 minutes, or ARGS=--quick'
	@echo 'make bench-micro  one hot function each, beside rivals and bare C loops'
	@echo 'make bench-gate   is this tree slower than BASE (main)?'
	@echo 'make bench-scaling  how the cost of a PUT grows by size, connections and distance: 4 minutes'
	@echo 'make sanitize  the C parts under sanitizers and fuzzers'
	@echo 'make clean     remove everything that the others made'

demo: $(VENV)/.built
	@$(VENV)/bin/putengine demo $(FILE)

test: $(VENV)/.test
	@$(RUN) -m pytest -n 2 $(ARGS)

check: $(VENV)/.dev
	@$(RUN) -m ruff format --check --quiet . || { echo "remedy: $(RUN) -m ruff format ."; exit 1; }
	@$(RUN) -m ruff check --quiet --output-format concise .
	@$(RUN) -m mypy
	@$(RUN) -m mypy.stubtest --concise --mypy-config-file pyproject.toml --allowlist tools/stubtest.allow \
		--ignore-unused-allowlist --ignore-disjoint-bases $(EXTENSIONS) && echo "stubs: complete"

bench: $(VENV)/.bench
	@$(RUN) -m bench $(ARGS)

bench-gate: $(VENV)/.bench
	@$(RUN) -m bench.gate --base $(BASE) $(ARGS)

bench-scaling: $(VENV)/.bench
	@$(RUN) -m bench.scaling $(ARGS)

bench-micro: $(VENV)/.bench
	@set -e; for script in $(SCRIPTS); do echo "== $$script"; $(RUN) $$script $(ARGS); done

# 77: something is missing that only this one needs. REQUIRE=1, as .ci/run sets it, makes a failure of that.
sanitize: $(VENV)/.test
	@for script in $(SANITIZERS); do \
		echo "== $$script"; \
		PYTHON=$(abspath $(RUN)) sh $$script && continue || status=$$?; \
		[ $$status = 77 ] && [ -z "$(REQUIRE)" ] && echo "== $$script is left out" || exit $$status; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info engine/*.so engine/*.c .demo
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment -------------------------------------------------------------------------------------------------

# Looked at each time, touched only when made anew: what depends on it is then made anew too.
$(VENV)/.made: FORCE
	@$(PYTHON) tools/environment.py make $(VENV)

$(VENV)/.built: $(VENV)/.made pyproject.toml setup.py $(NATIVE)
	@echo 'building the extensions'
	@$(PIP) install 'setuptools>=77' 'cython>=3.1'
	@$(PIP) install --no-build-isolation --editable .
	@touch $@

$(VENV)/.test $(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: $(VENV)/.built
	@echo 'installing the requirements of putengine[$*]'
	@$(RUN) tools/environment.py extra $* >$@.txt
	@$(PIP) install --requirement $@.txt
	@touch $@

FORCE:
