import dataclasses

import pytest
import torch

from app.commands.pictures import draw_predictions
from app.evaluation.predictions import Predictions
from app.evaluation.report import (
    REPORT,
    describe_report,
    scores_of,
    untrained_absences,
    write_predictions,
    write_report,
)
from app.evaluation.scores import accuracy_by
from app.training.objective import Objective

BRANCHES = ["image_branch", "temporal_branch"]
NAMES = ["a", "b"]


@pytest.fixture
def evaluated():
    """Six samples of a model with those branches."""

    def evaluate(present, branches):
        label = torch.tensor([0, 1, 0, 1, 0, 1])
        guess = torch.tensor([0, 1, 0, 0, 1, 1])  # wrong in the fourth and fifth
        logits = torch.eye(2)[guess]
        present = torch.tensor(present, dtype=torch.bool)
        return Predictions(NAMES, torch.arange(6), label, present, logits, dict.fromkeys(branches, logits))

    return evaluate


def described(predictions):
    about = {"checkpoint": "best.pt", "epoch": 1, "step": 9, "split": "test", "groups": []}
    about |= {"weights": "", "reductions": {}, "versions": {}, "rows": {}, "not_default": []}
    report = {**about, **scores_of(predictions, Objective())}
    return report, describe_report(report)


def test_accuracy_by_what_is_present_by_hand(evaluated):
    predictions = evaluated([[1, 1], [0, 1], [1, 0], [1, 0], [1, 1], [1, 1]], BRANCHES)
    rows = predictions.rows()
    assert [row["present"] for row in rows[:3]] == ["image and sequence", "sequence only", "image only"]
    assert [row["image_branch"] for row in rows] == ["a", "", "a", "a", "b", "b"]
    assert [row["temporal_branch"] for row in rows] == ["a", "b", "", "", "b", "b"]
    report, text = described(predictions)
    found = {kind: (of["samples"], of["accuracy"]) for kind, of in report["by_present"].items()}
    assert found == {"image and sequence": (3, pytest.approx(2 / 3)), "image only": (2, 0.5), "sequence only": (1, 1.0)}
    lines = [line.split() for line in text.splitlines()]
    assert ["image", "only", "0.5000", "0.095", "to", "0.905", "2"] in lines
    assert ["sequence", "only", "1.0000", "0.207", "to", "1.000", "1"] in lines
    assert report["unimodal"]["image_branch"]["accuracy"] == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("present", "branches", "by_present", "shown"),
    [
        ([1, 1], BRANCHES, "image and sequence", False),
        ([1, 0], BRANCHES, "image only", True),
        ([0, 0], BRANCHES, "nothing", True),
        ([1, 1], ["image_branch"], "image", False),
        ([1, 0], ["image_branch"], "image", False),
        ([0, 1], ["image_branch"], "nothing", True),
    ],
)
def test_the_text_speaks_of_it_only_where_a_sample_lacks_what_the_model_reads(
    evaluated, present, branches, by_present, shown
):
    report, text = described(evaluated([present] * 6, branches))
    assert {kind: (of["samples"], of["accuracy"]) for kind, of in report["by_present"].items()} == {
        by_present: (6, pytest.approx(4 / 6))
    }
    assert (f"\n{by_present} " in text) == shown


def test_predictions_without_a_report_leave_none_of_others_beside_them(evaluated, tmp_path):
    predictions = evaluated([[1, 1]] * 6, BRANCHES)
    rows = predictions.rows()
    report, _ = described(predictions)
    write_predictions(tmp_path, rows)
    write_report(tmp_path, report)
    files = {"report.json", "report.html", "confusion_matrix.png", "predictions.csv"}
    assert {path.name for path in tmp_path.iterdir()} == files and files < {*REPORT, "predictions.csv"}
    write_predictions(tmp_path, rows[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 3


@pytest.mark.filterwarnings("error")
def test_class_names_are_drawn_as_they_are(evaluated, tmp_path):
    names = [r"$\foo$", "日本"]
    predictions = dataclasses.replace(evaluated([[1, 1]] * 6, BRANCHES), class_names=names)
    report = described(predictions)[0] | {"split": "$a_$.csv"}
    inputs = {"image": torch.rand(6, 3, 4, 4), "sequence": torch.rand(6, 5, 2), "length": torch.full((6,), 5)}
    files = write_report(tmp_path, report, draw_predictions(predictions, inputs))
    assert files == "report.json, report.html, confusion_matrix.png, worst_mistakes.png"
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 0


def test_what_stands_in_for_an_input_and_was_never_trained_is_named(evaluated):
    predictions = evaluated([[1, 1], [0, 1], [1, 0], [1, 0], [1, 1], [1, 1]], BRANCHES)
    absent = {"image_branch": torch.tensor([0.0, 1.0]), "temporal_branch": torch.zeros(3)}
    (line,) = untrained_absences(predictions, absent)
    assert line.startswith("2 of 6 samples lack their sequence, and no training sample did: ")
    assert untrained_absences(predictions, absent | {"temporal_branch": torch.ones(3)}) == []
    complete = evaluated([[1, 1]] * 6, BRANCHES)
    assert untrained_absences(complete, absent) == []
    assert accuracy_by(complete.what_is_present(), complete.correct).keys() == {"image and sequence"}


def test_some_of_the_samples_are_taken_with_all_that_is_known_of_them(evaluated):
    predictions = evaluated([[1, 1], [0, 1], [1, 0], [1, 0], [1, 1], [1, 1]], BRANCHES)
    predictions.label[0] = -1
    assert predictions.labelled().rows() == predictions.rows()[1:]
    assert predictions.take(torch.tensor([4, 1])).rows() == [predictions.rows()[4], predictions.rows()[1]]
