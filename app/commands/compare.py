"""Several checkpoints on the same rows: evaluate.py --compare."""

import csv
import sys
from collections.abc import Iterator
from itertools import combinations, count, product, zip_longest
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch

from app.commands.trained import NOT_OF_THE_ROWS, Trained, build_trained
from app.evaluation.compare import compare, describe_comparison
from app.evaluation.predictions import INPUTS, Predictions, with_cells
from app.evaluation.report import untrained_absences
from app.messages import warn, writing
from app.records.run_log import to_json
from data.spec import SPLITS

# Keys of `data` that choose the rows, which are compared themselves, or only how fast they are read.
CHOOSE_ROWS = {"source", "manifest", "root", "columns", "fractions", "on_error", "skip_limit"}
OF_SPEED = {"cache", "cache_folder", "length_buckets"}


def compare_checkpoints(
    paths: list[Path],
    device: str,
    split: str,
    manifest: Path | None,
    root: Path | None,
    output: str | None,
    precision: str | None = None,
) -> int:
    """Returns 1 where a row of the manifest, or a file of a folder, has an error, else 0.

    Args:
        paths: what the others are compared with comes first.
        split: what is compared on, if it is no manifest.
        manifest, root: see build_model_and_data.
        precision: see build_trained.

    Raises ValueError for fewer than two checkpoints, for one that is given twice, and for two that read other rows.
    """
    check_paths(paths)
    models = {
        name: build_trained(path, device, manifest, root, precision)
        for name, path in zip(letters(), paths, strict=False)
    }
    first, rows = models["A"], "new" if manifest else split
    for other in [*models.values()][1:]:
        check_classes(first, other)
        check_rows(first, other, rows)
        check_what_is_added(first, other)
        for line in read_otherwise(first, other):
            warn(line)
    tables = {}
    for name, model in models.items():
        predictions = model.predict(rows)
        for line in (*model.warnings(rows), *untrained_absences(predictions, model.stand_ins)):
            warn(f"{name}, {model.path}: {line}")
        for line in model.notes():
            print(f"note: {line}")
        tables[name] = predictions.labelled()
    for one, other in combinations(tables, 2):
        if torch.equal(tables[one].logits, tables[other].logits):
            warn(f"{one} and {other} give the same outputs to the last digit: they may have the same weights")

    report = {"split": str(manifest or split), **compare(tables)}
    for name, model in models.items():
        position = model.saved["position"]
        origin = {"checkpoint": str(model.path), "epoch": position["epoch"], "step": position["step"]}
        report["models"][name] = origin | report["models"][name]
    folder = Path(output) if output else first.evaluations / folder_name(split, manifest)
    dataset = first.dataset(rows)
    cells = [dataset.cells(i) for i in tables["A"].index.tolist()]
    files = write_comparison(folder, report, with_cells(comparison_rows(tables), cells))
    print(describe_comparison(report), end="\n\n")
    print(f"written to {folder}: {files}")
    return report_left_out(first, len(tables["A"])) if manifest else 0


def check_paths(paths: list[Path]) -> None:
    if len(paths) < 2:
        raise ValueError(f"--compare: found one checkpoint, {paths[0]}; give two or more")
    for one, other in combinations(paths, 2):
        if one.resolve() == other.resolve():
            same = f"{one} is given twice" if one == other else f"{one} and {other} are the same file"
            raise ValueError(f"--compare: {same}, and a model differs in nothing from itself; give each file once")


def check_classes(first: Trained, other: Trained) -> None:
    for a, b in zip_longest(first.class_names, other.class_names, fillvalue=""):
        if a != b:
            raise ValueError(
                f"--compare: {first.path} and {other.path} must have the same classes; where the former has '{a}', "
                f"the latter has '{b}'; give checkpoints that were trained on the same classes"
            )


def check_rows(first: Trained, other: Trained, rows: str) -> None:
    """Each model has digested what it reads only: what both read must be the same, and, where that is nothing, all that
    the table says of each row."""
    both = shared_inputs(first, other)
    a, b = ([model.parts.source.fingerprint(rows, what) for what in both or [None]] for model in (first, other))
    same = a == b and (bool(both) or cells_of(first, rows) == cells_of(other, rows))
    if not same:
        of_a, of_b = (f"{len(model.dataset(rows))} rows" for model in (first, other))
        unlike = "number" if of_a != of_b else "order, labels or files"
        raise ValueError(
            f"--compare: the rows of {'the table' if rows == 'new' else rows} must be the same; {first.path} has "
            f"{of_a}, {other.path} has {of_b}, which differ in {unlike}; give checkpoints of the same data, and rows "
            "that each of them can read"
        )


def check_what_is_added(first: Trained, other: Trained) -> None:
    """Of noise on an input that both read: with more of it the test is a harder one."""
    both = shared_inputs(first, other)
    a, b = (model.data_config.adds(both) for model in (first, other))
    for key, value in a.items():
        if b.get(key) != value:
            raise ValueError(
                f"--compare: {key} must be the same, as it changes the rows; it is {value} in {first.path}, "
                f"{b.get(key)} in {other.path}; give checkpoints that were trained with the same"
            )


def read_otherwise(first: Trained, other: Trained) -> Iterator[str]:
    """A line for each setting by which the two read the same rows otherwise, which each model may choose."""
    left_out = NOT_OF_THE_ROWS | CHOOSE_ROWS | OF_SPEED
    left_out |= {key.removeprefix("data.") for key in first.data_config.adds([*INPUTS.values()])}
    a, b = (model.data_config.model_dump(exclude=left_out) for model in (first, other))
    for key, value in a.items():
        if value != b.get(key):
            yield (
                f"data.{key} is {value} in {first.path}, {b.get(key)} in {other.path}: each model reads the rows as "
                "its own config says"
            )


def shared_inputs(first: Trained, other: Trained) -> list[str]:
    return [INPUTS[branch] for branch in first.branches if branch in other.branches]


def cells_of(model: Trained, rows: str) -> list[dict[str, str]]:
    dataset = model.dataset(rows)
    return [dataset.cells(i) for i in range(len(dataset))]


def comparison_rows(tables: dict[str, Predictions]) -> list[dict[str, Any]]:
    """Of each sample: its index, its label, and of each model its prediction and the probability of that."""
    first = next(iter(tables.values()))
    columns = {"index": first.index.tolist(), "label": [first.class_names[i] for i in first.label.tolist()]}
    for name, of in tables.items():
        probability, prediction = of.probabilities.max(1)
        columns[f"prediction {name}"] = [of.class_names[i] for i in prediction.tolist()]
        columns[f"probability {name}"] = [f"{p:.6f}" for p in probability.tolist()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_comparison(folder: Path, report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Returns the names of the files. Raises OSError that names the folder, where it cannot be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "comparison.json").write_text(to_json(report, indent=2) + "\n")
        with open(folder / "comparison.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=[*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    return "comparison.json, comparison.csv"


def report_left_out(model: Trained, compared: int) -> int:
    """Prints which rows of a manifest are not in the comparison. Returns 1 where that is for an error, else 0."""
    source = model.parts.source
    errors = source.unreadable | source.unlabelled
    lines = [f"row {number}: {errors[number]}" for number in sorted(errors)] + source.not_rows
    unlabelled = len(source.table.rows) - compared - len(errors)
    if unlabelled:
        print(f"{unlabelled} of {len(source.table.rows)} rows have no label, and are left out")
    for line in lines:
        print(f"error: {line}; left out of the comparison", file=sys.stderr)
    return 1 if lines else 0


def folder_name(split: str, manifest: Path | None) -> str:
    name = manifest.resolve().stem if manifest else split
    return f"compare-{name}-table" if manifest and name in SPLITS else f"compare-{name}"


def letters() -> Iterator[str]:
    """A, B, ..., Z, AA, AB, ..."""
    return ("".join(name) for length in count(1) for name in product(ascii_uppercase, repeat=length))
