"""Evaluates a checkpoint on a split, or predicts the rows of another table of files.

    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt
    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt --split val --output somewhere/else
    python evaluate.py --checkpoint runs/manifest/checkpoints/best.pt --manifest new.csv

Writes every single prediction and, where labels are known, a report and a confusion matrix. Needs the checkpoint only:
config, data spec and what the image weights implied are inside.
"""

import argparse
import sys
from pathlib import Path

from app.commands.build import build_loader
from app.commands.open_run import SKIPPED
from app.commands.trained import build_trained
from app.evaluation.predictions import labelled, predict, row_names, rows_of, with_cells
from app.evaluation.report import (
    describe_report,
    make_report,
    untrained_absences,
    write_predictions,
    write_report,
)
from app.messages import report_error, survive_lost_output, warn
from app.records.run_config import DEVICES
from app.records.run_folder import run_folder_of
from app.training.precision import slow_precision
from data.spec import SPLITS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="PATH")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=("test", "val"), default="test")
    what.add_argument("--manifest", metavar="TABLE", type=Path, help="other rows: .csv, .tsv, .jsonl, or a folder")
    parser.add_argument("--root", metavar="DIR", type=Path, help="its paths start there; default: the table's folder")
    parser.add_argument("--output", metavar="DIR", help="default: evaluation/<split or table> of the checkpoint's run")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    try:
        return evaluate(Path(args.checkpoint), args.split, args.manifest, args.root, args.output, args.device)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        return report_error(error)


def evaluate(
    checkpoint: Path, split: str, manifest: Path | None, root: Path | None, output: str | None, device_name: str
) -> int:
    """Returns 1 where a row of the manifest, or a file of a folder, has an error, else 0."""
    trained = build_trained(checkpoint, device_name, manifest, root)
    parts, saved = trained.parts, trained.saved
    for change in trained.changed:
        warn(f"{change} than in training")
    for other in () if manifest else parts.other_rows(saved, split):
        warn(f"{other}; the checkpoint was trained beside the former")
    if skipped := parts.source.skipped:
        warn(f"rows are left out for {len(skipped)} findings (data.on_error=skip), see {SKIPPED} of the run")
    if slow := slow_precision(**trained.placement):
        warn(f"the checkpoint was trained in bf16, and {slow}")
    metrics = trained.metrics.to(trained.placement["device"])
    dataset, predictions = parts.splits["new" if manifest else split], []
    loader = build_loader(trained.data_config, dataset, trained.placement["device"])
    for batch, batch_output in predict(parts.model, loader, **trained.placement):
        if (batch["label"] >= 0).any():
            metrics.update(*labelled(batch, batch_output))
        predictions += rows_of(batch, batch_output, parts.class_names)
    for line in untrained_absences(predictions, parts.model.fusion_head.absent):
        warn(line)

    run_folder = run_folder_of(checkpoint) or checkpoint.parent
    folder = Path(output) if output else run_folder / "evaluation" / (name_of(manifest) if manifest else split)
    names = row_names(parts.branches, parts.class_names)
    rows = parts.source.complete(predictions, names) if manifest else predictions
    cells = parts.source.cells() if manifest else [dataset.cells(i) for i in range(len(dataset))]
    files = write_predictions(folder, with_cells(rows, cells))
    if known := [row for row in predictions if row["label"]]:
        report = {
            "checkpoint": str(checkpoint),
            "epoch": saved["position"]["epoch"],
            "step": saved["position"]["step"],
            "split": str(manifest or split),
            **make_report(metrics, known, parts.branches, parts.class_names),
            "weights": parts.image_weights.description,
            "groups": saved["groups"],
        }
        files = f"{write_report(folder, report, metrics)}, {files}"
        print(describe_report(report), end="\n\n")
    print(f"written to {folder}: {files}")
    if errors := [row for row in rows if row.get("error")]:
        unread = sum(not row["prediction"] for row in errors)
        told = f"{len(errors)} of {len(rows)} rows have an error, {unread} of these no prediction"
        print(f"error: {manifest}: {told}; see the column error of predictions.csv", file=sys.stderr)
    for line in (not_rows := parts.source.not_rows if manifest else []):
        print(f"error: {line}", file=sys.stderr)
    return 1 if errors or not_rows else 0


def name_of(manifest: Path) -> str:
    """For the folder of its predictions, which is not that of a split."""
    name = manifest.resolve().stem
    return f"{name}-table" if name in SPLITS else name


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
