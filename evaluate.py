"""Evaluates a checkpoint on a split, or predicts the rows of another table of files; compares several.

    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt
    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt --split val --output somewhere/else
    python evaluate.py --checkpoint runs/manifest/checkpoints/best.pt --manifest new.csv
    python evaluate.py --compare runs/fusion/checkpoints/best.pt runs/other/checkpoints/best.pt
    python evaluate.py --late-fusion runs/image/checkpoints/best.pt runs/sequence/checkpoints/best.pt

Writes every single prediction and, where labels are known, a report (report.html to read, report.json): scores with
intervals, whether the model uses both inputs, how far its probabilities can be trusted, its worst mistakes. Needs the
checkpoint only: config, data spec and what the image weights implied are inside.

--late-fusion takes two models that were trained apart, one with model.temporal_branch=null and one with
model.image_branch=null, and joins their probabilities by Bayes' rule: p ~ p_image p_sequence / p(class). It is what a
model of both inputs must beat.

--compare takes two checkpoints or more and tells of each but the first whether it is better than the first on the same
rows, by a paired exact test, and by how much.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from app.commands.compare import compare_checkpoints
from app.commands.pictures import draw_mistakes
from app.commands.trained import LateFusion, Trained, build_late_fusion, build_trained
from app.evaluation.certainty import TEMPERATURES, describe_certainty, fit_temperature
from app.evaluation.predictions import Predictions, with_cells
from app.evaluation.report import (
    describe_report,
    scores_of,
    untrained_absences,
    write_predictions,
    write_report,
)
from app.evaluation.scores import accuracy_by_column, check_column
from app.messages import report_error, survive_lost_output, warn
from app.records.run_config import DEVICES, PRECISIONS
from data.spec import SPLITS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--checkpoint", metavar="PATH", type=Path)
    who.add_argument("--late-fusion", metavar=("IMAGE", "SEQUENCE"), type=Path, nargs=2, help="two checkpoints")
    who.add_argument("--compare", metavar="PATH", type=Path, nargs="+", help="each checkpoint against the first")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=("test", "val"), default="test")
    what.add_argument("--manifest", metavar="TABLE", type=Path, help="other rows: .csv, .tsv, .jsonl, or a folder")
    parser.add_argument("--root", metavar="DIR", type=Path, help="its paths start there; default: the table's folder")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="default: evaluation/<split or table> of the checkpoint's run; of several, late_fusion-<split> or "
        "compare-<split or table> in evaluation of the first's",
    )
    parser.add_argument("--by", metavar="COLUMN", action="append", help="accuracy by that column of the table, too")
    parser.add_argument("--robustness", action="store_true", help="accuracy under rising noise on each input, too")
    parser.add_argument("--temperature", action="store_true", help="fit one on val; store it for all predictions")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    precision = "default: that of the training, but fp32 where bf16 takes clearly longer"
    parser.add_argument("--precision", choices=PRECISIONS, help=precision)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    try:
        several = "--late-fusion" if args.late_fusion else "--compare" if args.compare else None
        for name in ("robustness", "temperature", *(["by"] if args.compare else [])) if several else ():
            if getattr(args, name):
                raise ValueError(f"--{name}: is for one --checkpoint, not for {several}; take one of the two out")
        if args.compare:
            given = (args.device, args.split, args.manifest, args.root, args.output, args.precision)
            return compare_checkpoints(args.compare, *given)
        if args.temperature and args.manifest:
            raise ValueError("--temperature: is fitted on the validation split; leave --manifest out")
        if not args.late_fusion:
            trained = build_trained(args.checkpoint, args.device, args.manifest, args.root, args.precision)
        elif args.manifest or args.root:
            given = "--manifest" if args.manifest else "--root"
            raise ValueError(f"{given}: is for one --checkpoint; --late-fusion evaluates a --split")
        else:
            trained = build_late_fusion(*args.late_fusion, args.device, args.split, args.precision)
        return evaluate(trained, args)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        return report_error(error)


def evaluate(trained: Trained | LateFusion, args: argparse.Namespace) -> int:
    """Returns 1 where a row of the manifest, or a file of a folder, has an error, else 0."""
    manifest = args.manifest
    of_rows, name = ("new", name_of(manifest)) if manifest else (args.split, args.split)
    dataset = trained.dataset(of_rows)
    cells = [dataset.cells(i) for i in range(len(dataset))]
    for column in args.by or ():
        check_column(column, cells)
    for line in trained.warnings(of_rows):
        warn(line)
    for line in trained.notes():
        print(f"note: {line}")
    predictions = trained.predict(of_rows)
    for line in untrained_absences(predictions, trained.stand_ins):
        warn(line)
    report = {"split": str(manifest or args.split), **make_report(trained, predictions, of_rows, cells, args)}
    if args.temperature:
        _store_temperature(trained, report["calibration"]["temperature"])

    folder = Path(args.output) if args.output else trained.evaluations / trained.folder_name(name)
    rows, not_rows = predictions.rows(), []
    if manifest:
        source = trained.parts.source
        rows = source.complete(rows, predictions.columns())
        cells, not_rows = source.cells(), source.not_rows
    files = write_predictions(folder, with_cells(rows, cells))
    if "samples" in report:
        mistakes = draw_mistakes(trained, of_rows, predictions.labelled())
        files = f"{write_report(folder, report, mistakes)}, {files}"
        print(describe_report(report), end="\n\n")
    print(f"written to {folder}: {files}")
    if args.temperature:
        print(f"temperature {trained.temperature:.4f} is stored in {trained.path}: predictions are made with it")
    if errors := [row for row in rows if row.get("error")]:
        unread = sum(not row["prediction"] for row in errors)
        told = f"{len(errors)} of {len(rows)} rows have an error, {unread} of these no prediction"
        print(f"error: {manifest}: {told}; see the column error of predictions.csv", file=sys.stderr)
    for line in not_rows:
        print(f"error: {line}", file=sys.stderr)
    return 1 if errors or not_rows else 0


def make_report(
    trained: Trained | LateFusion, predictions: Predictions, rows: str, cells: list[dict], args: argparse.Namespace
) -> dict[str, Any]:
    """What report.json holds, but for `split`; empty where no label is known.

    Args:
        rows: name of the split that the predictions are of.
        cells: of each of its rows, by column.
    """
    known = predictions.labelled()
    if not len(known):
        for option in ("by", "robustness"):
            if getattr(args, option):
                warn(f"--{option}: no row has a label, so there is no accuracy to tell")
        return {}
    report = scores_of(known, trained.objective)
    for mistake in report["worst_mistakes"]:
        if of_row := cells[mistake["index"]]:
            mistake["cells"] = of_row
    if use := trained.modality_use(rows):
        report["modality_use"] = use
    report["calibration"] = calibration_of(trained, rows, known)
    if args.by:
        of_known = [row for row, label in zip(cells, predictions.label.tolist(), strict=True) if label >= 0]
        report["by"] = {column: accuracy_by_column(column, of_known, known.correct) for column in args.by}
    if args.robustness:
        report["robustness"] = trained.robustness(rows)
    return report | trained.origin()


def _store_temperature(trained: Trained, fitted: dict[str, Any]) -> None:
    if fitted["at_limit"]:
        low, high = TEMPERATURES
        raise ValueError(
            f"--temperature: none from {low:g} to {high:g} is the best of val, as all of its samples are right, or the "
            "model is no better than chance; none is stored"
        )
    trained.store_temperature(fitted["value"])


def calibration_of(trained: Trained | LateFusion, rows: str, known: Predictions) -> dict[str, Any]:
    """As the predictions are, and with the temperature that suits the validation split, where there is one."""
    found = {"stored": trained.temperature, "as_it_is": describe_certainty(known)}
    if rows == "new" or isinstance(trained, LateFusion):  # its data may be elsewhere; each has a temperature of its own
        return found
    for line in trained.parts.other_rows(trained.saved, "val") if rows != "val" else ():
        warn(f"{line}; the temperature is fitted on the latter")
    # Raw, so that a stored temperature is found again to the last digit.
    validation = trained.predict("val", raw=True).labelled()
    temperature = fit_temperature(validation)
    found["temperature"] = {**temperature._asdict(), "fitted_on": "val"}
    return found | {"with_temperature": describe_certainty(known, temperature.value / trained.temperature)}


def name_of(manifest: Path) -> str:
    """For the folder of its predictions, which is not that of a split."""
    name = manifest.resolve().stem
    return f"{name}-table" if name.removeprefix("late_fusion-").removeprefix("compare-") in SPLITS else name


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
