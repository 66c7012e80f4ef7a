"""Models that were trained apart, joined or compared by evaluate.py: real processes, the default data and a table."""

import copy
import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import evaluate
import train
from app.commands.trained import build_trained
from app.evaluation.late_fusion import join_predictions
from app.evaluation.scores import metrics_of
from app.records.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import ROOT
from tests.example_data import main as make_example_data

pytestmark = pytest.mark.slow
ONE_GROUP = ["optimizer.groups={all: {params: ['*'], lr: 0.002, weight_decay: 0.01}}", "learning_rates.reductions=[]"]
QUICK = [*ONE_GROUP, "run.epochs=1", "run.device=cpu"]
IMAGE, SEQUENCE = ["model.temporal_branch=null"], ["model.image_branch=null"]
CLASS_COUNTS = [20, 400, *[210] * 8]  # the digits' own are all alike, and would show nothing of a prior


def call(*arguments, code=0):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done


def train_digits(folder, name, *overrides):
    smoke = ["--config", "configs/smoke.yaml", f"run.folder={folder}", f"run.name={name}"]
    call("train.py", *smoke, *QUICK, *overrides)
    path = folder / name / "checkpoints" / "last.pt"
    content = load_checkpoint(path)
    content["data_spec"]["class_counts"] = CLASS_COUNTS
    save_checkpoint(path, content)
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Checkpoints of an image model, a sequence model prepared otherwise, and a model of both."""
    folder = tmp_path_factory.mktemp("runs")
    other = ["data.image_size=40", "data.batch_size=100", "run.seed=3"]
    return {
        "image": train_digits(folder, "image", *IMAGE),
        "sequence": train_digits(folder, "sequence", *SEQUENCE, *other),
        "both": train_digits(folder, "both", "model.image_branch.weights=none", "run.limit_batches=2"),
    }


def rows_in(folder, name="predictions"):
    with open(folder / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities(rows, names):
    return np.array([[float(row[f"p({name})"]) for name in names] for row in rows])


def joined(image, sequence, counts):
    p = image * sequence / (np.array(counts) / sum(counts))
    return p / p.sum(1, keepdims=True)


def test_it_joins_what_each_model_predicts_alone(digits, tmp_path):
    image, sequence = digits["image"], digits["sequence"]
    done = call("evaluate.py", "--late-fusion", image, sequence, "--split", "val")
    for name in ("image", "sequence"):
        call("evaluate.py", "--checkpoint", digits[name], "--split", "val", "--output", tmp_path / name)
    folder = image.parent.parent / "evaluation" / "late_fusion-val"
    rows, of_image, of_sequence = (rows_in(path) for path in (folder, tmp_path / "image", tmp_path / "sequence"))
    names = [str(digit) for digit in range(10)]
    expected = joined(probabilities(of_image, names), probabilities(of_sequence, names), CLASS_COUNTS)
    np.testing.assert_allclose(probabilities(rows, names), expected, atol=2e-4)
    assert len(rows) == 450 and [row["index"] for row in rows] == [str(i) for i in range(450)]
    assert {row["present"] for row in rows} == {"image and sequence"}
    assert all(len({row["prediction"] for row in alone}) > 3 for alone in (of_image, of_sequence))  # both have a say
    for branch, alone in (("image_branch", of_image), ("temporal_branch", of_sequence)):
        assert [row[branch] for row in rows] == [row["prediction"] for row in alone]

    report = json.loads((folder / "report.json").read_text())
    assert report["accuracy"] == pytest.approx(np.mean([row["label"] == row["prediction"] for row in rows]))
    # Of p in 6 decimals, where less than half a millionth reads as 0.
    own = np.maximum([expected[i, names.index(row["label"])] for i, row in enumerate(rows)], 5e-7)
    assert report["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-2)
    assert report["prior"]["1"] == 400 / 2100 and report["split"] == "val"
    for branch, name, about in zip(report["unimodal"], ("image", "sequence"), report["checkpoints"], strict=True):
        alone = json.loads((tmp_path / name / "report.json").read_text())
        assert report["unimodal"][branch]["accuracy"] == alone["accuracy"]
        assert report["unimodal"][branch]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert about == {key: alone[key] for key in about} and about.keys() > {"checkpoint", "epoch", "groups", "rows"}
    assert (folder / "confusion_matrix.png").is_file()
    assert f"{image} (epoch 1) and {sequence} (epoch 1) on val, 450 samples" in done.stdout


def refusal(capsys, *arguments):
    assert evaluate.main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_does_not_belong_together_is_refused_in_a_line(digits, tmp_path, capsys):
    image, sequence, both = digits["image"], digits["sequence"], digits["both"]
    assert f"{sequence} reads sequences; the first " in refusal(capsys, "--late-fusion", sequence, image)
    assert f"{both} reads images and sequences; the first " in refusal(capsys, "--late-fusion", both, sequence)
    assert f"{image} reads images; the second checkpoint " in refusal(capsys, "--late-fusion", image, image)
    assert "checkpoint nowhere.pt does not exist" in refusal(capsys, "--late-fusion", image, "nowhere.pt")
    for option in ("manifest", "root"):
        line = refusal(capsys, "--late-fusion", image, sequence, f"--{option}", "new.csv")
        assert line == f"error: --{option}: is for one --checkpoint, not for --late-fusion; take one of the two out"
    content = load_checkpoint(sequence)
    content["data_spec"]["class_counts"] = CLASS_COUNTS[::-1]
    save_checkpoint(tmp_path / "other.pt", content)
    assert f"the share of '0' in training must be the same; it was 0.009524 in {image}, " in refusal(
        capsys, "--late-fusion", image, tmp_path / "other.pt"
    )
    for arguments in ([], ["--checkpoint", str(image), "--late-fusion", str(image), str(sequence)]):
        with pytest.raises(SystemExit) as ended:
            evaluate.main(arguments)
        assert ended.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_they_are_compared_on_the_same_rows(digits, tmp_path):
    """Models that read other inputs, in images of another size."""
    paths = {"A": digits["image"], "B": digits["both"], "C": digits["sequence"]}
    done = call("evaluate.py", "--compare", *paths.values(), "--split", "val", "--device", "cpu")
    folder = digits["image"].parent.parent / "evaluation" / "compare-val"
    report, rows = json.loads((folder / "comparison.json").read_text()), rows_in(folder, "comparison")
    assert (report["split"], report["samples"], len(rows), len(report["comparisons"])) == ("val", 450, 450, 2)
    right = {}
    for name, path in paths.items():
        of = ["--checkpoint", path, "--split", "val", "--output", tmp_path / name, "--device", "cpu"]
        assert evaluate.main([*map(str, of)]) == 0
        alone, its_rows = json.loads((tmp_path / name / "report.json").read_text()), rows_in(tmp_path / name)
        found = report["models"][name]
        assert (found["checkpoint"], found["epoch"], found["step"]) == (str(path), 1, alone["step"])
        for key in ("accuracy", "accuracy_interval_95", "macro_f1"):
            assert found[key] == pytest.approx(alone[key], rel=1e-6), key
        assert found["nll"] == pytest.approx(alone["calibration"]["as_it_is"]["nll"])
        own = {branch: of["accuracy"] for branch, of in alone["unimodal"].items()}
        assert {branch: of["accuracy"] for branch, of in found["unimodal"].items()} == pytest.approx(own)
        for row, of_one in zip(rows, its_rows, strict=True):
            shared = [row["index"], row["label"], row[f"prediction {name}"], row[f"probability {name}"]]
            assert shared == [of_one[key] for key in ("index", "label", "prediction", "probability")]
        right[name] = [row["label"] == row["prediction"] for row in its_rows]
    for of in report["comparisons"]:
        pairs = [*zip(right["A"], right[of["model"]], strict=True)]
        assert of["right"]["only_reference"] == pairs.count((True, False)) > 0
        assert of["right"]["only_model"] == pairs.count((False, True)) > 0
        assert f"\n{of['in_words']}\n" in done.stdout
    assert f"\nwritten to {folder}: comparison.json, comparison.csv\n" in done.stdout and not done.stderr


def test_what_cannot_be_compared_is_refused_in_a_line(digits, tmp_path, capsys):
    image, both = digits["image"], digits["both"]

    def changed(path, name, change):
        content = load_checkpoint(path)
        change(content)
        save_checkpoint(tmp_path / name, content)
        return tmp_path / name

    output = ["--output", tmp_path / "out", "--device", "cpu"]
    noisier = changed(both, "noisier.pt", lambda content: content["config"]["data"].update(image_noise=0.5))
    line = refusal(capsys, "--compare", image, noisier, *output)
    expected = f"error: --compare: data.image_noise must be the same; {image} has 0.25, "
    assert line.startswith(expected)
    other = changed(both, "other.pt", lambda content: content["data_spec"]["class_names"].reverse())
    assert "class_names" in refusal(capsys, "--compare", image, other, *output)
    assert f"{image} and {image} are the same file; " in refusal(capsys, "--compare", image, both, image, *output)
    assert f"found one checkpoint, {image}; give two or more" in refusal(capsys, "--compare", image, *output)
    assert "checkpoint nowhere.pt does not exist" in refusal(capsys, "--compare", image, "nowhere.pt", *output)
    new = refusal(capsys, "--compare", image, both, "--manifest", "new.csv", *output)
    assert new.startswith("error: --manifest: the checkpoint was trained with data.source=digits")
    for option in (["--by", "x"], ["--temperature"]):
        expected = f"error: {option[0]}: is for one --checkpoint, not for --compare; take one of the two out"
        assert refusal(capsys, "--compare", image, both, *option, *output) == expected
    for others in (["--checkpoint", str(image)], ["--late-fusion", str(image), str(both)]):
        with pytest.raises(SystemExit) as ended:
            evaluate.main(["--compare", str(image), str(both), *others])
        assert ended.value.code == 2 and "not allowed with argument" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    copy = changed(image, "copy.pt", lambda content: None)
    assert evaluate.main([*map(str, ["--compare", image, copy, *output])]) == 0
    assert "warning: A and B give the same outputs to the last digit: they may" in capsys.readouterr().out


def test_two_trained_models_are_joined_in_this_process_on_other_data(digits):
    image, sequence = (build_trained(digits[name], "cpu") for name in ("image", "sequence"))

    def evaluated():
        predictions = join_predictions(image.predict("test"), sequence.predict("test"), image.prior)
        return metrics_of(predictions, image.objective), predictions.logits

    clean, before = evaluated()
    noisier = copy.copy(image.parts.splits["test"])
    noisier.image_noise, noisier.drawn = 100.0, None
    image.parts.splits["test"] = noisier
    noisy, after = evaluated()
    assert not torch.equal(before, after) and noisy["image_branch/loss"] != clean["image_branch/loss"]
    assert noisy["temporal_branch/loss"] == clean["temporal_branch/loss"]


def test_a_table_of_files(tmp_path, capsys):
    """Each model reads, and knows by its digest, its own files only. A row that one of the two leaves out has no
    partner."""
    assert make_example_data([str(tmp_path), "--tones", "--takes", "1"]) == 0
    header, *rows = (tmp_path / "table.csv").read_text().splitlines()
    complete = [row for row in rows if ".png," in row and ".wav," in row]

    def trained(table, name, *overrides):
        config = ["--config", str(ROOT / "configs" / "manifest.yaml"), f"data.manifest={tmp_path / table}"]
        quick = [*QUICK, "run.limit_batches=3", "data.image_size=32", f"run.folder={tmp_path}", f"run.name={name}"]
        assert train.main([*config, *quick, *overrides]) == 0
        return tmp_path / name / "checkpoints" / "last.pt"

    (tmp_path / "complete.csv").write_text("\n".join([header, *complete]) + "\n")
    image, sequence = trained("complete.csv", "i", *IMAGE), trained("complete.csv", "s", *SEQUENCE)
    for name, path in (("late", None), ("i", image), ("s", sequence)):
        of = ["--checkpoint", str(path)] if path else ["--late-fusion", str(image), str(sequence)]
        assert evaluate.main([*of, "--output", str(tmp_path / "out" / name), "--device", "cpu"]) == 0
    late, of_image, of_sequence = (rows_in(tmp_path / "out" / name) for name in ("late", "i", "s"))
    spec = load_checkpoint(image)["data_spec"]
    alone = [probabilities(rows, spec["class_names"]) for rows in (of_image, of_sequence)]
    expected = joined(*alone, spec["class_counts"])
    np.testing.assert_allclose(probabilities(late, spec["class_names"]), expected, atol=2e-4)
    assert len(set(spec["class_counts"])) > 1  # else the prior would show nothing
    assert {row["present"] for row in late} == {"image and sequence"}
    assert [row["image_path"] for row in late] == [row["image_path"] for row in of_sequence]

    last = next(i for i in range(len(complete) - 1, 0, -1) if ",test," in complete[i])
    (tmp_path / "fewer.csv").write_text("\n".join([header, *complete[:last], *complete[last + 1 :]]) + "\n")
    fewer = trained("fewer.csv", "f", *SEQUENCE)
    capsys.readouterr()
    line = refusal(capsys, "--late-fusion", image, fewer)
    assert line.startswith(f"error: --late-fusion: the number of the rows of test must be the same; {image} has ")
    of_val = ["--split", "val", "--output", tmp_path / "val", "--device", "cpu"]  # whose rows are the same
    assert evaluate.main([*map(str, ["--late-fusion", image, fewer, *of_val])]) == 0

    def compared(*arguments, code=0):
        given = ["--compare", *arguments, "--output", tmp_path / "compared", "--device", "cpu"]
        assert evaluate.main([*map(str, given)]) == code
        return json.loads((tmp_path / "compared" / "comparison.json").read_text())

    assert compared(image, sequence)["samples"] == len(late)
    rows = rows_in(tmp_path / "compared", "comparison")
    assert [(row["prediction A"], row["prediction B"], row["image_path"]) for row in rows] == [
        (row["image_branch"], row["temporal_branch"], row["image_path"]) for row in late
    ]
    line = refusal(capsys, "--compare", image, fewer)
    assert line.startswith("error: --compare: the number of the rows of test must be the same; ")

    cells = [row.split(",") for row in complete]
    here = [i for i, row in enumerate(complete) if ",test," in row][:2]
    place = header.split(",").index("image_path")
    cells[here[0]][place], cells[here[1]][place] = cells[here[1]][place], cells[here[0]][place]
    (tmp_path / "swapped.csv").write_text("\n".join([header, *map(",".join, cells)]) + "\n")
    content = load_checkpoint(image)
    content["config"]["data"]["manifest"] = str(tmp_path / "swapped.csv")
    save_checkpoint(tmp_path / "swapped.pt", content)
    line = refusal(capsys, "--compare", image, tmp_path / "swapped.pt")
    assert line.startswith("error: --compare: images of the rows of test must be the same; ")

    label = header.split(",").index("class")
    new = [row.split(",") for row in complete[:12]]
    new[0][label], new[1][label] = "", "unheard of"
    (tmp_path / "new.csv").write_text("\n".join([header, *map(",".join, new)]) + "\n")
    capsys.readouterr()
    report = compared(image, sequence, "--manifest", tmp_path / "new.csv", code=1)
    told = capsys.readouterr()
    assert report["samples"] == 10 and report["split"] == str(tmp_path / "new.csv")
    assert "1 of 12 rows have no label, and are left out" in told.out
    assert "row 3: class, unheard of is no class of the checkpoint" in told.err
    rows = rows_in(tmp_path / "compared", "comparison")
    assert [(row["index"], row["row"]) for row in rows] == [(str(i), str(i + 2)) for i in range(2, 12)]
