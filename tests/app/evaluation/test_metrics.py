"""Oracles: scikit-learn's metrics, torch's cross_entropy."""

import math

import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    recall_score,
)
from torch.nn.functional import cross_entropy

from app.evaluation.metrics import best_of, check_monitor, direction, metric_names
from app.evaluation.predictions import Predictions
from app.evaluation.scores import metrics_of
from app.training.objective import Objective

CLASSES = ["loss", "a/loss", "c", "accuracy"]
BRANCHES = ["image_branch", "temporal_branch"]


def predictions_of(label, logits, present=None, names=CLASSES, **own):
    size = len(label)
    present = torch.ones(size, 2, dtype=torch.bool) if present is None else present
    return Predictions(names, torch.arange(size), label, present, logits, own)


@pytest.fixture
def some():
    """Some samples are without their sequence."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(4, (13,), generator=generator)
    logits, image, temporal = (torch.randn(13, 4, generator=generator) for _ in range(3))
    present = torch.ones(13, 2, dtype=torch.bool)
    present[::2, 1] = False
    return predictions_of(label, logits, present, image_branch=image, temporal_branch=temporal)


def test_equal_to_scikit_learn(some):
    values = metrics_of(some, Objective())
    label, guess, image = some.label, some.logits.argmax(1), some.unimodal_logits["image_branch"]
    assert values["accuracy"] == pytest.approx(accuracy_score(label, guess))
    assert values["macro_f1"] == pytest.approx(f1_score(label, guess, average="macro"))
    assert values["loss"] == pytest.approx(log_loss(label, some.logits.double().softmax(1)), rel=1e-5)
    assert values["image_branch/accuracy"] == pytest.approx(accuracy_score(label, image.argmax(1)))
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, guess))
    recalls = recall_score(label, guess, average=None, labels=range(4))
    assert [values[f"recall/{name}"] for name in CLASSES] == pytest.approx(recalls.tolist())
    assert list(values) == metric_names(CLASSES, BRANCHES) and {type(value) for value in values.values()} == {float}


def test_samples_without_a_branchs_input_do_not_count_for_it(some):
    has = some.present[:, 1]
    label, temporal = some.label[has], some.unimodal_logits["temporal_branch"][has]
    values = metrics_of(some, Objective())
    assert values["temporal_branch/accuracy"] == pytest.approx(accuracy_score(label, temporal.argmax(1)))
    expected = log_loss(label, temporal.double().softmax(1), labels=range(4))
    assert values["temporal_branch/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 3.0, 0.7])])
def test_the_loss_is_the_objective_of_all_samples_that_count(some, weights, smoothing):
    values, settings = metrics_of(some, Objective(weights, smoothing)), {"weight": weights}
    settings["label_smoothing"], has, label = smoothing, some.present[:, 1], some.label
    image, temporal = some.unimodal_logits.values()
    assert values["loss"] == pytest.approx(cross_entropy(some.logits, label, **settings).item(), rel=1e-6)
    assert values["image_branch/loss"] == pytest.approx(cross_entropy(image, label, **settings).item(), rel=1e-6)
    own = cross_entropy(temporal[has], label[has], **settings).item()
    assert values["temporal_branch/loss"] == pytest.approx(own, rel=1e-6)
    assert set(label.tolist()) == {0, 1, 2, 3}  # else a weight would not be looked at


def test_a_nan_is_not_hidden_by_the_mean():
    logits = torch.zeros(3, 4)
    logits[1] = float("nan")
    assert math.isnan(metrics_of(predictions_of(torch.tensor([0, 1, 2]), logits), Objective())["loss"])


@pytest.mark.filterwarnings("error")
def test_of_samples_without_any_sequence_that_branch_has_no_figures(some):
    some.present[:, 1] = False
    values = metrics_of(some, Objective())
    assert math.isnan(values["temporal_branch/loss"]) and math.isnan(values["temporal_branch/accuracy"])
    assert values["accuracy"] == pytest.approx(accuracy_score(some.label, some.prediction))


def test_a_class_without_samples_has_no_recall_and_no_part_in_the_balanced_accuracy():
    """Rows: class 0 is found once in two, class 2 always; nothing is of class 1, which is predicted once."""
    label, guess = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 2])
    values = metrics_of(predictions_of(label, torch.eye(3)[guess], names=[*"abc"]), Objective())
    assert (values["recall/a"], values["recall/c"]) == (0.5, 1.0) and math.isnan(values["recall/b"])
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert values["balanced_accuracy"] == balanced_accuracy_score(label, guess) == 0.75


def test_the_direction_of_every_metric_is_known_whatever_the_classes_are_called():
    directions = {name: direction(f"val/{name}") for name in metric_names(CLASSES, BRANCHES)}
    assert [name for name, better in directions.items() if better == "min"] == [
        "loss", "image_branch/loss", "temporal_branch/loss",
    ]  # fmt: skip
    assert directions["recall/loss"] == directions["recall/a/loss"] == directions["balanced_accuracy"] == "max"
    assert best_of("val/recall/loss") == "highest val/recall/loss" and best_of("val/loss") == "lowest val/loss"


def test_an_unknown_monitor_is_told_the_nearest_and_not_a_thousand_classes():
    known = [f"val/{name}" for name in metric_names([f"class{i}" for i in range(1000)], [])]
    with pytest.raises(ValueError) as error:
        check_monitor("checkpoint.best.monitor", "val/recall/clas7", known)
    assert str(error.value) == (
        "checkpoint.best.monitor: 'val/recall/clas7' is not a validation metric; did you mean 'val/recall/class7'? "
        "known here: val/loss, val/accuracy, val/macro_f1, val/balanced_accuracy, val/recall/<class>"
    )
    check_monitor("checkpoint.best.monitor", "val/recall/class7", known)
