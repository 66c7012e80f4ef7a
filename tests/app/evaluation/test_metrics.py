"""Oracle: scikit-learn's metrics over the whole split at once."""

import math

import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    recall_score,
)
from torch.nn.functional import cross_entropy

from app.evaluation.metrics import ClassificationMetrics, best_of, check_monitor, direction, metric_names
from app.training.objective import Objective
from models.fusion_classifier import Output

CLASSES = ["loss", "a/loss", "c", "accuracy"]
BRANCHES = ["image_branch", "temporal_branch"]


@pytest.fixture
def gathered():
    return gather(Objective())


def gather(objective):
    """Three batches of uneven size, some samples without their sequence."""
    generator = torch.Generator().manual_seed(0)
    metrics, rows = ClassificationMetrics(CLASSES, BRANCHES, objective), []
    for size in (5, 7, 1):
        label = torch.randint(4, (size,), generator=generator)
        logits, image, temporal = (torch.randn(size, 4, generator=generator) for _ in range(3))
        present = torch.ones(size, 2, dtype=torch.bool)
        present[::2, 1] = False
        batch = {"label": label, "present": present}
        metrics.update(Output(logits, {}, {"image_branch": image, "temporal_branch": temporal}), batch)
        rows.append((label, logits, image, temporal, present[:, 1]))
    return metrics, [torch.cat(column) for column in zip(*rows, strict=True)]


def test_equal_to_scikit_learn(gathered):
    metrics, (label, logits, image, temporal, has_sequence) = gathered
    values = metrics.compute()
    guess = logits.argmax(1)
    assert values["accuracy"] == pytest.approx(accuracy_score(label, guess))
    assert values["macro_f1"] == pytest.approx(f1_score(label, guess, average="macro"))
    assert values["loss"] == pytest.approx(log_loss(label, logits.double().softmax(1)), rel=1e-5)
    assert values["image_branch/accuracy"] == pytest.approx(accuracy_score(label, image.argmax(1)))
    assert metrics.confusion_matrix().tolist() == confusion_matrix(label, guess, labels=range(4)).tolist()
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, guess))
    recalls = recall_score(label, guess, average=None, labels=range(4))
    assert [values[f"recall/{name}"] for name in CLASSES] == pytest.approx(recalls.tolist())
    assert list(values) == metric_names(CLASSES, BRANCHES)


def test_samples_without_a_branchs_input_do_not_count_for_it(gathered):
    metrics, (label, _, _, temporal, has_sequence) = gathered
    label, temporal = label[has_sequence], temporal[has_sequence]
    values = metrics.compute()
    assert values["temporal_branch/accuracy"] == pytest.approx(accuracy_score(label, temporal.argmax(1)))
    expected = log_loss(label, temporal.double().softmax(1), labels=range(4))
    assert values["temporal_branch/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 3.0, 0.7])])
def test_the_loss_is_the_objective_over_the_whole_split_at_once(weights, smoothing):
    metrics, (label, logits, image, temporal, has_sequence) = gather(Objective(weights, smoothing))
    values, settings = metrics.compute(), {"weight": weights, "label_smoothing": smoothing}
    assert values["loss"] == pytest.approx(cross_entropy(logits, label, **settings).item(), rel=1e-6)
    assert values["image_branch/loss"] == pytest.approx(cross_entropy(image, label, **settings).item(), rel=1e-6)
    own = cross_entropy(temporal[has_sequence], label[has_sequence], **settings).item()
    assert values["temporal_branch/loss"] == pytest.approx(own, rel=1e-6)
    assert set(label.tolist()) == {0, 1, 2, 3}  # else a weight would not be looked at


def test_a_nan_is_not_hidden_by_the_mean():
    metrics = ClassificationMetrics(CLASSES, [], Objective())
    logits = torch.zeros(3, 4)
    logits[1] = float("nan")
    batch = {"label": torch.tensor([0, 1, 2]), "present": torch.ones(3, 2, dtype=torch.bool)}
    metrics.update(Output(logits, {}, {}), batch)
    assert math.isnan(metrics.compute()["loss"])


@pytest.mark.filterwarnings("error")
def test_a_batch_or_split_without_any_sequence():
    """The batch counts for all but that branch; of the split that branch has no figures, and torchmetrics no word."""
    generator = torch.Generator().manual_seed(0)
    metrics = ClassificationMetrics(CLASSES, BRANCHES, Objective())
    label = torch.tensor([0, 1, 2, 3, 0, 1])
    logits, image, temporal = (torch.randn(6, 4, generator=generator) for _ in range(3))
    present = torch.ones(6, 2, dtype=torch.bool)
    present[:3, 1] = False
    temporal[:3] = 0
    for split in ([slice(0, 3), slice(3, 6)], [slice(0, 3)]):
        for metric in metrics.metrics.values():
            metric.reset()
        for rows in split:
            unimodal = {"image_branch": image[rows], "temporal_branch": temporal[rows]}
            metrics.update(Output(logits[rows], {}, unimodal), {"label": label[rows], "present": present[rows]})
        values, n = metrics.compute(), 3 * len(split)
        assert values["accuracy"] == pytest.approx(accuracy_score(label[:n], logits[:n].argmax(1)))
        assert values["image_branch/accuracy"] == pytest.approx(accuracy_score(label[:n], image[:n].argmax(1)))
        own = {name: values[f"temporal_branch/{name}"] for name in ("loss", "accuracy")}
        if n == 6:
            assert own["accuracy"] == pytest.approx(accuracy_score(label[3:], temporal[3:].argmax(1)))
            expected = log_loss(label[3:], temporal[3:].double().softmax(1), labels=range(4))
            assert own["loss"] == pytest.approx(expected, rel=1e-5)
        else:
            assert all(map(math.isnan, own.values()))


def test_a_class_without_samples_has_no_recall_and_no_part_in_the_balanced_accuracy():
    """Rows: class 0 is found once in two, class 2 always; nothing is of class 1, which is predicted once."""
    metrics = ClassificationMetrics(["a", "b", "c"], [], Objective())
    label, guess = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 2])
    batch = {"label": label, "present": torch.ones(5, 2, dtype=torch.bool)}
    metrics.update(Output(torch.eye(3)[guess], {}, {}), batch)
    values = metrics.compute()
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
