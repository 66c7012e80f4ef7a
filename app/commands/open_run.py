"""The folder that a run writes into, made ready before the first step."""

import csv
from contextlib import ExitStack

from app.commands.build import Run
from app.config import save_config
from app.evaluation.metrics import best_of
from app.messages import writing
from app.records.checkpoint import copy_checkpoint, load_checkpoint
from app.records.run_folder import create_run_folder, lock_run_folder, remove_unfinished_saves, run_folder_of
from app.records.run_log import RunLog

SKIPPED = "skipped_rows.csv"


def open_run_folder(run: Run, at_end: ExitStack) -> None:
    """The folder of the run that is resumed, or a new one (also for a checkpoint that was copied out of its run)."""
    config = run.config.run
    run.folder = run_folder_of(run.resumed_from) if run.resumed_from else None
    if run.folder:
        remove_unfinished_saves(run.folder)
        _set_later_checkpoints_aside(run)
    else:
        run.folder = create_run_folder(config.folder, config.name)
        at_end.enter_context(lock_run_folder(run.folder))
        if run.folder.name != config.name:
            print(f"{config.folder}/{config.name} exists, so this run is {run.folder}")
    save_config(run.tree, run.folder / "config.yaml")
    if skipped := run.parts.source.skipped:
        with writing(run.folder / SKIPPED), open(run.folder / SKIPPED, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(skipped[0]))
            writer.writeheader()
            writer.writerows(skipped)
    else:
        (run.folder / SKIPPED).unlink(missing_ok=True)  # of a run that is resumed with a mended table


def open_run_log(run: Run) -> RunLog:
    return RunLog(
        run.folder,
        run.groups,
        run.parts.branches,
        clip_norm=run.config.optimizer.clip_norm,
        plans=run.learning_rates.plans(),
        seed=run.config.run.seed,
        resume_after=run.position.step if run.resumed_from else None,
    )


def _set_later_checkpoints_aside(run: Run) -> None:
    """last.pt and best.pt must be of what the resumed run has done, as the logs are that it goes on with.

    Later ones are of a run that was resumed from before them, or was killed between the two. They are kept by their
    epoch, and the checkpoint that the run is resumed from takes their place. A best.pt that was chosen by another
    monitor is kept likewise: the next validation takes its place.

    Raises ValueError, before the first step, if best.pt cannot be read.
    """
    for name in ("last.pt", "best.pt"):
        path = run.folder / "checkpoints" / name
        if not path.exists():
            continue
        try:
            saved = load_checkpoint(path)["position"]
        except ValueError as error:
            if name == "best.pt":
                raise ValueError(f"{error}. Or move it away: the best is then counted from here") from None
            aside = path.with_name("last-unreadable.pt")
            print(f"note: last.pt cannot be read; it is kept as {aside.name}")
        else:
            aside = path.with_name(f"{path.stem}-epoch{saved['epoch']}.pt")
            if saved["step"] <= run.position.step:
                if name == "best.pt" and saved["monitor"] != run.position.best.monitor:
                    print(f"note: best.pt is of the {best_of(saved['monitor'])} so far; it is kept as {aside.name}")
                    copy_checkpoint(path, aside)
                continue
            print(f"note: {name} is of epoch {saved['epoch']}, after the one resumed from; it is kept as {aside.name}")
        copy_checkpoint(path, aside)  # at no moment is there no last.pt
        if name == "last.pt" or run.value_for_best(run.resumed_val) == run.position.best.best:
            copy_checkpoint(run.resumed_from, path)
        else:  # the best of the resumed run had been overwritten
            path.unlink()
            run.position.best.best = None
