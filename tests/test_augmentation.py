"""Runs whose training samples are varied."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
EFFECTS = (
    "data.augmentation={image: {crop: {scale: [0.6, 1.0]}, affine: {degrees: 10}, colour: {contrast: 0.2}}, "
    "sequence: {speed: {factor: [0.8, 1.25]}, noise: {std: 0.2}, time_mask: {max_share: 0.2}}, mixup: {alpha: 0.2}}"
)


@pytest.fixture
def run(tmp_path):
    def call(name, *overrides):
        common = [f"run.folder={tmp_path}", f"run.name={name}", "run.device=cpu", "run.limit_batches=6", EFFECTS]
        common += ["statistics.every=5"]
        assert train.main(["--config", str(ROOT / "configs" / "smoke.yaml"), *common, *overrides]) == 0
        return tmp_path / name

    return call


def test_a_resumed_run_sees_the_samples_of_an_unbroken_one(run):
    straight = run("straight")
    last = run("stopped", "run.epochs=1") / "checkpoints" / "last.pt"
    resumed = run("stopped", "data.workers=1", "--resume", str(last))
    a, b = (torch.load(path / "checkpoints" / "last.pt", weights_only=True) for path in (straight, resumed))
    assert a["position"]["epoch"] == b["position"]["epoch"] == 2
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    for folder in (straight, resumed):  # once, with the first reading
        events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
        assert [event.step for event in events.Images("train/augmentation")] == [5]
        assert {event.step for event in events.Images("val/predictions")} == {6, 12}
