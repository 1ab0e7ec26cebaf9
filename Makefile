# Two commands: `make demo` does the main job on real data, `make test` passes every test. Both set themselves up in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := runs/demo-$(shell date +%Y%m%d-%H%M%S)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint extras clean
.DEFAULT_GOAL := demo

demo: $(VENV)/installed
	$(BIN)/foretoken train decision_transformer cpu --out $(RUN)
	$(BIN)/foretoken evaluate $(RUN) --episodes 10
	$(BIN)/foretoken report $(RUN)

test: $(VENV)/installed-dev lint
	$(BIN)/pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests of the optional extras that can live in one environment; without the extra they skip with a reason.
extras: $(VENV)/installed-extras
	$(BIN)/pytest -rs tests/peers tests/unit/data tests/unit/envs tests/laws/test_evaluation_laws.py

# torch first: installed by another package's requirement it may come as a build with gigabytes of CUDA
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/installed-extras: $(VENV)/installed-dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[minari,box2d,peers,onnx]"
	touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info
