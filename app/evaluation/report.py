"""What an evaluation found: report.json, predictions.csv, a picture, and the same in words."""

import csv
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest

from app.evaluation.figures import confusion_figure
from app.evaluation.metrics import RECALL, ClassificationMetrics
from app.evaluation.predictions import INPUTS, Predictions
from app.messages import format_table, writing
from app.records.run_log import to_json

REPORT = ("report.json", "confusion_matrix.png")


def make_report(metrics: ClassificationMetrics, predictions: Predictions) -> dict[str, Any]:
    """The figures of a split, as plain values.

    Args:
        metrics: without any sample yet, on the CPU.
        predictions: all labelled.
    """
    metrics.update(predictions, {"label": predictions.label, "present": predictions.present})
    values, samples, class_names = metrics.compute(), len(predictions), predictions.class_names
    interval = binomtest(int(predictions.correct.sum()), samples).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        "samples": samples,
        "loss": values["loss"],
        "accuracy": values["accuracy"],
        "accuracy_interval_95": [interval.low, interval.high],  # Wilson (1927)
        "macro_f1": values["macro_f1"],
        "balanced_accuracy": values["balanced_accuracy"],
        "recall": {name: values[f"{RECALL}{name}"] for name in class_names},  # NaN for a class without samples
        "by_present": accuracy_by(predictions.what_is_present(), predictions.correct),
        "unimodal": {
            branch: {"loss": values[f"{branch}/loss"], "accuracy": values[f"{branch}/accuracy"]}
            for branch in predictions.unimodal_logits
        },
        "class_names": class_names,
        "confusion_matrix": metrics.confusion_matrix().tolist(),  # rows: true class, columns: predicted
    }


def accuracy_by(kinds: Sequence[str], correct: torch.Tensor) -> dict[str, dict[str, float]]:
    """{kind: {"samples", "accuracy"}}. kinds: that of each of the N samples; correct: (N,) bool."""
    right: dict[str, list[bool]] = {}
    for kind, is_right in zip(kinds, correct.tolist(), strict=True):
        right.setdefault(kind, []).append(is_right)
    return {kind: {"samples": len(r), "accuracy": sum(r) / len(r)} for kind, r in sorted(right.items())}


def untrained_absences(predictions: Predictions, absent: Mapping[str, torch.Tensor]) -> list[str]:
    """What to warn of: samples lack an input, and what stands in for it is 0 as at first.

    Args:
        absent: the vectors of a models.fusion.Fusion, by branch.
    """
    lines = []
    for branch, vector in absent.items():
        lacking = int((~predictions.has(branch)).sum())
        if lacking and not vector.any():
            lines.append(
                f"{lacking} of {len(predictions)} samples lack their {INPUTS[branch]}, and no training sample did: "
                "what stands in for it was never trained"
            )
    return lines


def write_predictions(folder: Path, rows: list[dict]) -> str:
    """Returns the name of the file. A report that the folder has already is removed: it is of other predictions.

    rows: of Predictions, perhaps with more columns.

    Raises OSError that names the folder, where it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in REPORT:
            (folder / name).unlink(missing_ok=True)
        with open(folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=[*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    return "predictions.csv"


def write_report(folder: Path, report: dict[str, Any]) -> str:
    """Returns the names of the files. Raises OSError that names the folder, where it cannot be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT[0]).write_text(to_json(report, indent=2) + "\n")
        title = f"{report['split']}: accuracy {report['accuracy']:.4f}, {report['samples']} samples"
        figure = confusion_figure(torch.tensor(report["confusion_matrix"]), report["class_names"], title)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # of a name in letters that the font lacks
            figure.savefig(folder / REPORT[1], dpi=120)
    return ", ".join(REPORT)


def describe_report(report: dict[str, Any]) -> str:
    low, high = report["accuracy_interval_95"]
    names = report["class_names"]
    origins = report.get("checkpoints", [report])  # of a late fusion two
    whose = " and ".join(f"{origin['checkpoint']} (epoch {origin['epoch']})" for origin in origins)
    scores = [("", "accuracy", "loss")]
    scores += [("fusion", f"{report['accuracy']:.4f}", f"{report['loss']:.4f}")]
    scores += [(f"{b} alone", f"{v['accuracy']:.4f}", f"{v['loss']:.4f}") for b, v in report["unimodal"].items()]
    by_present = [("present", "accuracy", "samples")]
    by_present += [(k, f"{v['accuracy']:.4f}", str(v["samples"])) for k, v in report["by_present"].items()]
    lacks = list(report["by_present"]) != [" and ".join(INPUTS[branch] for branch in report["unimodal"])]
    recall = {name: "-" if math.isnan(value) else f"{value:.3f}" for name, value in report["recall"].items()}
    confusion = [("true \\ predicted", *names, "recall")] + [
        (name, *(str(count) if count else "." for count in row), recall[name])
        for name, row in zip(names, report["confusion_matrix"], strict=True)
    ]
    return "\n\n".join(
        [
            f"{whose} on {report['split']}, {report['samples']} samples",
            format_table(scores),
            *([format_table(by_present)] if lacks else []),
            f"95 % interval of the accuracy: {low:.4f} to {high:.4f}; macro F1: {report['macro_f1']:.4f}; "
            f"balanced accuracy: {report['balanced_accuracy']:.4f}",
            format_table(confusion),
            *(_describe_groups(origin) for origin in origins),
        ]
    )


def _describe_groups(origin: dict[str, Any]) -> str:
    groups = origin["groups"]
    shown = [key for key in ("lr", "weight_decay", "beta1", "beta2") if any(key in group for group in groups)]
    rows = [("group", "values", *(key.replace("_", " ") for key in shown))]
    for group in groups:
        cells = (f"{group[key]:.3g}" if key in group else "-" for key in shown)
        rows.append((group["name"], f"{group['num_values']:,}", *cells))
    return f"groups as they were when {origin['checkpoint']} was saved:\n{format_table(rows)}"
