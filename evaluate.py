"""Evaluates a checkpoint on a split, or predicts the rows of another table of files.

    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt
    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt --split val --output somewhere/else
    python evaluate.py --checkpoint runs/manifest/checkpoints/best.pt --manifest new.csv
    python evaluate.py --late-fusion runs/image/checkpoints/best.pt runs/sequence/checkpoints/best.pt

Writes every single prediction and, where labels are known, a report and a confusion matrix. Needs the checkpoint only:
config, data spec and what the image weights implied are inside.

--late-fusion takes two models that were trained apart, one with model.temporal_branch=null and one with
model.image_branch=null, and joins their probabilities by Bayes' rule: p ~ p_image p_sequence / p(class). It is what a
model of both inputs must beat.
"""

import argparse
import sys
from pathlib import Path

from app.commands.trained import LateFusion, Trained, build_late_fusion, build_trained
from app.evaluation.predictions import gather, row_names, with_cells
from app.evaluation.report import (
    describe_report,
    make_report,
    untrained_absences,
    write_predictions,
    write_report,
)
from app.messages import report_error, survive_lost_output, warn
from app.records.run_config import DEVICES
from data.spec import SPLITS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--checkpoint", metavar="PATH", type=Path)
    who.add_argument("--late-fusion", metavar=("IMAGE", "SEQUENCE"), type=Path, nargs=2, help="two checkpoints")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=("test", "val"), default="test")
    what.add_argument("--manifest", metavar="TABLE", type=Path, help="other rows: .csv, .tsv, .jsonl, or a folder")
    parser.add_argument("--root", metavar="DIR", type=Path, help="its paths start there; default: the table's folder")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="default: evaluation/<split or table> of the checkpoint's run; of two, evaluation/late_fusion-<split> of "
        "the first's",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    try:
        if not args.late_fusion:
            trained = build_trained(args.checkpoint, args.device, args.manifest, args.root)
        elif args.manifest or args.root:
            given = "--manifest" if args.manifest else "--root"
            raise ValueError(f"{given}: is for one --checkpoint; --late-fusion evaluates a --split")
        else:
            trained = build_late_fusion(*args.late_fusion, args.device, args.split)
        return evaluate(trained, args.split, args.manifest, args.output)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        return report_error(error)


def evaluate(trained: Trained | LateFusion, split: str, manifest: Path | None, output: str | None) -> int:
    """Returns 1 where a row of the manifest, or a file of a folder, has an error, else 0."""
    of_rows, name = ("new", name_of(manifest)) if manifest else (split, split)
    for line in trained.warnings(of_rows):
        warn(line)
    predictions = gather(trained.predict(of_rows), trained.class_names, trained.branches)
    for line in untrained_absences(predictions, trained.stand_ins):
        warn(line)

    folder = Path(output) if output else trained.evaluations / trained.folder_name(name)
    if manifest:
        source = trained.parts.source
        rows = source.complete(predictions.rows(), row_names(trained.branches, trained.class_names))
        cells, not_rows = source.cells(), source.not_rows
    else:
        dataset = trained.dataset(split)
        rows, cells, not_rows = predictions.rows(), [dataset.cells(i) for i in range(len(dataset))], []
    files = write_predictions(folder, with_cells(rows, cells))
    if len(known := predictions.labelled()):
        report = {"split": str(manifest or split), **make_report(trained.new_metrics(), known), **trained.origin()}
        files = f"{write_report(folder, report)}, {files}"
        print(describe_report(report), end="\n\n")
    print(f"written to {folder}: {files}")
    if errors := [row for row in rows if row.get("error")]:
        unread = sum(not row["prediction"] for row in errors)
        told = f"{len(errors)} of {len(rows)} rows have an error, {unread} of these no prediction"
        print(f"error: {manifest}: {told}; see the column error of predictions.csv", file=sys.stderr)
    for line in not_rows:
        print(f"error: {line}", file=sys.stderr)
    return 1 if errors or not_rows else 0


def name_of(manifest: Path) -> str:
    """For the folder of its predictions, which is not that of a split."""
    name = manifest.resolve().stem
    return f"{name}-table" if name.removeprefix("late_fusion-") in SPLITS else name


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
