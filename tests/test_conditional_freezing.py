"""Freezing by what validations show, with real processes: stopped, resumed, replayed."""

import json
import subprocess
import sys

import pytest
import torch

from app.training.state import STATE
from tests.test_train import HANG_GUARD, ROOT, SMOKE, assert_identical, start_training, wait_for

GROUPS = "optimizer.groups"
# Met after epoch 1 and after epoch 2, the first one that image_branch trains in.
UNTIL = f"{GROUPS}.image_branch.freeze_until={{monitor: val/loss, below: 100, at_most: 9}}"
FROM = f"{GROUPS}.image_branch.freeze_from={{monitor: val/accuracy, above: 0.001, at_most: 9}}"
SETTINGS = [UNTIL, FROM, f"{GROUPS}.image_branch.unfreeze_warmup_steps=3", "run.limit_batches=6", "run.epochs=4"]
SETTINGS += ["learning_rates.warmup_steps=2", "balance.learning_rates={rule: miles, threshold: 0.02, release: 0.01}"]


def run(folder, *arguments):
    process = start_training(folder, *SETTINGS, *arguments)
    output, error = process.communicate(timeout=HANG_GUARD)
    assert process.returncode == 0, error
    return output


def last_checkpoint(folder):
    return torch.load(folder / "smoke/checkpoints/last.pt", weights_only=True)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_the_unbroken_one_and_a_replay_says_the_same(tmp_path):
    run(tmp_path / "a")
    events = [json.loads(line) for line in (tmp_path / "a/smoke/lr_events.jsonl").read_text().splitlines()]
    frozen = [(e["epoch"], e["cause"], e["monitor"]) for e in events if e["cause"] in ("unfreeze", "freeze")]
    assert frozen == [(2, "unfreeze", "val/loss"), (3, "freeze", "val/accuracy")]
    last = last_checkpoint(tmp_path / "a")

    run(tmp_path / "stopped", "run.epochs=2")
    process = start_training(tmp_path / "killed", *SETTINGS)
    wait_for(tmp_path / "killed/smoke/checkpoints/last.pt", process)  # after its first epoch
    process.kill()
    process.communicate(timeout=HANG_GUARD)
    for folder in (tmp_path / "stopped", tmp_path / "killed"):
        assert "resuming" in run(folder, "--resume", "auto")
        resumed = last_checkpoint(folder)
        for part in STATE:
            assert_identical(last[part], resumed[part])
        for name in ("metrics.jsonl", "lr_events.jsonl"):
            assert (folder / "smoke" / name).read_text() == (tmp_path / "a/smoke" / name).read_text()

    metrics = tmp_path / "a/smoke/metrics.jsonl"
    command = [sys.executable, str(ROOT / "train.py"), "--config", SMOKE, *SETTINGS, "--replay", str(metrics)]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    said = [line.split("lr of ")[1].split(" ")[0] for line in printed.splitlines() if "lr of " in line]
    assert said == [event["group"] for event in events]


@pytest.mark.slow
def test_the_statistics_of_a_branch_that_is_frozen_for_good_stand_still(tmp_path):
    run(tmp_path / "short", "run.epochs=2")
    run(tmp_path / "long")
    short, long = (last_checkpoint(tmp_path / name)["model"] for name in ("short", "long"))
    moved = {name for name in short if not torch.equal(short[name], long[name])}
    assert moved and not any(name.startswith("image_branch.") for name in moved)


@pytest.mark.slow
def test_where_all_groups_have_come_to_be_frozen_training_stops_and_says_why(tmp_path):
    names = ("temporal_branch", "fusion_head", "unimodal_heads")
    all_frozen = [f"{GROUPS}.{name}.freeze_from={{monitor: val/loss, below: 100, at_most: 9}}" for name in names]
    output = run(tmp_path, *all_frozen)
    assert "stopping after epoch 2: every group is frozen (freeze_until, freeze_from), so nothing would train" in output
