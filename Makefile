PYTHON ?= python3
PYTEST = $(PYTHON) -m pytest -n 2 --dist loadfile

.PHONY: check lint types test fast nightly bench compare scaling soak live live-peers image ci dist mcpb plugin viewer docs

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTEST)

fast:                       # without what takes seconds, or programs that few machines have
	$(PYTEST) -m "not slow"

nightly:                    # what takes minutes: a soak, a gigabyte, thousands of sandboxes and calls, fresh installs
	$(PYTEST) -m nightly

bench:                      # beside other projects, each in an environment of its own
	$(PYTHON) benchmarks/bench.py --write docs/benchmarks.md

compare:                    # what goes wrong where, here and there
	$(PYTHON) benchmarks/behaviour.py --write docs/comparison.md

scaling:                    # how cost grows with turns, sub-calls, completions, events and the context: tables and plots
	$(PYTHON) benchmarks/scaling.py --write

soak:                       # a thousand completions with faults in one process: nothing may grow
	$(PYTHON) benchmarks/soak.py --write

live:                       # answers of a small real model, fetched once (1.1 GB), through this project
	$(PYTHON) benchmarks/live.py --serve "$$($(PYTHON) .ci/fetch-model)" --temperature 0 --out live.jsonl

live-peers:                 # the same through every subject, on the seeds to report; takes many hours on a small machine
	$(PYTHON) benchmarks/live.py --serve "$$($(PYTHON) .ci/fetch-model)" --temperature 0 --seeds reporting \
	    --subjects flat-rlm,flat-rlm-text,flat-rlm-tools,plain,rlms,dspy,smolagents,minrlm \
	    --out live-peers.jsonl --plot docs/img/live.svg

docs:                       # the reference pages, from docstrings, help texts and the prompts of recorded runs
	$(PYTHON) docs/make.py

viewer:                     # the page's sources, written into rlm_viz.py
	$(PYTHON) viewer/build.py

image:                      # a Docker engine and python:3.11-slim, for the Docker tests
	.ci/docker-engine

ci:
	CI=true bash .ci/run

mcpb:                       # dist/rlm.mcpb for Claude Desktop and dist/server.json for the MCP registry
	$(PYTHON) .ci/mcpb

plugin:                     # dist/plugin, a plug-in of Claude Code with the skill and the MCP server; and llms.txt
	$(PYTHON) .ci/plugin

dist:
	$(PYTHON) -m build
