"""Evaluates a checkpoint on a split: a report, a confusion matrix, and every single prediction.

    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt
    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt --split val --output somewhere/else

Needs the checkpoint only: config, data spec and what the image weights implied are inside.
"""

import argparse
import sys
from pathlib import Path

from app.commands.build import build_trained
from app.evaluation.predictions import predict, rows_of
from app.evaluation.report import describe_report, make_report, untrained_absences, write_report
from app.messages import report_error, survive_lost_output, warn
from app.records.run_config import DEVICES
from app.records.run_folder import run_folder_of
from app.training.precision import slow_precision
from data.loaders import make_loader


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="PATH")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--output", metavar="DIR", help="default: evaluation/<split> of the checkpoint's run")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    try:
        evaluate(Path(args.checkpoint), args.split, args.output, args.device)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        return report_error(error)
    return 0


def evaluate(checkpoint: Path, split: str, output: str | None, device_name: str) -> None:
    trained = build_trained(checkpoint, device_name)
    for change in trained.changed:
        warn(f"{change} than in training")
    if slow := slow_precision(**trained.placement):
        warn(f"the checkpoint was trained in bf16, and {slow}")
    parts, saved = trained.parts, trained.saved
    metrics = trained.metrics.to(trained.placement["device"])
    predictions = []
    for batch, batch_output in predict(
        parts.model, make_loader(parts.splits[split], trained.batch_size), **trained.placement
    ):
        metrics.update(batch_output, batch)
        predictions += rows_of(batch, batch_output, parts.class_names)
    for line in untrained_absences(predictions, parts.model.fusion_head.absent):
        warn(line)

    report = {
        "checkpoint": str(checkpoint),
        "epoch": saved["position"]["epoch"],
        "step": saved["position"]["step"],
        "split": split,
        **make_report(metrics, predictions, parts.branches, parts.class_names),
        "weights": parts.image_weights.description,
        "groups": saved["groups"],
    }
    run_folder = run_folder_of(checkpoint) or checkpoint.parent
    folder = Path(output) if output else run_folder / "evaluation" / split
    files = write_report(folder, report, predictions, metrics)
    print(describe_report(report), f"\nwritten to {folder}: {files}", sep="\n")


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
