"""Your own data, from files to predictions: real processes on real PNG, WAV and CSV files."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT
from tests.example_data import main as make_example_data

pytestmark = pytest.mark.slow
QUICK = [
    "run.epochs=1",
    "run.limit_batches=3",
    "data.image_size=32",
    "run.device=cpu",
    "model.image_branch.weights=none",
]


def call(*arguments, code=0):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    assert make_example_data([str(folder), "--tones", "--takes", "1"]) == 0
    return folder


def train(table, runs, *overrides, code=0):
    config = ["--config", "configs/manifest.yaml", f"data.manifest={table}", f"run.folder={runs}"]
    return call("train.py", *config, *QUICK, *overrides, code=code)


def predictions(folder):
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_from_files_to_predictions(data, tmp_path):
    """With rows that lack an image or a recording: training, report by what is there, new rows, broken new rows."""
    call("-m", "app.commands.manifest", "check", data / "table.csv")
    train(data / "table.csv", tmp_path)
    best = tmp_path / "manifest" / "checkpoints" / "best.pt"
    spec = torch.load(best, weights_only=True)["data_spec"]
    assert spec["class_names"] == sorted(spec["class_names"]) and sum(spec["class_counts"]) == 120
    assert all(n > 0 for n in spec["absent"]) and spec["num_features"] == 39

    board = EventAccumulator(str(tmp_path / "manifest")).Reload()  # the first samples that were recorded can be heard
    recordings = [name for name in board.Tags()["audio"] if name.startswith("val/recording_")]
    assert recordings and all(board.Audio(name)[0].length_frames > 1000 for name in recordings)

    done = call("evaluate.py", "--checkpoint", best, "--by", "speaker")
    report = json.loads((tmp_path / "manifest" / "evaluation" / "test" / "report.json").read_text())
    assert report["samples"] == 30 and len(report["by_present"]) == 3
    speakers = report["by"]["speaker"]["groups"]
    assert sum(of["samples"] for of in speakers.values()) == 30 and report["by"]["speaker"]["worst"] in speakers
    assert "speaker" in done.stdout
    of_test = predictions(tmp_path / "manifest" / "evaluation" / "test")
    of_speakers = {}
    for row in of_test:
        of_speakers.setdefault(row["speaker"], []).append(row["label"] == row["prediction"])
    found = {name: (of["samples"], of["accuracy"]) for name, of in report["by"]["speaker"]["groups"].items()}
    assert found == {name: (len(right), pytest.approx(np.mean(right))) for name, right in of_speakers.items()}
    for mistake in report["worst_mistakes"]:
        cells = {name: of_test[mistake["index"]][name] for name in ("image_path", "audio_path", "speaker", "class")}
        assert cells.items() <= mistake["cells"].items() and cells["class"] == mistake["label"]
    assert f"\nby speaker: smallest {report['by']['speaker']['smallest']} (" in done.stdout

    done = call("evaluate.py", "--checkpoint", best, "--manifest", data / "new.csv", "--output", tmp_path / "out")
    assert "accuracy" not in done.stdout and [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.csv"]
    of_new = predictions(tmp_path / "out")
    assert len(of_new) == 30 and {row["error"] for row in of_new} == {""}
    shared = ("prediction", "probability", "present", "image_branch", "p(seven)", "image_path", "speaker")
    assert [[row[name] for name in shared] for row in of_new] == [[row[name] for name in shared] for row in of_test]
    assert sum(float(of_new[0][name]) for name in of_new[0] if name.startswith("p(")) == pytest.approx(1, abs=1e-4)

    rows = (data / "new.csv").read_text().splitlines()
    rows[3] = rows[3].replace(".wav", ".wave").replace(".png", ".pong")
    (data / "broken.csv").write_text("\n".join(rows) + "\n")
    done = call("evaluate.py", "--checkpoint", best, "--manifest", data / "broken.csv", "--by", "speaker", code=1)
    assert "warning: --by: no row has a label, so there is no accuracy to tell" in done.stdout
    assert "1 of 30 rows have an error, 1 of these no prediction" in done.stderr
    of_broken = predictions(tmp_path / "manifest" / "evaluation" / "broken")
    assert of_broken[2]["prediction"] == "" and "is not there" in of_broken[2]["error"] and of_broken[2]["row"] == "4"
    others = [{k: v for k, v in row.items() if k != "index"} for row in of_broken[:2] + of_broken[3:]]
    assert others == [{k: v for k, v in row.items() if k != "index"} for row in of_new[:2] + of_new[3:]]


def test_other_rows_are_told_on_resume_and_in_an_evaluation(data, tmp_path):
    rows = (data / "table.csv").read_text().splitlines()
    (data / "fewer.csv").write_text("\n".join(rows) + "\n")
    train(data / "fewer.csv", tmp_path)
    last_row = next(i for i in range(len(rows) - 1, 0, -1) if ",test," in rows[i])
    (data / "fewer.csv").write_text("\n".join(rows[:last_row] + rows[last_row + 1 :]) + "\n")
    done = train(data / "fewer.csv", tmp_path, "run.epochs=2", "--resume", "auto")
    assert "changed since then: the rows of test: 30 rows, " in done.stdout and "-> 29 rows, " in done.stdout
    assert "rows of train" not in done.stdout
    done = call("evaluate.py", "--checkpoint", tmp_path / "manifest" / "checkpoints" / "best.pt", "--split", "val")
    assert "the rows of" not in done.stdout
    other = ["data.audio={features: log_mel}", "data.sequence.deltas=false"]
    done = train(data / "fewer.csv", tmp_path, "run.epochs=3", "--resume", "auto", *other, code=2)
    assert [line[:27] for line in done.stderr.splitlines() if "error: " in line] == [
        "error: data.sequence: chang",
        "error: data.audio: changed ",
    ]
    a_val_row = next(i for i, row in enumerate(rows) if ",val," in row)
    (data / "fewer.csv").write_text("\n".join(rows[:a_val_row] + rows[a_val_row + 1 :]) + "\n")
    last = tmp_path / "manifest" / "checkpoints" / "last.pt"
    done = call("evaluate.py", "--checkpoint", last)
    assert "warning: the rows of test: 29 rows, " in done.stdout
    assert "warning: the rows of val: 30 rows, " in done.stdout
    assert "the temperature is fitted on the latter" in done.stdout
    report = json.loads((tmp_path / "manifest" / "evaluation" / "test" / "report.json").read_text())
    assert report["samples"] == 30 and report["rows"]["test"].startswith("29 rows, ")  # of the checkpoint


def test_skipped_rows_stand_in_the_runs_folder(data, tmp_path):
    rows = (data / "table.csv").read_text().splitlines()
    rows[1] = rows[1].replace(".png", ".pong") if ".png" in rows[1] else rows[1].replace(".wav", ".wave")
    (data / "bad.csv").write_text("\n".join(rows) + "\n")
    assert "row 2, column " in train(data / "bad.csv", tmp_path, code=2).stderr
    assert not (tmp_path / "manifest").exists()
    done = train(data / "bad.csv", tmp_path, "data.on_error=skip")
    assert "warning: rows are left out for 1 findings" in done.stdout
    with open(tmp_path / "manifest" / "skipped_rows.csv", newline="") as file:
        (skipped,) = csv.DictReader(file)
    assert skipped["row"] == "2" and "is not there" in skipped["problem"]
    done = call("evaluate.py", "--checkpoint", tmp_path / "manifest" / "checkpoints" / "best.pt")
    assert "warning: rows are left out for 1 findings" in done.stdout
    (data / "bad.csv").write_text("\n".join(rows[:1] + rows[2:]) + "\n")
    train(data / "bad.csv", tmp_path, "data.on_error=skip", "--resume", "auto")
    assert not (tmp_path / "manifest" / "skipped_rows.csv").exists()


def test_a_folder_of_series_in_csv_files(data, tmp_path):
    """One branch, (T, F) CSV files, no table; long series in windows, whose logits are averaged."""
    one_branch = [
        "model.image_branch=null",
        "optimizer.groups={all: {params: ['*'], lr: 0.002, betas: [0.9, 0.98]}}",
        "learning_rates.reductions=[]",
        "data.max_length=60",
        "data.too_long=window",
        "data.windows=mean",
    ]
    quick = [value for value in QUICK if "image_branch" not in value]
    config = ["--config", "configs/manifest.yaml", f"data.manifest={data / 'series'}", f"run.folder={tmp_path}"]
    call("train.py", *config, *quick, *one_branch, "run.epochs=20", "run.limit_batches=null", "data.batch_size=16")
    best = tmp_path / "manifest" / "checkpoints" / "best.pt"
    spec = torch.load(best, weights_only=True)["data_spec"]
    assert spec["class_names"] == ["running", "still", "walking"] and spec["feature_names"] == ["x", "y", "z"]
    call("evaluate.py", "--checkpoint", best)
    report = json.loads((tmp_path / "manifest" / "evaluation" / "test" / "report.json").read_text())
    assert report["samples"] == 90 and report["accuracy"] > 0.8
    assert {row["present"] for row in predictions(tmp_path / "manifest" / "evaluation" / "test")} == {"sequence"}

    # The mean over windows, worked out from predictions of each window alone.
    frames = np.loadtxt(data / "series" / "test" / "walking" / "000.csv", delimiter=",", skiprows=1)[:, 1:]
    starts = [*range(0, len(frames) - 60, 60), len(frames) - 60]
    for i, start in enumerate(starts):
        np.save(data / f"window-{i}.npy", frames[start : start + 60])
    np.save(data / "whole.npy", frames)
    names = ["whole.npy", *(f"window-{i}.npy" for i in range(len(starts)))]
    (data / "windows.csv").write_text("\n".join(["sequence", *names]) + "\n")
    call("evaluate.py", "--checkpoint", best, "--manifest", data / "windows.csv")
    whole, *windows = predictions(tmp_path / "manifest" / "evaluation" / "windows")
    logits = [[np.log(float(row[f"p({name})"])) for name in spec["class_names"]] for row in windows]
    means = np.exp(np.mean(logits, axis=0))  # each is a logit but for a constant of its row
    found = [float(whole[f"p({name})"]) for name in spec["class_names"]]
    np.testing.assert_allclose(found, means / means.sum(), atol=1e-4)


def test_the_check_starts_without_what_only_a_training_needs():
    """They cost it 100 MB and a second."""
    names = "{'sklearn', 'scipy', 'matplotlib', 'tensorboard'}"
    found = call("-c", f"import sys, app.commands.manifest; print({names} & set(sys.modules))")
    assert found.stdout == "set()\n"
