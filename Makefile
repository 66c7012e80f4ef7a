# Each target is one or two commands; README gives those of train, test, evaluate and tensorboard by hand too.
PYTHON ?= python3
CONFIG ?= configs/fusion.yaml
CHECKPOINT ?= runs/fusion/checkpoints/best.pt

.PHONY: train test test-fast evaluate tensorboard lint format

train: .venv/installed
	.venv/bin/python train.py --config $(CONFIG)

test: .venv/test-installed
	.venv/bin/python -m pytest

test-fast: .venv/test-installed
	.venv/bin/python -m pytest -m "not slow"

evaluate: .venv/installed
	.venv/bin/python evaluate.py --checkpoint $(CHECKPOINT)

tensorboard: .venv/installed
	.venv/bin/tensorboard --logdir runs

lint: .venv/test-installed
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

format: .venv/test-installed
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -r requirements.txt && touch $@

.venv/test-installed: .venv/installed tests/requirements.txt
	.venv/bin/python -m pip install -r tests/requirements.txt && touch $@
