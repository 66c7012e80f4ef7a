"""Each file of configs/examples/ shows one idea: it is trained, small, and the idea looked for in the records."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import evaluate
import train
from tests.conftest import ROOT

EXAMPLES = sorted(path.stem for path in (ROOT / "configs" / "examples").glob("*.yaml"))
SMALL = ["data.image_size=16", "data.batch_size=64", "statistics.every=5"]


@dataclass
class Records:
    folder: Path
    metrics: list[dict]
    events: list[dict]

    def readings(self, group: str, key: str) -> list[float]:
        return [record["groups"][group][key] for record in self.metrics if record["kind"] == "stats"]

    def epochs(self) -> list[int]:
        return [record["epoch"] for record in self.metrics if record["kind"] == "stats"]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Trains an example once, whichever test asks first."""
    done: dict[str, Records] = {}

    def run(name: str) -> Records:
        if name not in done:
            folder = tmp_path_factory.mktemp("runs")
            config = str(ROOT / "configs" / "examples" / f"{name}.yaml")
            assert train.main(["--config", config, f"run.folder={folder}", *SMALL]) == 0
            lines = {
                file: [json.loads(line) for line in (folder / name / f"{file}.jsonl").read_text().splitlines()]
                for file in ("metrics", "lr_events")
            }
            done[name] = Records(folder / name, lines["metrics"], lines["lr_events"])
        return done[name]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_trains_and_can_be_evaluated(example, name, capsys):
    records = example(name)
    assert evaluate.main(["--checkpoint", str(records.folder / "checkpoints" / "best.pt")]) == 0
    report = json.loads((records.folder / "evaluation" / "test" / "report.json").read_text())
    assert report["accuracy"] > 0.2  # 0.1 would be chance
    out = capsys.readouterr().out
    assert all(group["name"] in out for group in report["groups"])


@pytest.mark.slow
def test_differential_lr_has_one_branch_and_a_factor_of_ten(example):
    records = example("differential_lr")
    ratios = [fc / conv for conv, fc in zip(records.readings("conv", "lr"), records.readings("fc", "lr"), strict=True)]
    assert ratios == pytest.approx([10.0] * len(ratios))
    (val, *_) = [record for record in records.metrics if record["kind"] == "val"]
    assert "image_branch/accuracy" in val and not any(key.startswith("temporal_branch") for key in val)
    state = torch.load(records.folder / "checkpoints" / "best.pt", weights_only=True)["model"]
    assert not any(name.startswith("temporal_branch") for name in state)


@pytest.mark.slow
def test_bias_no_decay_decays_weights_only(example):
    records = example("bias_no_decay")
    assert set(records.readings("weights", "weight_decay")) == {0.01}
    assert set(records.readings("biases", "weight_decay")) == {0.0}
    groups = torch.load(records.folder / "checkpoints" / "best.pt", weights_only=True)["groups"]
    names = {group["name"]: group["parameters"] for group in groups}
    assert all("bias" in name or ".absent." in name for name in names["biases"])
    assert all("weight" in name for name in names["weights"])
    assert "temporal_branch.lstm.bias_hh_l0" in names["biases"]


@pytest.mark.slow
def test_threshold_reduction_acts_once_after_epoch_5_on_every_group(example):
    records = example("threshold_reduction")
    after_5 = next(record for record in records.metrics if record["kind"] == "val" and record["epoch"] == 5)
    assert after_5["loss"] > 0.5
    assert [(event["epoch"], event["cause"]) for event in records.events] == [(5, "threshold")] * 4
    assert {event["group"] for event in records.events} == {
        "image_branch", "temporal_branch", "fusion_head", "unimodal_heads",
    }  # fmt: skip
    for event in records.events:
        assert event["to"] == pytest.approx(0.1 * event["from"])


@pytest.mark.slow
def test_gradual_unfreezing_moves_nothing_for_two_epochs(example):
    records = example("gradual_unfreezing")
    for epoch, moved, effective in zip(
        records.epochs(),
        records.readings("image_branch", "update_norm"),
        records.readings("image_branch", "effective_lr"),
        strict=True,
    ):
        assert (moved == 0) == (effective == 0) == (epoch <= 2)
    assert [(event["group"], event["epoch"], event["cause"]) for event in records.events] == [
        ("image_branch", 3, "unfreeze")  # the first epoch that it trains in
    ]


@pytest.mark.slow
def test_betas_per_group_reach_the_optimizer(example):
    records = example("betas_per_group")
    assert set(records.readings("image_branch", "beta1")) == {0.95}
    assert set(records.readings("temporal_branch", "beta2")) == {0.98}
    assert min(records.readings("temporal_branch", "second_moment_rms")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["image_branch", "temporal_branch"])
def test_a_model_of_one_branch_trains_resumes_and_evaluates(branch, tmp_path):
    other = {"image_branch": "temporal_branch", "temporal_branch": "image_branch"}[branch]
    arguments = ["--config", str(ROOT / "configs" / "examples" / "differential_lr.yaml"), f"run.folder={tmp_path}"]
    arguments += [*SMALL, "run.name=one", "optimizer.groups.conv.params=[" + branch + ".*]"]
    if branch == "temporal_branch":
        temporal = "{hidden_size: 16, num_layers: 1, bidirectional: true, dropout: 0.0}"
        arguments += ["model.image_branch=null", f"model.temporal_branch={temporal}"]
    assert train.main([*arguments, "run.epochs=1"]) == 0
    assert train.main([*arguments, "run.epochs=2", "--resume", "auto"]) == 0
    assert evaluate.main(["--checkpoint", str(tmp_path / "one" / "checkpoints" / "last.pt")]) == 0
    report = json.loads((tmp_path / "one" / "evaluation" / "test" / "report.json").read_text())
    assert list(report["unimodal"]) == [branch] and other not in json.dumps(report["groups"])
