"""Several checkpoints on the same rows: evaluate.py --compare."""

import csv
from pathlib import Path
from typing import Any

import torch

from app.commands.trained import Trained, build_trained, check_same_rows, made_otherwise
from app.evaluation.certainty import describe_certainty
from app.evaluation.compare import compare, holm, in_words
from app.evaluation.predictions import Predictions, gather
from app.evaluation.scores import macro_f1, share
from app.messages import format_table, warn, writing
from app.records.run_log import to_json

OPTION = "--compare"


def compare_checkpoints(
    paths: list[Path], device: str, split: str, manifest: Path | None, root: Path | None, output: str | None
) -> None:
    """Prints and writes what became of it. The first is what the others are compared with.

    Raises ValueError for fewer than two, and where the rows, their classes or labels differ.
    """
    if len(paths) < 2:
        raise ValueError(f"{OPTION}: found one checkpoint; give two or more")
    twice = [path for i, path in enumerate(paths) if path.resolve() in {other.resolve() for other in paths[:i]}]
    if twice:
        raise ValueError(f"{OPTION}: {twice[0]} is given twice; give each checkpoint once")
    models = [build_trained(path, device, manifest, root) for path in paths]
    rows, first = "new" if manifest else split, models[0]
    for model in models[1:]:
        _check_same_classes(first, model)
        check_same_rows(first, model, rows, OPTION)
        for line in made_otherwise(first, model):
            warn(line)
    for model in models:
        for line in model.warnings(rows):
            warn(f"{model.path}: {line}")
    tables = [gather(model.predict(rows), model.class_names, model.branches).labelled() for model in models]
    _check_same_labels(models, tables)
    report = {"split": str(manifest or split), **describe(tables, [str(path) for path in paths])}
    name = f"{manifest.resolve().stem}-table" if manifest else split
    folder = Path(output) if output else first.evaluations / f"compare-{name}"
    write(folder, report, tables)
    print(in_table(report))
    print(f"\nwritten to {folder}: comparison.json, comparison.csv")


def describe(tables: list[Predictions], names: list[str]) -> dict[str, Any]:
    """What comparison.json holds, but for `split`. names: of the checkpoints."""
    models = []
    for name, table in zip(names, tables, strict=True):
        accuracy, own = share(int(table.correct.sum()), len(table)), {}
        for branch, logits in table.unimodal_logits.items():
            right = (logits.argmax(1) == table.label)[table.has(branch)]
            own[branch] = share(int(right.sum()), len(right))["value"]
        certainty = describe_certainty(table)
        models.append(
            {
                "checkpoint": name,
                "accuracy": accuracy["value"],
                "accuracy_interval_95": accuracy["interval_95"],
                "macro_f1": macro_f1(table),
                "nll": certainty["nll"],
                "ece": certainty["ece"],
                "unimodal": own,
            }
        )
    found = [compare(tables[0], table) for table in tables[1:]]
    adjusted = holm([of["p_value"] for of in found])
    for of, name, p in zip(found, names[1:], adjusted, strict=True):
        of["p_value_holm"] = p  # that of one comparison, where there is one
        of |= {"checkpoint": name, "in_words": in_words(of, len(tables[0]))}
    return {"samples": len(tables[0]), "models": models, "against_the_first": found}


def write(folder: Path, report: dict[str, Any], tables: list[Predictions]) -> None:
    """Raises OSError that names the folder."""
    first, columns = tables[0], {}
    columns["index"] = first.index.tolist()
    columns["label"] = [first.class_names[i] for i in first.label.tolist()]
    for place, table in enumerate(tables, start=1):
        probability, prediction = table.probabilities.max(1)
        columns[f"prediction {place}"] = [first.class_names[i] for i in prediction.tolist()]
        columns[f"probability {place}"] = [f"{p:.6f}" for p in probability.tolist()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "comparison.json").write_text(to_json(report, indent=2) + "\n")
        with open(folder / "comparison.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def in_table(report: dict[str, Any]) -> str:
    branches = list(dict.fromkeys(branch for model in report["models"] for branch in model["unimodal"]))
    rows = [
        ("", "accuracy", "95 % interval", "macro F1", "nll", *(f"{branch} alone" for branch in branches), "checkpoint")
    ]
    for place, of in enumerate(report["models"], start=1):
        low, high = of["accuracy_interval_95"]
        own = (f"{of['unimodal'][branch]:.4f}" if branch in of["unimodal"] else "-" for branch in branches)
        scores = (f"{of['accuracy']:.4f}", f"{low:.3f} to {high:.3f}", f"{of['macro_f1']:.4f}", f"{of['nll']:.4f}")
        rows.append((str(place), *scores, *own, of["checkpoint"]))
    table = format_table(rows, left=(0, len(rows[0]) - 1))
    lines = [f"{place} is {of['in_words']}" for place, of in enumerate(report["against_the_first"], start=2)]
    if len(lines) > 1:
        lines.append("p is of the exact McNemar test, corrected for the number of comparisons (Holm)")
    return "\n".join([f"{report['split']}, {report['samples']} samples", "", table, "", *lines])


def _check_same_classes(first: Trained, other: Trained) -> None:
    if first.class_names != other.class_names:
        raise ValueError(
            f"{OPTION}: {first.path} and {other.path} must have the same classes; the former has "
            f"{', '.join(first.class_names[:5])}, ..., the latter {', '.join(other.class_names[:5])}, ...; train both "
            "on the same data"
        )


def _check_same_labels(models: list[Trained], tables: list[Predictions]) -> None:
    if not len(tables[0]):
        raise ValueError(f"{OPTION}: no row has a label; give labelled rows")
    for model, table in zip(models[1:], tables[1:], strict=True):
        if not (torch.equal(table.index, tables[0].index) and torch.equal(table.label, tables[0].label)):
            raise ValueError(
                f"{OPTION}: the labels of the rows must be the same; those of {models[0].path} and {model.path} "
                "differ; give two checkpoints of the same data"
            )
