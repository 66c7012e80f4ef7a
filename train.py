"""Trains a classifier that fuses an image branch and a temporal branch, each as its own param group.

python train.py --config configs/fusion.yaml
python train.py --config configs/fusion.yaml optimizer.groups.image_branch.lr=1e-4 run.name=slower
python train.py --config configs/fusion.yaml --resume auto
python train.py --config configs/fusion.yaml --dry-run                        the table of groups, no training
python train.py --config configs/fusion.yaml --dry-run --parameters           each parameter with its group
python train.py --config configs/fusion.yaml --replay runs/fusion/metrics.jsonl    the lrs those metrics give
"""

import argparse
import math
import sys
import time
from contextlib import ExitStack

from app.commands.build import Run, build_run
from app.commands.describe import describe_end, describe_run, describe_scores
from app.commands.open_run import open_run_folder, open_run_log
from app.commands.pictures import draw_augmentation, draw_reliability, draw_validation, recordings
from app.commands.root_config import load_config
from app.commands.trained import load_model
from app.learning_rates.replay import replay
from app.messages import progress_bar, report_error, survive_lost_output, warn
from app.param_groups.groups import parameter_table
from app.records.checkpoint import load_checkpoint, save_checkpoint
from app.records.run_folder import checkpoint_to_resume, lock_run_folder, run_folder_of
from app.records.run_log import RunLog, read_validations
from app.training.balance import far_below_fusion
from app.training.group_stats import Starvation
from app.training.state import raise_if_not_finite
from data.augmentation.augmented import Augmented


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="YAML")
    resume_help = "continue a run (auto: of those with this run.name, the one that saved last)"
    parser.add_argument("--resume", metavar="auto|CHECKPOINT", help=resume_help)
    parser.add_argument("--dry-run", action="store_true", help="print the table of groups and end")
    parser.add_argument("--parameters", action="store_true", help="print every parameter with its group, and end")
    parser.add_argument("--replay", metavar="METRICS", help="print the lrs that recorded validations give, and end")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the config")
    args = parser.parse_intermixed_args(arguments)
    run, training = None, False
    with ExitStack() as at_end:
        try:
            config, tree = load_config(args.config, args.overrides)
            if args.replay is not None:
                validations = read_validations(args.replay)
                settings, balance = (config.optimizer.groups, config.learning_rates), config.balance.learning_rates
                print(replay(*settings, validations, epochs=config.run.epochs, balance=balance))
                return 0
            resume_from = checkpoint_to_resume(args.resume, config.run)
            only_look = args.dry_run or args.parameters
            if resume_from and run_folder_of(resume_from) and not only_look:
                # Before the checkpoint is read: a process that still trains there would make it stale.
                at_end.enter_context(lock_run_folder(run_folder_of(resume_from)))
            run = build_run(config, tree, resume_from)
            print(describe_run(run))
            if only_look:
                if args.parameters:
                    print(parameter_table(run.groups))
                return 0
            open_run_folder(run, at_end)
            training = True
            train(run)
        except KeyboardInterrupt:
            if training:
                last = run.folder / "checkpoints" / "last.pt"
                saved = f"continue with --resume {last}" if last.exists() else "no epoch was finished, nothing is saved"
                print(f"\ninterrupted; {saved}", file=sys.stderr)
            return 130
        except Exception as error:
            if args.debug:
                raise
            return report_error(error, prepared=training)
    return 0


def train(run: Run) -> None:
    config, parts, position, rates = run.config, run.parts, run.position, run.learning_rates
    best_weights = run.best_weights
    starvation, started = Starvation(config.statistics), time.monotonic()
    run_log = open_run_log(run)
    if position.epoch >= config.run.epochs:
        print(f"nothing left to train: {position.epoch} epochs are finished, run.epochs is {config.run.epochs}")
    for epoch in range(position.epoch, config.run.epochs):
        # Counted to the first step that it acts on, which a resumed run repeats.
        events = rates.start_epoch(epoch=epoch, step=position.step)
        run_log.lr_events({"step": position.step + 1, "epoch": epoch + 1}, events)
        if reason := rates.should_stop():
            print(f"stopping after epoch {epoch}: {reason}")
            break
        train_loss = train_one_epoch(run, run_log, starvation)

        # The order is the logic: validate, reduce, log, save the best, restore and validate again, save the last.
        now = {"step": position.step, "epoch": position.epoch}
        val, predictions = run.validate(parts.model)
        monitors = {f"val/{name}": value for name, value in val.items()}
        events = rates.after_validation(monitors, epoch=position.epoch, step=position.step)
        events = best_weights.keep(events)
        run_log.validation(now, val, rates.curves(), draw_validation(run, predictions))
        print(f"epoch {position.epoch}/{config.run.epochs}  {describe_scores(val, parts.branches)}")
        for branch in far_below_fusion(val, parts.model) if position.epoch == 2 else ():
            print(
                f"note: {branch} alone is far below the fusion; python -m app.commands.branch_alone "
                f"{run.folder / 'checkpoints' / 'last.pt'} says whether the fusion's loss starves it"
            )
        for monitor in rates.not_a_number(monitors):
            warn(f"{monitor} is not a number; no rule counts it")
        run_log.lr_events(now, events)
        save_if_best(run, val, train_loss)
        if best_weights.restore():
            # What is saved as last is described by its own validation, which no reduction counts.
            val, _ = run.validate(parts.model)
            run_log.restored(now, val)
            print(f"  with the weights that came back: {describe_scores(val, parts.branches)}")
            save_if_best(run, val, train_loss)
        save_checkpoint(run.folder / "checkpoints" / "last.pt", run.checkpoint(val))

    # There is no best.pt where its metric was never a number, and no last.pt either where a checkpoint that was copied
    # out of a finished run leaves nothing to train.
    paths = [run.folder / "checkpoints" / "best.pt", run.folder / "checkpoints" / "last.pt", run.resumed_from]
    best_path = next(path for path in paths if path and path.exists())
    best = load_checkpoint(best_path)
    load_model(parts.model, best, best_path)
    _, predictions = run.validate(parts.model)
    run_log.board.pictures(position.step, {"val/reliability": draw_reliability(run, predictions)})
    test, _ = run.validate(parts.model, "test")
    run_log.end(position.step, test)
    print(describe_end(run, test, best, best_path, time.monotonic() - started))


def train_one_epoch(run: Run, run_log: RunLog, starvation: Starvation) -> float:
    """Trains on every batch once. Returns the mean training loss."""
    train_step, position, loader, epoch = run.train_step, run.position, run.loaders["train"], run.position.epoch
    train_step.start_epoch(epoch)
    loader.sampler.epoch = epoch
    shown_at = min(run.config.statistics.every, len(loader))  # the first reading, or the end of the first epoch
    with progress_bar(loader, f"epoch {epoch + 1}") as batches:
        for batch in batches:
            batch = run.modality_dropout(epoch, batch)
            reading = train_step(batch, position.step)
            position.step += 1
            if reading is not None:
                run_log.training({"step": position.step, "epoch": epoch + 1}, reading)
                batches.set_postfix(reading.shown(), refresh=False)
                for warning in starvation.look(reading.groups):
                    warn(warning)
            if position.step == shown_at:
                show_samples(run, run_log)
    position.epoch += 1
    return train_step.end_epoch()


def show_samples(run: Run, run_log: RunLog) -> None:
    """What is to be seen and heard of the data, in TensorBoard. It takes its time, so training has begun before."""
    run_log.board.recordings(recordings(run))
    if isinstance(run.loaders["train"].dataset, Augmented):
        run_log.board.pictures(run.position.step, {"train/augmentation": draw_augmentation(run)})


def save_if_best(run: Run, val: dict[str, float], train_loss: float) -> None:
    """Saves best.pt if `val` is the best validation so far. Raises FloatingPointError if the run has blown up."""
    losses = {"training loss": train_loss, "validation loss": val["loss"]}
    raise_if_not_finite(run.parts.model, run.train_step.optimizer, run.groups, losses, run.position)
    best, best_path, value = run.position.best, run.folder / "checkpoints" / "best.pt", run.value_for_best(val)
    if math.isnan(value):
        warn(f"{best.monitor} is not a number, so this validation cannot be the best")
    if not best_path.exists():
        best.best = None  # of a run that this one was copied from
    if best.take(value):
        save_checkpoint(best_path, run.checkpoint(val))


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
