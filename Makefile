# The commands of this checkout. They install everything inside it: .venv/ and target/.
#   make demo [DATA=dir]   run a local grid, from nothing to published results
#   make test              run every Rust and Python test
#   make bench [TABLE...]  measure: tables on stdout, JSON under target/bench/; tables that take long (scale, soak) have to be named
#   make lint              check formatting and lints, as CI does
#   make aws               check the templates for AWS, the data beside them, and the fake of AWS against boto3 and moto
#   make images            build the container images from what make wheel has built
#   make compose           run the grid of deploy/compose.yaml in containers, in the foreground; TELEMETRY=1: with a collector

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
PROFILE ?= demo
BIN := .venv/bin
DATA ?=
TABLES := hit peers herd64 scenarios publish telemetry scale soak

.PHONY: help demo test bench $(TABLES) lint aws images compose telemetry-images setup test-setup wheel clean

help:
	@sed -n 's/^#   //p' Makefile

# --- set-up: each step leaves a stamp, so that a second run has nothing to do ----------------------------------------

# Without --no-compile pip compiles every file of pandas, which takes 13 s; Python compiles those that are imported.
PIP := $(BIN)/pip install -q --disable-pip-version-check --no-compile

setup: $(BIN)/.tools
test-setup: $(BIN)/.peers

$(BIN)/.tools: qcu-runtime/python/requirements.txt
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or newer (https://rustup.rs)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@echo "== setting up .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "the venv module is missing: apt-get install python3-venv"; exit 2; }
	@$(PIP) -r $<
	@touch $@

$(BIN)/.peers: tests/requirements.txt $(BIN)/.tools
	@echo "== installing what the tests compare with"
	@$(PIP) -r $<
	@touch $@

# Its own step, because only these tests need them: cfn-lint, and moto with the model of every service of AWS.
$(BIN)/.peers-aws: deploy/aws/requirements.txt $(BIN)/.peers
	@echo "== installing what the tests of deploy/aws need"
	@$(PIP) -r $<
	@touch $@

# cargo runs every time, because it knows what has changed; pip then only packs the results.
wheel: setup
	@echo "== building the binaries and the wheel (profile $(PROFILE); the first build takes minutes)"
	@cargo build --profile $(PROFILE) -p trellis-head -p trellis-shard -p trellis-qcu -p trellis-python
	@stamp=$$(cat target/$(PROFILE)/lib_trellis.so target/$(PROFILE)/{head-node,shard,qcu} qcu-runtime/python/pyproject.toml | sha256sum); \
	if [ "$$stamp" != "$$(cat $(BIN)/.wheel 2>/dev/null)" ]; then \
		TRELLIS_PROFILE=$(PROFILE) $(PIP) --no-deps --no-build-isolation -e qcu-runtime/python; \
		echo "$$stamp" > $(BIN)/.wheel; \
	fi

demo: wheel
	@$(BIN)/python -m trellis._demo $(if $(DATA),--data $(DATA))

test: wheel test-setup
	@$(BIN)/python tests/run.py

bench: wheel test-setup
	@$(BIN)/python tests/bench/run.py $(filter $(TABLES),$(MAKECMDGOALS))

# `make bench hit publish`: the names of tables are words of this command, and do nothing alone
$(TABLES):
	@$(if $(filter bench,$(MAKECMDGOALS)),:,echo "$@ is a table of the benches: make bench $@"; exit 2)

lint: test-setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --profile dev -- -D warnings
	$(BIN)/ruff check qcu-runtime/python tests deploy
	$(BIN)/ruff format --check qcu-runtime/python tests deploy
	$(BIN)/python deploy/aws/scale.py --check

aws: $(BIN)/.peers-aws
	@$(BIN)/python -m pytest -q deploy/aws tests/aws-fake

images: wheel
	@deploy/images/base
	@deploy/images/build

# Compose v2 if it is there, else docker-compose 1.29.
compose: images $(if $(TELEMETRY),telemetry-images)
	@compose="docker compose"; $$compose version >/dev/null 2>&1 || compose=docker-compose; \
	$(if $(TELEMETRY),OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317) \
	$$compose -f deploy/compose.yaml $(if $(TELEMETRY),--profile telemetry) up

telemetry-images:
	@deploy/images/base
	@deploy/images/telemetry/build
	@deploy/images/telemetry/images

clean:
	rm -rf .venv target .trellis qcu-runtime/python/trellis.data
