"""The folder that a run writes into, made ready before the first step."""

import math
from contextlib import ExitStack

from app.commands.build import Run
from app.config import save_config
from app.records.checkpoint import load_checkpoint, save_checkpoint
from app.records.run_folder import create_run_folder, lock_run_folder, remove_unfinished_saves, run_folder_of


def open_run_folder(run: Run, at_end: ExitStack) -> None:
    """The folder of the run that is resumed, or a new one (also for a checkpoint that was copied out of its run)."""
    config = run.config.run
    run.folder = run_folder_of(run.resumed_from) if run.resumed_from else None
    if run.folder:
        remove_unfinished_saves(run.folder)
        _settle_best(run)
    else:
        run.folder = create_run_folder(config.folder, config.name)
        at_end.enter_context(lock_run_folder(run.folder))
        if run.folder.name != config.name:
            print(f"{config.folder}/{config.name} exists, so this run is {run.folder}")
    save_config(run.tree, run.folder / "config.yaml")


def _settle_best(run: Run) -> None:
    """best.pt must be of what the resumed run has done: a later one was saved by a process that was then killed.

    Raises ValueError, before the first step, if it cannot be read.
    """
    best_path = run.folder / "checkpoints" / "best.pt"
    if not best_path.exists():
        return
    try:
        best = load_checkpoint(best_path)
    except ValueError as error:
        raise ValueError(f"{error}. Or move it away: the best is then counted from here") from None
    if best["position"]["step"] <= run.position.step:
        return
    print(f"note: best.pt is of epoch {best['position']['epoch']}, after the one resumed from, and gives way")
    best_path.unlink()
    if run.resumed_val["loss"] == run.position.best_loss:
        save_checkpoint(best_path, run.checkpoint(run.resumed_val))
    else:  # the best of the resumed run had been overwritten
        run.position.best_loss = math.inf
