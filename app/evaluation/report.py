"""What an evaluation found: report.json, report.html, predictions.csv, figures, and the short form in words."""

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from app.evaluation.figures import as_png, confusion_figure, reliability_figure
from app.evaluation.metrics import RECALL
from app.evaluation.page import make_page
from app.evaluation.predictions import INPUTS, Predictions
from app.evaluation.scores import (
    accuracy_by,
    confused_pairs,
    confusion_counts,
    describe_mistakes,
    means_of_classes,
    metrics_of,
    own_accuracy,
    scores_of_classes,
    share,
    worst_mistakes,
)
from app.messages import format_table, visible, writing
from app.records.run_log import to_json
from app.training.objective import Objective

FIGURES = ("confusion_matrix", "reliability", "worst_mistakes")
TABLE = 12  # classes up to which the confusion matrix is printed
REPORT = ("report.json", "report.html", *(f"{name}.png" for name in FIGURES))


def scores_of(predictions: Predictions, objective: Objective) -> dict[str, Any]:
    """The figures of a split, as plain values. predictions: all labelled."""
    values, class_names = metrics_of(predictions, objective), predictions.class_names
    means = means_of_classes(predictions)
    accuracy = share(int(predictions.correct.sum()), len(predictions))
    return {
        "samples": len(predictions),
        "loss": values["loss"],
        "accuracy": values["accuracy"],
        "accuracy_interval_95": accuracy["interval_95"],
        "macro_precision": means["macro_precision"]["value"],
        "macro_precision_interval_95": means["macro_precision"]["interval_95"],
        "macro_f1": values["macro_f1"],
        "macro_f1_interval_95": means["macro_f1"]["interval_95"],
        "balanced_accuracy": values["balanced_accuracy"],
        "balanced_accuracy_interval_95": means["balanced_accuracy"]["interval_95"],
        "recall": {name: values[f"{RECALL}{name}"] for name in class_names},  # NaN for a class without samples
        "classes": scores_of_classes(predictions),
        "by_present": accuracy_by(predictions.what_is_present(), predictions.correct),
        "unimodal": {
            branch: {
                "loss": values[f"{branch}/loss"],
                "accuracy": values[f"{branch}/accuracy"],
                "accuracy_interval_95": own_accuracy(predictions, branch)["interval_95"],
            }
            for branch in predictions.unimodal_logits
        },
        "class_names": class_names,
        "confusion_matrix": confusion_counts(predictions).tolist(),  # rows: true class, columns: predicted
        "confused_pairs": confused_pairs(predictions),
        "worst_mistakes": describe_mistakes(predictions, worst_mistakes(predictions)),
    }


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
        write_table(folder / "predictions.csv", rows)
    return "predictions.csv"


def write_table(path: Path, rows: list[dict]) -> None:
    """rows: one or more, all of the same columns."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def write_report(folder: Path, report: dict[str, Any], mistakes: Figure | None = None) -> str:
    """Returns the names of the files. Raises OSError that names the folder, where it cannot be written.

    mistakes: picture of the worst ones.
    """
    figures = draw_figures(report) | ({"worst_mistakes": mistakes} if mistakes else {})
    figures = {name: as_png(figure) for name, figure in figures.items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(to_json(report, indent=2) + "\n")
        for name, figure in figures.items():
            (folder / f"{name}.png").write_bytes(figure)
        (folder / "report.html").write_text(make_page(report, figures), encoding="utf-8")
    return ", ".join(name for name in REPORT if name in ("report.json", "report.html") or name[:-4] in figures)


def draw_figures(report: dict[str, Any]) -> dict[str, Figure]:
    """Those of FIGURES that the report has the numbers of."""
    title = f"{report['split']}: accuracy {report['accuracy']:.4f}, {report['samples']} samples"
    counts, calibration = torch.tensor(report["confusion_matrix"]), report.get("calibration")
    figures = {"confusion_matrix": confusion_figure(counts, report["class_names"], title)}
    if calibration:
        curves = {"as it is": calibration["as_it_is"]["bins"]}
        if after := calibration.get("with_temperature"):
            curves[f"with temperature {calibration['temperature']['value']:.2f}"] = after["bins"]
        figures["reliability"] = reliability_figure(curves)
    return figures


def describe_report(report: dict[str, Any]) -> str:
    """The short form."""
    origins = report.get("checkpoints", [report])  # of a late fusion two
    whose = " and ".join(f"{origin['checkpoint']} (epoch {origin['epoch']})" for origin in origins)
    scores = [("", "accuracy", "95 % interval", "loss")]
    for name, of in [("fusion", report), *((f"{branch} alone", of) for branch, of in report["unimodal"].items())]:
        scores.append((name, f"{of['accuracy']:.4f}", _ends(of["accuracy_interval_95"]), f"{of['loss']:.4f}"))
    by_present = report["by_present"]
    lacks = list(by_present) != [" and ".join(INPUTS[branch] for branch in report["unimodal"])]
    parts = [
        f"{whose} on {report['split']}, {report['samples']} samples",
        format_table(scores),
        *([_table_of("present", by_present)] if lacks else []),
        f"macro F1: {report['macro_f1']:.4f} ({_ends(report['macro_f1_interval_95'])}); balanced accuracy: "
        f"{report['balanced_accuracy']:.4f} ({_ends(report['balanced_accuracy_interval_95'])})",
        "\n".join(_in_lines(report)),
        *([_confusion_table(report)] if len(report["class_names"]) <= TABLE else []),
        *(_subgroups(column, of) for column, of in report.get("by", {}).items()),
    ]
    return "\n\n".join(part for part in parts if part)


def _in_lines(report: dict[str, Any]) -> Iterator[str]:
    for name, of in report.get("modality_use", {}).get("inputs", {}).items():
        yield f"{name} {of['in_words']}"
    if calibration := report.get("calibration"):
        yield _describe_calibration(calibration, report["split"])
    if pairs := report["confused_pairs"][:3]:
        named = (f"{pair['true']} taken for {pair['predicted']}: {pair['samples']}" for pair in pairs)
        yield visible(f"most confused: {', '.join(named)}")


def _describe_calibration(calibration: dict[str, Any], split: str) -> str:
    words, stored = f"calibration error {calibration['as_it_is']['ece']:.4f}", calibration["stored"]
    if stored != 1:
        words += f" with the stored temperature {stored:.3f}"
    if (fitted := calibration.get("temperature")) and fitted["value"] != stored:
        words += f", {calibration['with_temperature']['ece']:.4f} with temperature {fitted['value']:.3f}"
        words += " (an end of its range)" if fitted["at_limit"] else ""
        words += f", fitted on {fitted['fitted_on']}"
        words += ", which are these very samples" if fitted["fitted_on"] == split else ""
    return words


def _ends(interval: list[float]) -> str:
    return "-" if math.isnan(interval[0]) else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _table_of(kind: str, groups: dict[str, dict[str, Any]]) -> str:
    rows = [(kind, "accuracy", "95 % interval", "samples")]
    for name, of in groups.items():
        rows.append((name or "(empty)", f"{of['accuracy']:.4f}", _ends(of["interval_95"]), str(of["samples"])))
    return format_table(rows)


def _subgroups(column: str, of: dict[str, Any]) -> str:
    groups, smallest, worst = of["groups"], of["smallest"], of["worst"]
    words = f"by {column}: smallest {smallest or '(empty)'} ({groups[smallest]['samples']} samples), "
    words += f"worst {worst or '(empty)'} ({groups[worst]['accuracy']:.4f})"
    return f"{_table_of(column, groups)}\n{visible(words)}"


def _confusion_table(report: dict[str, Any]) -> str:
    names = report["class_names"]
    recall = {name: "-" if math.isnan(value) else f"{value:.3f}" for name, value in report["recall"].items()}
    rows = [("true \\ predicted", *names, "recall")]
    for name, row in zip(names, report["confusion_matrix"], strict=True):
        rows.append((name, *(str(count) if count else "." for count in row), recall[name]))
    return format_table(rows)
