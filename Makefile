# Every command of this project. Each does its own set-up (scripts/setup.sh): on a machine
# that has Python 3.10 or newer, a C compiler and make, nothing else needs to be there.
#
#   PYTHON=python3.12 make test     with that Python
#   ARGS="-k ports -x" make test    more for pytest; -n 0 for one process alone

SHELL := /bin/bash
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
export VENV PYTHON
# Debian gives ordinary users no sbin, where iptables is.
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help demo demo-density test test-all test-freethreaded check bench bench-growth bench-peers bench-durable bench-attach \
	bench-plot bench-readme density sanitize soak sdist wheels docs test-api test-clients test-page clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

demo: ## containers on a private bridge, answering through published ports
	@scripts/setup.sh --kernel
	@$(PY) demo/demo.py

demo-density: ## 10,000 live containers, routed, each with a port over IPv4 and IPv6
	@scripts/setup.sh --kernel
	@$(PY) demo/density.py $(ARGS)

test: ## the tests; as root also those on the real kernel, in private namespaces
	@scripts/setup.sh --kernel test
	@$(PY) -m pytest -n $$(( $$(nproc) < 2 ? 2 : 6 )) --dist worksteal $(ARGS)

test-all: ## the tests that need no root, on every Python from 3.10 that is found
	@scripts/test-all.sh

test-freethreaded: ## the tests of threads on a Python without the GIL, built where it is missing
	@scripts/free-threaded.sh $(ARGS)

check: ## lint, formatting, types, and that the stub is true
	@scripts/setup.sh check test
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy
	@$(PY) -m mypy.stubtest netalloc._alloc

bench: ## the gate: fails when the core is slower than promised
	@scripts/setup.sh --kernel bench
	@$(PY) -m pytest benchmarks -q -s --benchmark-columns=min,median,stddev --benchmark-sort=name $(ARGS)

bench-growth: ## of that, only whether a call costs more because much is held
	@scripts/setup.sh --kernel bench
	@$(PY) -m pytest benchmarks -k growth -q -s --benchmark-disable $(ARGS)

bench-peers: ## the core beside what else a Python user would pick
	@scripts/setup.sh bench
	@$(PY) benchmarks/peers.py $(ARGS)

bench-durable: ## what a store in a file costs, beside memory
	@scripts/setup.sh bench
	@$(PY) benchmarks/durable.py $(ARGS)

bench-attach: ## what it costs to put a container on a network, beside what else does it
	@scripts/setup.sh --kernel --cni bench
	@$(PY) benchmarks/attaching.py $(ARGS)

bench-plot: ## docs/bench.png: what one more address costs over how many are held
	@scripts/setup.sh bench
	@$(PY) benchmarks/plot.py

bench-readme: ## the README's tables, in its order and to be pasted, and docs/bench.png
	@scripts/setup.sh --kernel --cni bench
	@$(PY) benchmarks/plot.py
	@$(PY) benchmarks/durable.py
	@$(PY) benchmarks/peers.py
	@$(PY) benchmarks/density.py --markdown
	@$(PY) benchmarks/attaching.py --markdown

density: ## 10,000 interfaces in a private namespace, each step timed
	@scripts/setup.sh --kernel bench
	@$(PY) benchmarks/density.py $(ARGS)

sanitize: ## the core under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/setup.sh test
	@scripts/sanitize.sh $(ARGS)

soak: ## the tests that take minutes
	@scripts/setup.sh --kernel test bench
	@$(PY) -m pytest -m soak -o faulthandler_timeout=3600 $(ARGS)
	@$(PY) -m pytest benchmarks -m soak -o faulthandler_timeout=3600 -q -s --benchmark-disable $(ARGS)

docs: ## the documentation as a site, in build/docs
	@scripts/setup.sh docs
	@$(PY) scripts/reference.py --check
	@$(PY) -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "  build/docs/index.html"

test-api: ## the daemon's API against its OpenAPI document, by schemathesis
	@scripts/setup.sh test api
	@$(PY) -m pytest tests/api $(ARGS)

test-clients: ## the CNI plugins under Debian's bridge and ptp, beside host-local
	@scripts/setup.sh --kernel --cni test
	@$(PY) -m pytest tests/clients -n $$(( $$(nproc) < 2 ? 2 : 4 )) --dist worksteal $(ARGS)

test-page: ## the daemon's page in Chromium
	@scripts/setup.sh --chromium test page
	@$(PY) -m pytest tests/page $(ARGS)

sdist: ## build the source distribution; install and use it in an empty environment
	@scripts/setup.sh check
	@scripts/prove-sdist.sh

wheels: ## a wheel for each Python found, repaired and used in an empty environment
	@scripts/wheels.sh

clean: ## remove all that the above made in this folder
	rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
