"""A second source: one class and one line in SOURCES, and train.py and evaluate.py work with it."""

import csv
import dataclasses
import json

import pytest
import torch
from pydantic import TypeAdapter

import evaluate
import train
from app.commands import root_config
from app.records.checkpoint import save_checkpoint
from data.digits import Digits
from data.source import SOURCES, Data, make_source
from data.spec import DataSpec
from tests.conftest import ROOT, replace
from tests.waves import CLASS_NAMES, SPLITS, Waves, WavesConfig, add_waves

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
DIGITS = "data={source: digits, batch_size: 16, image_size: 32, image_noise: 0.0, sequence_noise: 0.0}"


@pytest.fixture
def waves(monkeypatch):
    add_waves(monkeypatch)


@pytest.fixture
def train_waves(waves, tmp_path, capsys):
    """Trains and returns the exit code, what it printed and the run's folder."""

    def call(*arguments):
        small = [
            "data={source: waves, batch_size: 16, image_size: 32}",
            "model.image_branch.weights=none",
            "run.device=cpu",
        ]
        smoke = ["--config", str(ROOT / "configs" / "smoke.yaml"), f"run.folder={tmp_path}", "run.epochs=1"]
        code = train.main([*smoke, *small, *arguments])
        return code, capsys.readouterr(), tmp_path / "smoke"

    return call


def test_another_source_is_trained_and_evaluated(train_waves, capsys):
    code, printed, folder = train_waves()
    assert code == 0, printed.err
    best = folder / "checkpoints" / "best.pt"
    saved = torch.load(best, weights_only=True)
    spec = saved["data_spec"]
    assert (spec["class_names"], spec["num_features"]) == (list(CLASS_NAMES), 5)
    assert "class_names" not in saved and "normalisation" not in saved
    assert saved["model"]["temporal_branch.lstm.weight_ih_l0"].shape[1] == 5
    assert saved["model"]["fusion_head.layers.3.weight"].shape[0] == 3

    assert evaluate.main(["--checkpoint", str(best), "--device", "cpu"]) == 0
    report = json.loads((folder / "evaluation" / "test" / "report.json").read_text())
    assert report["class_names"] == list(CLASS_NAMES) and report["samples"] == 30
    assert f"test accuracy {report['accuracy']:.4f}" in printed.out
    with open(folder / "evaluation" / "test" / "predictions.csv", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [CLASS_NAMES[i % 3] for i in SPLITS["test"]]

    # The normalisation is that of the checkpoint, not one that is measured again.
    saved["data_spec"]["normalisation"]["std"] = [1e4] * 5
    save_checkpoint(best, saved)
    assert evaluate.main(["--checkpoint", str(best), "--device", "cpu"]) == 0
    flat = json.loads((folder / "evaluation" / "test" / "report.json").read_text())
    assert flat["unimodal"]["temporal_branch"]["loss"] != report["unimodal"]["temporal_branch"]["loss"]
    assert flat["unimodal"]["image_branch"] == report["unimodal"]["image_branch"]

    # Nor is it measured again where the run is resumed.
    code, printed, _ = train_waves("run.epochs=2", "--resume", str(best))
    assert code == 0, printed.err
    assert torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["data_spec"] == saved["data_spec"]


def test_a_checkpoint_of_other_data_is_refused(train_waves):
    code, _, folder = train_waves()
    assert code == 0
    code, printed, _ = train_waves("--resume", str(folder / "checkpoints" / "last.pt"), DIGITS)
    assert code == 2
    (line,) = printed.err.splitlines()
    assert line.startswith("error: data.source: digits has class_names ('0', '1',")
    assert "the checkpoint's data have ('slow', 'fast', 'faster')" in line


def test_each_part_of_a_saved_spec_must_fit(waves, config):
    data = WavesConfig(source="waves", batch_size=16, image_size=32)
    spec = make_source(data).spec
    assert make_source(data, spec).spec == spec
    for change in ({"class_names": ("slow", "fast", "fastest")}, {"num_features": 6}):
        with pytest.raises(ValueError, match=f"waves has {next(iter(change))} .*, the checkpoint's data have "):
            make_source(data, dataclasses.replace(spec, **change))


def test_an_unknown_source_is_a_config_error_that_lists_the_known_ones(waves, tree):
    tree["data"]["source"] = "wave"
    with pytest.raises(ValueError) as error:
        root_config.parse_config(tree)
    known = ", ".join(SOURCES)
    assert str(error.value) == f"data.source: found 'wave', expected one of {known}"


def test_a_key_of_another_source_names_its_owner(waves, tree):
    tree["data"]["source"] = "waves"
    with pytest.raises(ValueError, match="data.image_noise: belongs to source: digits, not to source: waves"):
        root_config.parse_config(tree)


def test_the_sources_of_the_config_are_those_of_the_list():
    schema = TypeAdapter(Data).json_schema()
    assert list(schema["discriminator"]["mapping"]) == list(SOURCES)


@pytest.mark.parametrize("kind", [Digits, Waves])
def test_what_a_source_gives(kind, config):
    data = config.data if kind is Digits else WavesConfig(source="waves", batch_size=16, image_size=32)
    source = kind(replace(data, image_size=16))
    spec = source.spec
    assert DataSpec.from_dict(spec.to_dict()) == spec
    assert type(spec.to_dict()["class_names"]) is list
    splits = source.splits(seed=0, **IMAGENET)
    assert list(splits) == ["train", "val", "test"]
    assert splits["train"].labels.bincount().tolist() == list(spec.class_counts)
    for split in splits.values():
        assert len(split.labels) == len(split)
        assert torch.equal(split.labels[:2], split[0, torch.tensor([0, 1])]["label"])
        batch = split[0, torch.tensor([1, 0])]
        assert list(batch) == ["image", "sequence", "length", "present", "label", "index"]
        assert batch["image"].shape == (2, 3, 16, 16)
        assert batch["sequence"].shape == (2, int(batch["length"].max()), spec.num_features)
        assert set(batch["label"].tolist()) <= set(range(len(spec.class_names)))
        assert batch["index"].tolist() == [1, 0]
