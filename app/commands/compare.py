"""Several checkpoints on the same rows: evaluate.py --compare."""

import argparse
import sys
from collections.abc import Iterator
from itertools import combinations, count, product
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch

from app.commands.same_rows import check_same_rows, read_otherwise
from app.commands.trained import Trained, build_trained, output_folder
from app.evaluation.compare import compare, describe_comparison
from app.evaluation.predictions import Predictions, with_cells
from app.evaluation.report import untrained_absences, write_table
from app.messages import warn, writing
from app.records.run_log import to_json


def compare_checkpoints(args: argparse.Namespace) -> int:
    """Returns 1 where a row of the manifest, or a file of a folder, has an error, else 0.

    args: of evaluate.py; what the others are compared with comes first.

    Raises ValueError for fewer than two checkpoints, for one that is given twice, and for two that read other rows.
    """
    check_paths(args.compare)
    given = (args.device, args.manifest, args.root, args.precision)
    models = {name: build_trained(path, *given) for name, path in zip(letters(), args.compare, strict=False)}
    first, rows = models["A"], "new" if args.manifest else args.split
    for other in [*models.values()][1:]:
        check_same_rows("--compare", first, other, rows)
        for line in read_otherwise(first, other):
            warn(line)
    tables = {}
    for name, model in models.items():
        model.tell(rows, f"{name}, {model.path}: ")
        predictions = model.predict(rows)
        for line in untrained_absences(predictions, model.stand_ins):
            warn(f"{name}, {model.path}: {line}")
        tables[name] = predictions.labelled()
    for one, other in combinations(tables, 2):
        if torch.equal(tables[one].logits, tables[other].logits):
            warn(f"{one} and {other} give the same outputs to the last digit: they may have the same weights")

    report = {"split": str(args.manifest or args.split), **compare(tables)}
    for name, model in models.items():
        position = model.saved["position"]
        origin = {"checkpoint": str(model.path), "epoch": position["epoch"], "step": position["step"]}
        report["models"][name] = origin | report["models"][name]
    folder = Path(args.output or output_folder(first, args.split, args.manifest, "compare-"))
    cells = first.cells(rows)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "comparison.json").write_text(to_json(report, indent=2) + "\n")
        of_rows = [cells[i] for i in tables["A"].index.tolist()]
        write_table(folder / "comparison.csv", with_cells(comparison_rows(tables), of_rows))
    print(describe_comparison(report), end="\n\n")
    print(f"written to {folder}: comparison.json, comparison.csv")
    return report_left_out(first, len(tables["A"])) if args.manifest else 0


def check_paths(paths: list[Path]) -> None:
    if len(paths) < 2:
        raise ValueError(f"--compare: found one checkpoint, {paths[0]}; give two or more")
    for one, other in combinations(paths, 2):
        if one.resolve() == other.resolve():
            raise ValueError(f"--compare: {one} and {other} are the same file; give each file once")


def comparison_rows(tables: dict[str, Predictions]) -> list[dict[str, Any]]:
    """Of each sample: its index, its label, and of each model its prediction and the probability of that."""
    of_models = {name: table.columns() for name, table in tables.items()}
    first = of_models["A"]
    columns = {"index": first["index"], "label": first["label"]}
    for name, of in of_models.items():
        columns |= {f"{what} {name}": of[what] for what in ("prediction", "probability")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


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


def letters() -> Iterator[str]:
    """A, B, ..., Z, AA, AB, ..."""
    return ("".join(name) for length in count(1) for name in product(ascii_uppercase, repeat=length))
