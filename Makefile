# The two commands of the README are `make demo` and `make test`; each makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench clean

# About 1 km² to train in and 1 km² to test in, both in Seattle and disjoint; recipes/datasets/demo.toml says the same.
demo: .venv/.train
	$(BIN)/cvgl-data build --city seattle --zoom 18 --imagery simulated --panoramas simulated \
	  --clip train=-122.3250,47.6100,-122.3110,47.6195 --clip test=-122.3450,47.6560,-122.3310,47.6655 \
	  --test-area test --max-queries 1600 --set areas.1.max=400 \
	  --set panoramas.options.width=1024 --set panoramas.width=1024 --set name=demo --out demo/data
	$(BIN)/cvgl-data decentrality demo/data
	$(BIN)/cvgl-train run demo --data demo/data --out demo/run
	$(BIN)/cvgl-train evaluate demo/run --data demo/data --untrained
	$(BIN)/cvgl-train evaluate demo/run --data demo/data --sheet demo/contact_sheet.png
	@echo
	@echo "Look at demo/contact_sheet.png: queries, their positives, and the five best references with distances."
	@echo "The dataset is demo/data (cvgl-data show demo/data), the run is demo/run."

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: .venv/.dev
	for script in $(filter-out benchmarks/_% benchmarks/tile_server.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

.venv/.train .venv/.dev: .venv/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[train$(if $(filter dev,$*),$(comma)dev)]"
	touch $@

comma := ,

clean:
	rm -rf .venv build dist *.egg-info demo
