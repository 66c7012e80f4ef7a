"""Evaluates a checkpoint on a split: a report, a confusion matrix, and every single prediction.

    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt
    python evaluate.py --checkpoint runs/fusion/checkpoints/best.pt --split val --output somewhere/else

Needs the checkpoint only: config, class names, normalisation and what the image weights implied are inside.
"""

import argparse
import csv
import sys
from dataclasses import asdict
from pathlib import Path

from scipy.stats import binomtest

from app.config import read_part
from app.config_schema import DEVICES
from app.evaluation.figures import confusion_figure
from app.evaluation.metrics import ClassificationMetrics
from app.messages import report_error, survive_lost_output, writing
from app.param_groups.groups import format_table
from app.records.checkpoint import load_checkpoint, load_model_state
from app.records.run_folder import run_folder_of, to_json
from app.training.engine import choose_device, predict, slow_precision
from data import digits
from data.loaders import make_loader
from models.fusion_classifier import build_fusion_classifier
from models.pretrained import ImageWeights


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


def evaluate(checkpoint_path: Path, split: str, output: str | None, device_name: str) -> None:
    saved = load_checkpoint(checkpoint_path)
    # Only what is used here: a variable of the environment that another key reads may be missing.
    tree = saved["config"]
    if isinstance(tree["model"]["image_branch"], dict):
        tree["model"]["image_branch"]["weights"] = "none"  # they come from the checkpoint
    data, model_config, seed, precision = (read_part(tree, k) for k in ("data", "model", "run.seed", "run.precision"))
    device = choose_device(device_name)
    if slow := slow_precision(device, precision):
        print(f"warning: the checkpoint was trained in bf16, and {slow}")
    class_names = saved["class_names"]
    image_weights = ImageWeights(**saved["image_weights"])
    model, _ = build_fusion_classifier(
        **asdict(model_config),
        image_size=data.image_size,
        num_features=digits.NUM_FEATURES,
        num_classes=len(class_names),
        image_weights=image_weights,
    )
    load_model_state(model, saved["model"], checkpoint_path)
    model.to(device)
    splits, _ = digits.load_splits(
        data,
        seed=seed,
        image_mean=image_weights.mean,
        image_std=image_weights.std,
        normalisation=saved["normalisation"],
    )

    branches = list(model.unimodal_heads)
    metrics = ClassificationMetrics(len(class_names), branches).to(device)
    predictions = []
    loader = make_loader(splits[split], data.batch_size)
    for batch, said in predict(model, loader, device=device, precision=precision):
        metrics.update(said, batch)
        predictions += rows_of(batch, said, class_names)

    values, samples = metrics.compute(), len(predictions)
    correct = sum(row["label"] == row["prediction"] for row in predictions)
    interval = binomtest(correct, samples).proportion_ci(confidence_level=0.95, method="wilson")
    confusion = metrics.confusion_matrix()
    report = {
        "checkpoint": str(checkpoint_path),
        "epoch": saved["epoch"],
        "step": saved["step"],
        "split": split,
        "samples": samples,
        "loss": values["loss"],
        "accuracy": values["accuracy"],
        "accuracy_interval_95": [interval.low, interval.high],  # Wilson (1927)
        "macro_f1": values["macro_f1"],
        "unimodal": {b: {"loss": values[f"{b}/loss"], "accuracy": values[f"{b}/accuracy"]} for b in branches},
        "class_names": class_names,
        "confusion_matrix": confusion.tolist(),  # rows: true class, columns: predicted
        "weights": image_weights.description,
        "groups": saved["groups"],
    }
    run_folder = run_folder_of(checkpoint_path) or checkpoint_path.parent
    folder = Path(output) if output else run_folder / "evaluation" / split
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(to_json(report, indent=2) + "\n")
        with open(folder / "predictions.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(predictions[0]))
            writer.writeheader()
            writer.writerows(predictions)
        title = f"{split}: accuracy {values['accuracy']:.4f}, {samples} samples"
        confusion_figure(confusion, class_names, title).savefig(folder / "confusion_matrix.png", dpi=120)
    print(describe(report), f"\nwritten to {folder}: report.json, predictions.csv, confusion_matrix.png", sep="\n")


def rows_of(batch: dict, said, class_names: list[str]) -> list[dict]:
    """One row per sample: truth, prediction, its probability, and what each branch alone would have said."""
    probability, prediction = said.logits.float().softmax(1).max(1)
    columns = {
        "index": batch["index"].tolist(),
        "label": [class_names[i] for i in batch["label"].tolist()],
        "prediction": [class_names[i] for i in prediction.tolist()],
        "probability": [f"{p:.6f}" for p in probability.tolist()],
    }
    for branch, logits in said.unimodal_logits.items():
        columns[branch] = [class_names[i] for i in logits.argmax(1).tolist()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def describe(report: dict) -> str:
    low, high = report["accuracy_interval_95"]
    names = report["class_names"]
    shown = [key for key in ("lr", "weight_decay", "beta1", "beta2") if any(key in g for g in report["groups"])]
    groups = [("group", "values", *(key.replace("_", " ") for key in shown))]
    for group in report["groups"]:
        cells = (f"{group[key]:.3g}" if key in group else "-" for key in shown)
        groups.append((group["name"], f"{group['num_values']:,}", *cells))
    scores = [("", "accuracy", "loss")]
    scores += [("fusion", f"{report['accuracy']:.4f}", f"{report['loss']:.4f}")]
    scores += [(f"{b} alone", f"{v['accuracy']:.4f}", f"{v['loss']:.4f}") for b, v in report["unimodal"].items()]
    confusion = [("true \\ predicted", *names)] + [
        (name, *(str(count) if count else "." for count in row))
        for name, row in zip(names, report["confusion_matrix"], strict=True)
    ]
    return "\n\n".join(
        [
            f"{report['checkpoint']} (epoch {report['epoch']}) on {report['split']}, {report['samples']} samples",
            format_table(scores),
            f"95 % interval of the accuracy: {low:.4f} to {high:.4f}; macro F1: {report['macro_f1']:.4f}",
            format_table(confusion),
            "groups as they were when the checkpoint was saved:\n" + format_table(groups),
        ]
    )


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
