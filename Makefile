# What a person runs. Everything is set up inside this checkout: .venv/ and target/.
#   make demo [DATA=dir]   a local grid, from nothing to published results
#   make test              every Rust and Python test
#   make bench             figures, on stdout and under target/bench/
#   make lint              formatting and lints, as CI runs them

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
PROFILE ?= demo
BIN := .venv/bin
DATA ?=

.PHONY: help demo test bench lint setup wheel clean

help:
	@sed -n 's/^#   //p' Makefile

# --- set-up: each step leaves a stamp, so that a second run costs nothing -------------------------------------------

setup: $(BIN)/.tools

$(BIN)/.tools: tests/requirements.txt
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or newer (https://rustup.rs)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@echo "== setting up .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "the venv module is missing: apt-get install python3-venv"; exit 2; }
	@$(BIN)/pip install -q --disable-pip-version-check -r tests/requirements.txt
	@touch $@

# cargo is asked every time (it knows best what changed) and shows its progress; pip then only packs what it built.
wheel: setup
	@echo "== building the binaries and the wheel (profile $(PROFILE); the first time takes minutes)"
	@cargo build --profile $(PROFILE) -p trellis-head -p trellis-shard -p trellis-qcu -p trellis-python
	@stamp=$$(cat target/$(PROFILE)/lib_trellis.so target/$(PROFILE)/{head-node,shard,qcu} qcu-runtime/python/pyproject.toml | sha256sum); \
	if [ "$$stamp" != "$$(cat $(BIN)/.wheel 2>/dev/null)" ]; then \
		TRELLIS_PROFILE=$(PROFILE) $(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e qcu-runtime/python; \
		echo "$$stamp" > $(BIN)/.wheel; \
	fi

demo: wheel
	@$(BIN)/python -m trellis._demo $(if $(DATA),--data $(DATA))

test: wheel
	@$(BIN)/python tests/run.py

bench: wheel
	@$(BIN)/python tests/bench/run.py

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --profile dev -- -D warnings
	$(BIN)/ruff check qcu-runtime/python tests
	$(BIN)/ruff format --check qcu-runtime/python tests

clean:
	rm -rf .venv target .trellis qcu-runtime/python/trellis.data
