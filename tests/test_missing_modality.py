"""A data source in which samples lack their image or their sequence, trained, resumed and evaluated."""

import csv
import json

import pytest
import torch

import evaluate
import train
from app.randomness import stream
from data.source import SOURCES
from tests.conftest import ROOT
from tests.waves import Rows, Waves, add_waves

# The picture of sample predictions: NaN has no colour.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error:invalid value encountered")]


class Gaps(Rows):
    """What is not there is NaN, and of length 0. No two images are alike: a norm of two such would have no variance."""

    def __init__(self, rows, present):
        self.__dict__ |= rows.__dict__
        self.image = rows.image + torch.randn(rows.image.shape, generator=stream("noise"))
        self.present = present

    def gather(self, epoch, indices):
        batch = super().gather(epoch, indices)
        present = self.present[indices]
        image, sequence, length = batch["image"].clone(), batch["sequence"].clone(), batch["length"].clone()
        image[~present[:, 0]], sequence[~present[:, 1]], length[~present[:, 1]] = float("nan"), float("nan"), 0
        return batch | {"image": image, "sequence": sequence, "length": length, "present": present}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Trains on waves that lack, in each split, that share of the images and of the sequences; two samples a batch,
    so that there are batches without any image, and with a single one.

    The last maps of 48 pixels are 2 x 2. From 32 they are 1 x 1, and a norm over two values is as steep as a step: the
    gradients rise to 1e11, and whether one rises a thousandfold at once, which is a warning, hangs on rounding.
    """

    def call(gaps, name, *arguments, epochs=2, image_size=48):
        class GappedWaves(Waves):
            def splits(self, **settings):
                splits = super().splits(**settings)
                for split in splits:
                    shares = gaps.get(split, (0, 0))
                    draws = torch.rand(len(splits[split]), 2, generator=stream("gaps", split))
                    present = draws >= torch.tensor(shares)
                    present[~present.any(1), 0] = True
                    splits[split] = Gaps(splits[split], present)
                return splits

        add_waves(monkeypatch)
        monkeypatch.setitem(SOURCES, "waves", GappedWaves)
        waves = [f"data={{source: waves, batch_size: 2, image_size: {image_size}}}", "model.image_branch.weights=none"]
        smoke = ["--config", str(ROOT / "configs" / "smoke.yaml"), f"run.folder={tmp_path}", f"run.name={name}"]
        assert train.main([*smoke, *waves, "run.device=cpu", f"run.epochs={epochs}", *arguments]) == 0
        return tmp_path / name, capsys.readouterr()

    return call


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


GAPS = dict.fromkeys(("train", "val", "test"), (0.4, 0.4))
RESTORES = ["learning_rates.reductions[2].restore_best=true", "learning_rates.warmup_steps=0"]


def test_resumed(run):
    small = {"image_size": 32}  # a convolution of a single value is a product with a vector: see make_deterministic
    straight, _ = run(GAPS, "straight", *RESTORES, **small)
    stopped, _ = run(GAPS, "stopped", *RESTORES, **small, epochs=1)
    run(GAPS, "stopped", *RESTORES, "--resume", str(stopped / "checkpoints" / "last.pt"), **small)
    a, b = (torch.load(path / "checkpoints" / "last.pt", weights_only=True) for path in (straight, stopped))
    for part in ("model", "optimizer"):
        assert a[part].keys() == b[part].keys()
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])


def test_trained_and_evaluated(run, capsys):
    folder, printed = run(GAPS, "trained", *RESTORES)
    assert "warning" not in printed.out and " nan" not in printed.out
    last = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert all(last[f"fusion_head.absent.{branch}"].any() for branch in ("image_branch", "temporal_branch"))

    assert evaluate.main(["--checkpoint", str(folder / "checkpoints" / "best.pt"), "--device", "cpu"]) == 0
    printed_by_evaluate = capsys.readouterr()
    assert "warning" not in printed_by_evaluate.out
    report = json.loads((folder / "evaluation" / "test" / "report.json").read_text())
    with open(folder / "evaluation" / "test" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert f"test accuracy {report['accuracy']:.4f}" in printed.out
    assert set(report["by_present"]) == {"image and sequence", "image only", "sequence only"}
    for kind, found in report["by_present"].items():
        right = [row["label"] == row["prediction"] for row in rows if row["present"] == kind]
        low, high = found.pop("interval_95")
        assert found == {"samples": len(right), "accuracy": pytest.approx(sum(right) / len(right))}
        assert low <= found["accuracy"] <= high
        assert f"\n{kind} " in printed_by_evaluate.out
    for branch, other in (("image_branch", "sequence only"), ("temporal_branch", "image only")):
        own = [row["label"] == row[branch] for row in rows if row["present"] != other]
        assert report["unimodal"][branch]["accuracy"] == pytest.approx(sum(own) / len(own))


def test_a_split_without_any_sequence_has_no_figures_of_that_branch(run):
    folder, printed = run({"val": (0, 1.1)}, "no_sequences", epochs=1)
    (val,) = [record for record in read(folder / "metrics.jsonl") if record["kind"] == "val"]
    assert val["temporal_branch/loss"] == val["temporal_branch/accuracy"] == "nan"
    assert val["loss"] > 0 and val["image_branch/loss"] > 0
    assert printed.out.count("warning") == 1
    assert "val/temporal_branch/loss is not a number; no rule counts it" in printed.out


def test_an_input_that_only_the_test_split_lacks(run, capsys):
    folder, _ = run({"test": (0.5, 0)}, "trained_complete", epochs=1)
    assert evaluate.main(["--checkpoint", str(folder / "checkpoints" / "best.pt"), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    samples = json.loads((folder / "evaluation" / "test" / "report.json").read_text())["by_present"]["sequence only"]
    assert f"{samples['samples']} of 30 samples lack their image, and no training sample did" in printed.out
    saved = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    assert not any(saved["model"][f"fusion_head.absent.{b}"].any() for b in ("image_branch", "temporal_branch"))
    assert not any(".absent." in name for name in saved["optimizer"])
