"""What is right and what is wrong of labelled predictions, with 95 % intervals, as plain values.

Shares (accuracy, precision, recall) have Wilson's interval, and so has F1, which is 2 p / (1 + p) of the share p that
is right of the samples that are of a class or predicted as it. Means over classes have a seeded percentile bootstrap
over the samples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support, recall_score

from app.evaluation.metrics import RECALL, metric_names
from app.evaluation.predictions import Predictions
from app.messages import nearest
from app.training.objective import IGNORED, Objective

RESAMPLES = 1000
PAIRS, MISTAKES = 10, 12  # how many are named
MOST_VALUES = 50  # of a column by which samples are told apart
NAN = float("nan")


def metrics_of(predictions: Predictions, objective: Objective) -> dict[str, float]:
    """Those of metric_names, of labelled samples. Of the fusion: loss (the objective), accuracy, macro F1, recall of
    each class (NaN for one without samples), and balanced accuracy (the mean of these). Of each branch's own head: loss
    and accuracy over the samples that have its input, NaN where none has."""
    label, prediction, names = predictions.label, predictions.prediction, predictions.class_names
    classes = {"labels": range(len(names)), "average": None, "zero_division": NAN}
    recall = recall_score(label.numpy(), prediction.numpy(), **classes)
    values = {
        "loss": objective(predictions.logits, label).item(),
        "accuracy": predictions.correct.double().mean().item(),
        "macro_f1": float(f1_score(label.numpy(), prediction.numpy(), average="macro")),
        "balanced_accuracy": float(np.nanmean(recall)),
        **{f"{RECALL}{name}": value for name, value in zip(names, recall.tolist(), strict=True)},
    }
    for branch, logits in predictions.unimodal_logits.items():
        own = label.masked_fill(~predictions.has(branch), IGNORED)
        values[f"{branch}/loss"] = objective(logits, own).item()
        values[f"{branch}/accuracy"] = own_accuracy(predictions, branch)["value"]
    return {name: values[name] for name in metric_names(names, list(predictions.unimodal_logits))}


def share(count: int, total: int) -> dict[str, Any]:
    """{"value", "interval_95"}; NaN of nothing."""
    if not total:
        return {"value": NAN, "interval_95": [NAN, NAN]}
    interval = binomtest(count, total).proportion_ci(confidence_level=0.95, method="wilson")
    return {"value": count / total, "interval_95": [float(interval.low), float(interval.high)]}


def scores_of_classes(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """By class: samples, and value and interval of precision, recall and F1. NaN stands for a precision where nothing
    was predicted as the class, a recall where it has no samples, an F1 where both."""
    names, counts = predictions.class_names, confusion_counts(predictions)
    right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    label, prediction = predictions.label.numpy(), predictions.prediction.numpy()
    _, _, f1, _ = precision_recall_fscore_support(label, prediction, labels=range(len(names)), zero_division=NAN)
    ends = [share(int(r), int(t + p - r))["interval_95"] for r, t, p in zip(right, true, predicted, strict=True)]
    return {
        name: {
            "samples": int(true[i]),
            "precision": share(int(right[i]), int(predicted[i])),
            "recall": share(int(right[i]), int(true[i])),
            "f1": {"value": float(f1[i]), "interval_95": [2 * end / (1 + end) for end in ends[i]]},
        }
        for i, name in enumerate(names)
    }


def means_of_classes(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Value and interval of macro precision (over the classes that are predicted), of macro F1 (over those that have
    samples or predictions) and of balanced accuracy (recall, over those that have samples). Where all samples are
    right, or none, up to 3 / N of them may be otherwise in truth (Hanley and Lippman-Hand, 1983)."""
    label, prediction, classes = predictions.label.numpy(), predictions.prediction.numpy(), len(predictions.class_names)

    def means(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        of = (label[label == prediction], label, prediction)
        right, true, predicted = (np.bincount(values, minlength=classes) for values in of)
        with np.errstate(invalid="ignore"):
            return np.nanmean([right / predicted, 2 * right / (true + predicted), right / true], axis=1)

    right, least = int(predictions.correct.sum()), min(1.0, 3 / len(predictions))
    if right in (0, len(predictions)):
        intervals = [[1 - least, 1.0] if right else [0.0, least]] * 3
    else:
        intervals = bootstrap_interval(means, label, prediction).T.tolist()
    names = ("macro_precision", "macro_f1", "balanced_accuracy")
    values = zip(means(label, prediction).tolist(), intervals, strict=True)
    return {name: {"value": value, "interval_95": ends} for name, (value, ends) in zip(names, values, strict=True)}


def bootstrap_interval(statistic: Callable[..., np.ndarray], *columns: np.ndarray) -> np.ndarray:
    """(2, ...), the ends of the seeded percentile bootstrap over the samples. columns: (N,) each, what `statistic` is
    of."""
    how = {"paired": True, "vectorized": False, "n_resamples": RESAMPLES, "method": "percentile", "rng": 0}
    return np.stack(bootstrap(columns, statistic, **how).confidence_interval)


def confused_pairs(predictions: Predictions) -> list[dict[str, Any]]:
    """The pairs of classes of which most samples are confused, and their share of the true class."""
    class_names, counts = predictions.class_names, confusion_counts(predictions)
    wrong = [(int(n), i, j) for (i, j), n in np.ndenumerate(counts) if i != j and n]
    return [
        {
            "true": class_names[i],
            "predicted": class_names[j],
            "samples": n,
            "share": n / int(counts[i].sum()),
        }
        for n, i, j in sorted(wrong, key=lambda pair: (-pair[0], pair[1], pair[2]))[:PAIRS]
    ]


def worst_mistakes(predictions: Predictions, most: int = MISTAKES) -> torch.Tensor:
    """Places of the wrong predictions with the highest probability, the worst first."""
    wrong = (~predictions.correct).nonzero().flatten()
    probability = predictions.probabilities[wrong].amax(1)
    return wrong[probability.argsort(descending=True, stable=True)][:most]


def describe_mistakes(predictions: Predictions, places: torch.Tensor) -> list[dict[str, Any]]:
    taken, names = predictions.take(places), predictions.class_names
    probabilities = taken.probabilities
    rows = zip(taken.index.tolist(), taken.label.tolist(), taken.prediction.tolist(), probabilities, strict=True)
    return [
        {
            "index": index,
            "label": names[label],
            "prediction": names[prediction],
            "probability": float(of_classes[prediction]),
            "probability_of_label": float(of_classes[label]),
        }
        for index, label, prediction, of_classes in rows
    ]


def own_accuracy(predictions: Predictions, branch: str) -> dict[str, Any]:
    """That of a branch's own head, of the samples that have its input; see share."""
    right = predictions.unimodal_logits[branch].argmax(1) == predictions.label
    has = predictions.has(branch)
    return share(int((right & has).sum()), int(has.sum()))


def accuracy_by(kinds: Sequence[str], correct: torch.Tensor) -> dict[str, dict[str, Any]]:
    """{kind: {"samples", "accuracy", "interval_95"}}. kinds: that of each of the N samples; correct: (N,) bool."""
    right: dict[str, list[bool]] = {}
    for kind, is_right in zip(kinds, correct.tolist(), strict=True):
        right.setdefault(kind, []).append(is_right)
    found = {kind: share(sum(of_kind), len(of_kind)) for kind, of_kind in sorted(right.items())}
    return {
        kind: {"samples": len(right[kind]), "accuracy": of["value"], "interval_95": of["interval_95"]}
        for kind, of in found.items()
    }


def accuracy_by_column(column: str, cells: Sequence[dict[str, str]], correct: torch.Tensor) -> dict[str, Any]:
    """{"groups": see accuracy_by, "smallest", "worst": names of groups}.

    cells: of each of the N samples, by column, as check_column passes them.
    """
    groups = accuracy_by([row.get(column, "") for row in cells], correct)
    return {
        "groups": groups,
        "smallest": min(groups, key=lambda name: groups[name]["samples"]),
        "worst": min(groups, key=lambda name: groups[name]["accuracy"]),
    }


def check_column(column: str, cells: Sequence[dict[str, str]]) -> None:
    """Raises ValueError for a column that the samples do not have, and for one with too many values to be a group each.

    cells: of each sample, by column.
    """
    known = list(dict.fromkeys(name for row in cells for name in row))
    if not known:
        raise ValueError(f"--by: found '{column}', but the samples have no columns; it is for data in a table of files")
    if column not in known:
        raise ValueError(f"--by: no column '{column}'; {nearest(column, known)}")
    if (values := len({row.get(column, "") for row in cells})) > MOST_VALUES:
        raise ValueError(
            f"--by: column '{column}' has {values} different values, {MOST_VALUES} are allowed; give one that "
            "stands for groups of samples, such as speaker"
        )


def confusion_counts(predictions: Predictions) -> np.ndarray:
    """(C, C) int64: rows are true classes, columns predictions."""
    classes = range(len(predictions.class_names))
    return confusion_matrix(predictions.label.numpy(), predictions.prediction.numpy(), labels=classes)
