import pytest
import torch

from app.evaluation.metrics import ClassificationMetrics
from app.evaluation.predictions import rows_of
from app.evaluation.report import accuracy_by_present, describe_report, make_report, untrained_absences
from app.training.objective import Objective
from models.fusion_classifier import Output

BRANCHES = ["image_branch", "temporal_branch"]
NAMES = ["a", "b"]


@pytest.fixture
def evaluated():
    """Six samples of a model with those branches: its metrics, and its rows."""

    def evaluate(present, branches):
        label = torch.tensor([0, 1, 0, 1, 0, 1])
        guess = torch.tensor([0, 1, 0, 0, 1, 1])  # wrong in the fourth and fifth
        logits = torch.eye(2)[guess]
        batch = {"label": label, "present": torch.tensor(present, dtype=torch.bool), "index": torch.arange(6)}
        output = Output(logits, {}, dict.fromkeys(branches, logits))
        metrics = ClassificationMetrics(NAMES, branches, Objective())
        metrics.update(output, batch)
        return metrics, rows_of(batch, output, NAMES)

    return evaluate


def described(metrics, rows, branches):
    about = {"checkpoint": "best.pt", "epoch": 1, "split": "test", "groups": []}
    report = {**about, **make_report(metrics, rows, branches, NAMES)}
    return report, describe_report(report)


def test_accuracy_by_what_is_present_by_hand(evaluated):
    metrics, rows = evaluated([[1, 1], [0, 1], [1, 0], [1, 0], [1, 1], [1, 1]], BRANCHES)
    assert [row["present"] for row in rows[:3]] == ["image and sequence", "sequence only", "image only"]
    assert [row["image_branch"] for row in rows] == ["a", "", "a", "a", "b", "b"]
    assert [row["temporal_branch"] for row in rows] == ["a", "b", "", "", "b", "b"]
    report, text = described(metrics, rows, BRANCHES)
    assert report["by_present"] == {
        "image and sequence": {"samples": 3, "accuracy": pytest.approx(2 / 3)},
        "image only": {"samples": 2, "accuracy": 0.5},
        "sequence only": {"samples": 1, "accuracy": 1.0},
    }
    lines = [line.split() for line in text.splitlines()]
    assert ["image", "only", "0.5000", "2"] in lines and ["sequence", "only", "1.0000", "1"] in lines
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
    report, text = described(*evaluated([present] * 6, branches), branches)
    assert report["by_present"] == {by_present: {"samples": 6, "accuracy": pytest.approx(4 / 6)}}
    assert (f"\n{by_present} " in text) == shown


def test_what_stands_in_for_an_input_and_was_never_trained_is_named(evaluated):
    _, rows = evaluated([[1, 1], [0, 1], [1, 0], [1, 0], [1, 1], [1, 1]], BRANCHES)
    absent = {"image_branch": torch.tensor([0.0, 1.0]), "temporal_branch": torch.zeros(3)}
    (line,) = untrained_absences(rows, absent)
    assert line.startswith("2 of 6 samples lack their sequence, and no training sample did: ")
    assert untrained_absences(rows, absent | {"temporal_branch": torch.ones(3)}) == []
    _, complete = evaluated([[1, 1]] * 6, BRANCHES)
    assert untrained_absences(complete, absent) == []
    assert accuracy_by_present(complete).keys() == {"image and sequence"}
