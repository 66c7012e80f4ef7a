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
from app.commands.same_rows import check_late_fusion, check_same_rows, read_otherwise, smoothed
from app.commands.trained import Trained, build_trained, output_folder
from app.evaluation.certainty import TEMPERATURES, describe_certainty, fit_temperature
from app.evaluation.late_fusion import join_predictions
from app.evaluation.predictions import Predictions, with_cells
from app.evaluation.report import describe_report, scores_of, untrained_absences, write_predictions, write_report
from app.evaluation.scores import accuracy_by_column, check_column
from app.messages import run_command, survive_lost_output, warn
from app.records.run_config import DEVICES, PRECISIONS


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
    parser.add_argument("--temperature", action="store_true", help="fit one on val; store it for all predictions")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    precision = "default: that of the training, but fp32 where bf16 takes clearly longer"
    parser.add_argument("--precision", choices=PRECISIONS, help=precision)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)

    def command() -> int:
        check_options(args)
        return compare_checkpoints(args) if args.compare else evaluate(args)

    return run_command(command, debug=args.debug)


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError for two that do not go together."""
    refused = {"compare": ("temperature", "by"), "late_fusion": ("temperature", "manifest", "root")}
    for option, names in refused.items():
        for name in names if getattr(args, option) else ():
            if getattr(args, name):
                several = f"--{option.replace('_', '-')}"
                raise ValueError(f"--{name}: is for one --checkpoint, not for {several}; take one of the two out")
    if args.temperature and args.manifest:
        raise ValueError("--temperature: is fitted on the validation split; leave --manifest out")


def evaluate(args: argparse.Namespace) -> int:
    """Returns 1 where a row of the manifest, or a file of a folder, has an error, else 0."""
    manifest, split = args.manifest, "new" if args.manifest else args.split
    models = [
        build_trained(path, args.device, manifest, args.root, args.precision)
        for path in args.late_fusion or [args.checkpoint]
    ]
    first, cells = models[0], models[0].cells(split)
    if args.late_fusion:
        check_same_rows("--late-fusion", *models, split)
        check_late_fusion(*models)
        for line in (*read_otherwise(*models), *smoothed(models)):
            warn(line)
    for column in args.by or ():
        check_column(column, cells)
    for model in models:
        model.tell(split, f"{model.path}: " if args.late_fusion else "")
    predictions = first.predict(split)
    if args.late_fusion:
        predictions = join_predictions(predictions, models[1].predict(split), first.prior)
    else:
        for line in untrained_absences(predictions, first.stand_ins):
            warn(line)
    report = {"split": str(manifest or split), **make_report(models, predictions, split, cells, args)}
    if args.temperature:
        _store_temperature(first, report["calibration"]["temperature"])

    kind = "late_fusion-" if args.late_fusion else ""
    folder = Path(args.output or output_folder(first, args.split, manifest, kind))
    rows, not_rows = predictions.rows(), []
    if manifest:
        source = first.parts.source
        rows = source.complete(rows, predictions.columns())
        cells, not_rows = source.cells(), source.not_rows
    files = write_predictions(folder, with_cells(rows, cells))
    if "samples" in report:
        mistakes = draw_mistakes(models, split, predictions.labelled())
        files = f"{write_report(folder, report, mistakes)}, {files}"
        print(describe_report(report), end="\n\n")
    print(f"written to {folder}: {files}")
    if args.temperature:
        print(f"temperature {first.temperature:.4f} is stored in {first.path}: predictions are made with it")
    if errors := [row for row in rows if row.get("error")]:
        unread = sum(not row["prediction"] for row in errors)
        told = f"{len(errors)} of {len(rows)} rows have an error, {unread} of these no prediction"
        print(f"error: {manifest}: {told}; see the column error of predictions.csv", file=sys.stderr)
    for line in not_rows:
        print(f"error: {line}", file=sys.stderr)
    return 1 if errors or not_rows else 0


def make_report(
    models: list[Trained], predictions: Predictions, split: str, cells: list[dict], args: argparse.Namespace
) -> dict[str, Any]:
    """What report.json holds, but for `split`; empty where no label is known.

    Args:
        models: that the predictions are of: one, or the two of a late fusion.
        cells: of each row of the split, by column.
    """
    known, first = predictions.labelled(), models[0]
    if not len(known):
        if args.by:
            warn("--by: no row has a label, so there is no accuracy to tell")
        return {}
    report = scores_of(known, first.objective)
    for mistake in report["worst_mistakes"]:
        if of_row := cells[mistake["index"]]:
            mistake["cells"] = of_row
    if not args.late_fusion and (use := first.modality_use(split)):
        report["modality_use"] = use
    stored = 1.0 if args.late_fusion else first.temperature
    report["calibration"] = {"stored": stored, "as_it_is": describe_certainty(known)}
    if not args.late_fusion and split != "new":  # two models have one each; new rows have no validation split
        report["calibration"] |= fitted_temperature(first, split, known)
    if args.by:
        of_known = [row for row, label in zip(cells, predictions.label.tolist(), strict=True) if label >= 0]
        report["by"] = {column: accuracy_by_column(column, of_known, known.correct) for column in args.by}
    if args.late_fusion:
        prior = dict(zip(first.class_names, first.prior.tolist(), strict=True))
        return report | {"prior": prior, "checkpoints": [model.origin() for model in models]}
    return report | first.origin()


def _store_temperature(trained: Trained, fitted: dict[str, Any]) -> None:
    if fitted["at_limit"]:
        low, high = TEMPERATURES
        raise ValueError(
            f"--temperature: none from {low:g} to {high:g} is the best of val, as all of its samples are right, or the "
            "model is no better than chance; none is stored"
        )
    trained.store_temperature(fitted["value"])


def fitted_temperature(trained: Trained, split: str, known: Predictions) -> dict[str, Any]:
    """The temperature that suits the validation split, and how certain the labelled predictions are with it."""
    for line in trained.parts.other_rows(trained.saved, "val") if split != "val" else ():
        warn(f"{line}; the temperature is fitted on the latter")
    # Raw, so that a stored temperature is found again to the last digit.
    temperature = fit_temperature(trained.predict("val", raw=True).labelled())
    found = {"temperature": {**temperature._asdict(), "fitted_on": "val"}}
    return found | {"with_temperature": describe_certainty(known, temperature.value / trained.temperature)}


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
