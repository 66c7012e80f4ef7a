"""evaluate.py on real checkpoints: what it says of a model, and what it keeps."""

import json
import math
import re

import pytest
import torch

import evaluate
import train
from app.commands.trained import build_trained
from app.records.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of the default config, with smaller images and three epochs."""
    runs = tmp_path_factory.mktemp("runs")
    arguments = ["--config", str(ROOT / "configs" / "fusion.yaml"), f"run.folder={runs}", "run.device=cpu"]
    assert train.main([*arguments, "run.epochs=3", "data.image_size=32"]) == 0
    return runs / "fusion"


def report_of(path, output, *arguments, code=0):
    command = ["--checkpoint", str(path), "--output", str(output), "--device", "cpu"]
    assert evaluate.main([*command, *arguments]) == code
    return json.loads((output / "report.json").read_text()) if code == 0 else None


def test_both_inputs_are_used_and_one_that_is_cut_off_is_ignored(folder, tmp_path, capsys):
    best = folder / "checkpoints" / "best.pt"
    used = report_of(best, tmp_path / "whole")["modality_use"]["inputs"]
    assert [of["verdict"] for of in used.values()] == ["used", "used"]
    assert "\nsequence used: shuffling costs " in capsys.readouterr().out

    content = load_checkpoint(best)
    weight = content["model"]["fusion_head.layers.0.weight"]
    sequence = content["model"]["fusion_head.absent.temporal_branch"]
    weight[:, -len(sequence) :] = 0
    save_checkpoint(tmp_path / "cut.pt", content)
    report = report_of(tmp_path / "cut.pt", tmp_path / "cut")
    found = report["modality_use"]["inputs"]
    assert [of["verdict"] for of in found.values()] == ["used", "ignored"]
    assert found["sequence"]["shuffling_costs"] == 0 and found["sequence"]["own_head"] == used["sequence"]["own_head"]
    assert report["accuracy"] == pytest.approx(report["modality_use"]["accuracy"])
    assert "\nsequence ignored: shuffling changes nothing beyond its interval" in capsys.readouterr().out
    page = (tmp_path / "cut" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"The sequence is <b>ignored</b>: shuffling changes nothing", page)


def test_figures_agree_with_each_other(folder, tmp_path):
    report = report_of(folder / "checkpoints" / "best.pt", tmp_path)
    use, unimodal = report["modality_use"], report["unimodal"]
    assert use["inputs"]["image"]["own_head"] == pytest.approx(unimodal["image_branch"]["accuracy"])
    assert use["inputs"]["sequence"]["own_head"] == pytest.approx(unimodal["temporal_branch"]["accuracy"])
    assert report["reductions"].keys() == {group["name"] for group in report["groups"]}
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "balance.modality_dropout.image_branch: 0.0 -> 0.1" in report["not_default"]


def test_a_temperature_is_stored_used_and_found_again_and_changes_no_training(folder, tmp_path, capsys):
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    content = load_checkpoint(folder / "checkpoints" / "last.pt")
    path.parent.mkdir(parents=True)
    save_checkpoint(path, content)
    before = report_of(path, tmp_path / "before", "--temperature")
    value = before["calibration"]["temperature"]["value"]
    printed = capsys.readouterr().out
    assert f"temperature {value:.4f} is stored in {path}" in printed and "note:" not in printed
    assert f" with temperature {value:.3f}, fitted on val\n" in printed
    stored = load_checkpoint(path)
    assert stored.pop("temperature") == value and stored.keys() == content.keys()
    assert all(torch.equal(stored["model"][name], tensor) for name, tensor in content["model"].items())

    after = report_of(path, tmp_path / "after")
    printed = capsys.readouterr().out
    assert f"note: {path} has a stored temperature, {value:.4f}: all its probabilities are with it\n" in printed
    assert f"with the stored temperature {value:.3f}\n" in printed and "fitted on" not in printed
    assert after["calibration"]["stored"] == after["temperature"] == value
    expected = before["calibration"]["with_temperature"]
    assert after["calibration"]["as_it_is"]["nll"] == pytest.approx(expected["nll"], rel=1e-5)
    again = report_of(path, tmp_path / "again", "--temperature", "--split", "val")["calibration"]
    assert again["temperature"]["value"] == after["calibration"]["temperature"]["value"] == value
    assert again["with_temperature"] == again["as_it_is"]  # the samples that it is fitted on, shown with it already
    text = (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    assert "which are the samples shown here" in text and "with the stored temperature" in text
    assert after["accuracy"] == before["accuracy"] and after["loss"] == pytest.approx(expected["nll"], rel=1e-5)

    trained = build_trained(path, "cpu")
    save_checkpoint(path, stored | {"saved_at": stored["saved_at"] + 1})
    with pytest.raises(ValueError, match=f"{path} was saved anew while it was evaluated; evaluate it again"):
        trained.store_temperature(2.0)
    assert "temperature" not in load_checkpoint(path)
    save_checkpoint(path, stored | {"temperature": value})

    arguments = ["--config", str(ROOT / "configs" / "fusion.yaml"), f"run.folder={tmp_path}", "run.device=cpu"]
    arguments += ["data.image_size=32", "run.epochs=4", "run.limit_batches=2", "--resume"]
    weights = []
    for source in (path, folder / "checkpoints" / "last.pt"):
        copy = tmp_path / f"copy-{len(weights)}.pt"
        copy.write_bytes(source.read_bytes())
        assert train.main([*arguments, str(copy), f"run.name=resumed-{len(weights)}"]) == 0
        weights.append(load_checkpoint(tmp_path / f"resumed-{len(weights)}" / "checkpoints" / "last.pt"))
    assert "temperature" not in weights[0]
    assert all(torch.equal(weights[1]["model"][name], tensor) for name, tensor in weights[0]["model"].items())


def test_no_temperature_is_stored_where_none_is_the_best(folder, tmp_path, capsys):
    """A model that gives every class the same."""
    content = load_checkpoint(folder / "checkpoints" / "best.pt")
    for name in [name for name in content["model"] if name.startswith("fusion_head.layers.")][-2:]:
        content["model"][name].zero_()
    save_checkpoint(tmp_path / "flat.pt", content)
    report_of(tmp_path / "flat.pt", tmp_path / "out", "--temperature", code=2)
    assert "error: --temperature: none from 0.05 to 20 is the best of val" in capsys.readouterr().err
    assert "temperature" not in load_checkpoint(tmp_path / "flat.pt")
    assert not (tmp_path / "out").exists()
    found = report_of(tmp_path / "flat.pt", tmp_path / "out")["calibration"]
    assert found["temperature"]["at_limit"] and found["as_it_is"]["nll"] == pytest.approx(math.log(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "speaker"], "error: --by: found 'speaker', but the samples have no columns"),
        (["--temperature", "--manifest", "x.csv"], "error: --temperature: is fitted on the validation split; leave"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(folder, tmp_path, capsys, arguments, message):
    report_of(folder / "checkpoints" / "best.pt", tmp_path / "out", *arguments, code=2)
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
