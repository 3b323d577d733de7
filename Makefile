# Everything a developer runs. Nothing is needed but CPython >= 3.11, make and pip's access to a package index;
# pip's own configuration (PIP_*, pip.conf) is what decides which.
#
#   make demo     the whole system on this machine, on embedded servers
#   make test     all tests but those of single faults
#   make secantus  the tests that say what SecantusDB must be able to do where it stands in for mongod
#   make fault    tests that kill, suspend and cut off servers
#   make chaos    seeded faults for SECONDS, half of them on each broker, and an audit; SEED replays a run
#   make mutants  the store without one of its guards at a time: a test must fail for each
#   make matrix   every end of a run on every pool and broker, beside plain Celery, and the tables of it
#   make model    the protocol's formal model, all configurations and mutants (needs spin and gcc)
#   make statements  every statement explained among RECORDS records, 1000000 by default (minutes)
#   make check    linters, types, layers, the site without a warning
#   make docs     the site, in build/docs
#   make package  sdist and wheel, in dist, checked as an index would
#   make bench    all measurements, some twenty minutes, and the page of figures
#
# CELERY=5.5 has any of them done with that version of Celery, in a virtual environment of its own.

PYTHON ?= python3
VENV := .venv$(if $(CELERY),-celery-$(CELERY))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# More checks: programs that end with 0 when all is well.
CHECKS := $(sort $(wildcard tools/check_*.py))
TESTS := $(wildcard tests/unit tests/integration tests/dashboard tests/acceptance tests/docs tests/matrix tests/fault/test_chaos.py)
# Minutes long: with the faults.
LONG := $(addprefix tests/acceptance/test_,all_benchmarks.py broker_contents.py package.py)
ON_SECANTUS := $(wildcard tests/integration/test_records_*.py) $(addprefix tests/integration/test_,counterexamples.py dispatch.py loops.py protocol.py stand_in.py testing.py)
# Most of a test's time is waiting: three at a time, of different files, are what two cores carry.
PARALLEL ?= 3
PYTEST_OPTIONS ?=
DEMO_OPTIONS ?=
BENCH_OPTIONS ?=
SECONDS ?= 600
RECORDS ?= 1000000

.PHONY: demo test secantus fault chaos mutants matrix statements model check check-lint check-format check-types check-layers $(CHECKS) docs package format bench clean install
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/celery-reactive demo $(DEMO_OPTIONS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(PARALLEL) --dist loadfile --no-loadscope-reorder $(TESTS) $(LONG:%=--ignore=%) $(PYTEST_OPTIONS)

secantus: $(STAMP)
	CELERY_REACTIVE_EMBEDDED=secantus $(BIN)/python -m pytest -n $(PARALLEL) --dist loadfile $(ON_SECANTUS) $(PYTEST_OPTIONS)

fault: $(STAMP)
	$(BIN)/python -m pytest tests/fault $(LONG) $(PYTEST_OPTIONS)

chaos: $(STAMP)
	$(BIN)/python -m tests.fault.chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

mutants: $(STAMP)
	$(BIN)/python tools/mutants.py --write $(MUTANTS)

matrix: $(STAMP)
	$(BIN)/python -m tests.matrix.run --write

statements: $(STAMP)
	RECORDS=$(RECORDS) $(BIN)/python -m pytest tests/integration/test_statements.py $(PYTEST_OPTIONS)

# Needs no virtual environment: only spin, a C compiler and Python.
model:
	$(PYTHON) tools/model.py $(MODEL)

# `make -k check` goes on to the next kind after a failure.
check: check-lint check-format check-types check-layers docs $(CHECKS)

check-lint: $(STAMP)
	$(BIN)/ruff check .

check-format: $(STAMP)
	$(BIN)/ruff format --check .

check-types: $(STAMP)
	$(BIN)/mypy

check-layers: $(STAMP)
	$(BIN)/lint-imports

tools/check_site.py: docs

$(CHECKS): $(STAMP)
	$(BIN)/python $@

docs: $(STAMP)
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning -d build/doctrees docs build/docs

package: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py $(BENCH_OPTIONS)

install: $(STAMP)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install CPython >= 3.11, or make PYTHON=/path/to/it" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version) is too old: CPython >= 3.11 is needed; make PYTHON=python3.12, for example" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "$(PYTHON) cannot make virtual environments: apt-get install python$$version-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' $(if $(CELERY),'celery==$(CELERY).*')
	@touch $@

clean:
	rm -rf .venv .venv-celery-* build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
