"""The folder of a run: its name, its lock, and how a run is found again."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from app.config import run_name_in
from app.records.checkpoint import load_checkpoint
from app.records.run_config import RunConfig


def create_run_folder(folder: str | Path, name: str) -> Path:
    """A new runs/<name>, or runs/<name>-2, -3, ... if that exists. Safe against a second run starting now.

    Raises ValueError if it cannot be made.
    """
    number = 1
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        while True:
            path = Path(folder) / (name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                path.mkdir()
                return path
            number += 1
    except OSError as error:
        raise ValueError(f"no run can be made in {folder} ({error.strerror}); give another run.folder") from None


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """While it is held, no second process can hold it: the system's lock on a file, and a file that names the holder.

    Both files are gone at the end. A process that was killed leaves them; the next one takes the lock over and says so.
    Raises ValueError if another process holds it, or if the folder cannot be written.
    """
    path, owner_path = folder / "lock", folder / "lock.json"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)  # seconds in which an owner that has just begun writes down who it is
    except Timeout:
        remedy = "wait for its end, stop it, or start a run of another run.name"
        raise ValueError(f"{folder} is in use by {_owner(owner_path)}; {remedy}") from None
    except OSError as error:
        raise _not_writable(folder, error) from None
    try:
        if owner_path.exists():
            print(f"taking over {folder}, which {_owner(owner_path)}, left without a clean end")
        _write_owner(owner_path)
        yield
    finally:
        with suppress(OSError):
            owner_path.unlink(missing_ok=True)
            if os.name == "posix":  # while it is held: who waits for it notices that it is gone
                path.unlink(missing_ok=True)
        lock.release()


def _write_owner(path: Path) -> None:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started}) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise _not_writable(path.parent, error) from None


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process that does not say who it is"


def _not_writable(folder: Path, error: OSError) -> ValueError:
    return ValueError(f"run folder {folder} cannot be written ({error.strerror}); make it writable, or copy the run")


def run_folder_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint belongs to; None if it was copied out of one."""
    folder = checkpoint.absolute().parent
    is_in_run = checkpoint.is_file() and folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file()
    return folder.parent if is_in_run else None


def remove_unfinished_saves(folder: Path) -> None:
    """What a process that was killed while saving has left beside the checkpoints. Call with the run's lock held."""
    for path in (folder / "checkpoints").glob(".*.pt-*"):
        path.unlink()


def name_of_run(checkpoint: Path) -> str | None:
    """run.name of the run that a checkpoint belongs to; None without one, or if its config.yaml does not tell."""
    folder = run_folder_of(checkpoint)
    try:
        name = run_name_in(folder / "config.yaml") if folder else None
    except ValueError:  # the checkpoint has a config too
        return None
    return name if isinstance(name, str) else None


def checkpoint_to_resume(resume: str | None, config: RunConfig) -> Path | None:
    """resume: None, auto or a path. None where there is nothing to resume; auto then says so.

    Raises ValueError if `resume` is empty, or auto finds a run that it cannot read.
    """
    if resume is None:
        return None
    if not resume:
        raise ValueError("--resume is empty; give auto, or the path of a checkpoint")
    if resume != "auto":
        return Path(resume)
    path = newest_checkpoint(config.folder, config.name)
    if path is None:
        print(f"nothing to resume: no run of the name {config.name} in {config.folder} has a checkpoint; starting anew")
    return path


def newest_checkpoint(folder: str | Path, name: str) -> Path | None:
    """checkpoints/last.pt of the run that saved last, of those with this run.name in config.yaml; None without one.

    Raises ValueError for one that cannot be read: it might be the one that is meant.
    """
    saved_at = {}
    for config in Path(folder).glob("*/config.yaml"):
        path = config.parent / "checkpoints" / "last.pt"
        try:
            if path.is_file() and run_name_in(config) == name:
                saved_at[path] = load_checkpoint(path)["saved_at"]
        except (ValueError, OSError) as error:
            remedy = f"give --resume PATH, or move {config.parent} out of {folder}"
            raise ValueError(f"--resume auto cannot tell which run saved last: {error}; {remedy}") from None
    return max(saved_at, key=saved_at.__getitem__, default=None)
