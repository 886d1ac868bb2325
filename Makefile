# `make demo` and `make test` are the README's two commands, and `make test` is all that CI runs.
# Everything is installed into $(VENV), again whenever pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

TORCH := torch==2.13.0
ORACLE := open-mythos==0.5.0  # it pins another torch, hence --no-deps
FOR_DEMO := $(VENV)/.installed-demo
FOR_DEV := $(VENV)/.installed-dev

# What `mythos-export serve` needs, in an environment of its own: no torch, no onnx, and numpy below 2, which
# has wheels for Python up to 3.12.
export MYTHOS_TRITON_ENV ?= $(CURDIR)/.venv-triton
FOR_TRITON := $(MYTHOS_TRITON_ENV)/.installed
CAN_SERVE := import sys; sys.exit(not (sys.platform == "linux" and (3, 10) <= sys.version_info[:2] <= (3, 12)))

WORKERS ?= 2  # of pytest; each may hold a model of a billion weights

DEMO_MODEL := --scale nano
DEMO_PROMPT := d>a h>c a>h f>g c>e g>b b>d e>f 3 a
DEMO_BUNDLE := runs/demo

.PHONY: help demo test lint types unit server browser format clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' $(MAKEFILE_LIST)

demo: $(FOR_DEMO)  ## export the small model that ships here, and generate from it
	$(BIN)/mythos-export $(DEMO_MODEL) --loops dynamic --output $(DEMO_BUNDLE) --force
	$(BIN)/mythos-export generate $(DEMO_BUNDLE) --prompt "$(DEMO_PROMPT)" --loops 8 --max-new-tokens 1

test: lint types unit  ## lint, types and tests; with CI set, the dear tests too

lint: $(FOR_DEV)  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(FOR_DEV)  ## mypy
	$(BIN)/mypy

unit: $(FOR_DEV) server browser  ## pytest
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile $(if $(CI),-m "")

server:  ## the environment that serves with Triton, where this Python can
	@if $(PYTHON) -c '$(CAN_SERVE)'; then $(MAKE) --no-print-directory $(FOR_TRITON); \
	else echo "no Triton server for this system or Python, so its tests are skipped (PYTHON=python3.12 make test)"; fi

# The tests of report.html drive a real browser: Debian's packages, installed where that asks for no password.
BROWSER := chromium chromium-driver

browser:  ## a Chromium, for the tests that need one
	@if command -v chromedriver >/dev/null 2>&1; then exit 0; fi; \
	as=; [ "$$(id -u)" = 0 ] || as="sudo -n"; \
	if command -v apt-get >/dev/null 2>&1 && $$as true 2>/dev/null; then \
		echo "installing $(BROWSER)"; \
		$$as apt-get update -qq && \
		$$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(BROWSER) >/dev/null; \
	else \
		echo "no Chromium: the browser tests are skipped; install $(BROWSER) to run them" >&2; \
	fi

format: $(FOR_DEV)  ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the environments, what the demo made, and all caches
	rm -rf $(VENV) .venv-triton runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(FOR_DEMO): pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV); the first time takes minutes"
	$(PIP) install $(TORCH) --editable ".[cpu,export]"
	@touch $@

$(FOR_DEV): pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV); the first time takes minutes"
	$(PIP) install --editable ".[dev]"
	$(PIP) install --no-deps $(ORACLE)
	@touch $@ $(FOR_DEMO)

$(FOR_TRITON): pyproject.toml
	@echo "installing into $(MYTHOS_TRITON_ENV)"
	$(PYTHON) -m venv $(MYTHOS_TRITON_ENV)
	$(MYTHOS_TRITON_ENV)/bin/python -m pip --disable-pip-version-check --quiet install --editable ".[cpu,triton]"
	@touch $@
