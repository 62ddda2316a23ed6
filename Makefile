# Two commands: `make demo` shows what Loom4D does, `make test` proves that it works. Both install into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test install lint clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/loom4d generate examples/turtle.webp --out runs/demo
	@echo "Open runs/demo/viewer.html in a browser."

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2  # one thread each: two workers on two cores

clean:
	rm -rf .venv runs build
