"""The folder that a run leaves behind: its name, and what is written into it while training goes on."""

import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from app.config import run_name_in
from app.evaluation.metrics import BRANCHES
from app.messages import writing
from app.param_groups.groups import Group
from app.records.checkpoint import load_checkpoint
from app.records.tensorboard import TensorBoard
from app.training.group_stats import ratio_between


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
    """While it is held, no second process can hold it: the system's lock on a file, and beside it who holds it.

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
    is_in_run = folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file()
    return folder.parent if is_in_run else None


def read_validations(path: str | Path) -> list[dict]:
    """The validation records of a metrics.jsonl. Raises FileNotFoundError, or ValueError if there are none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the metrics.jsonl of a run")
    try:
        records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        validations = [record for record in records if record["kind"] == "val"]
        if any(record["epoch"] < 1 or record["step"] < 1 for record in validations):
            raise ValueError("epochs and steps are counted from 1")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a metrics.jsonl ({error}); give that of a run") from None
    if not validations:
        raise ValueError(f"{path} holds no validation; give the metrics.jsonl of a run with a finished epoch")
    return [{k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in record.items()} for record in validations]


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


class RunLog:
    """Writes each thing that happens to where it is read: metrics.jsonl, lr_events.jsonl and TensorBoard.

    `now` is {"step": finished optimizer steps, "epoch": counted from 1}.

    Args:
        resume_after: the step of the checkpoint that a run continues from; what was written later gives way.
    """

    def __init__(self, folder: Path, group_names: list[str], branches: list[str], resume_after: int | None = None):
        self.metrics = JsonLines(folder / "metrics.jsonl", resume_after)
        self.lr_events = JsonLines(folder / "lr_events.jsonl", resume_after)
        self.board = TensorBoard(folder / "tensorboard", group_names, branches, resume_after)
        self.board.config((folder / "config.yaml").read_text())

    def training(self, now: dict, values: dict[str, float], groups: dict[str, dict[str, float]]) -> None:
        """values: loss and accuracy; groups: {group: {hyper-parameter or statistic: value}}."""
        self.metrics.write({**now, "kind": "train", **values})
        self.metrics.write({**now, "kind": "stats", "groups": groups})
        self.board.train(now["step"], values)
        self.board.groups(now["step"], groups)
        ratio = ratio_between(groups, *BRANCHES)
        if ratio is not None:
            self.board.between_groups(now["step"], *BRANCHES, ratio)

    def validation(
        self, now: dict, metrics: dict[str, float], curves: dict[str, dict[str, float]], picture: torch.Tensor | None
    ) -> None:
        """curves: see LearningRates.curves; picture: sample predictions, (3, H, W) in [0, 1]."""
        self.metrics.write({**now, "kind": "val", **metrics})
        self.board.validation(now["step"], metrics, curves)
        if picture is not None:
            self.board.predictions(now["step"], picture)

    def restored(self, now: dict, metrics: dict[str, float]) -> None:
        """The validation of weights that restore_best has put back. A kind of its own: a replay must not count it."""
        self.metrics.write({**now, "kind": "restored", **metrics})

    def histograms(self, now: dict, groups: list[Group]) -> None:
        for group in groups:
            parameters = list(group.parameters.values())
            grads = [p.grad.flatten() for p in parameters if p.grad is not None]
            weights = torch.cat([p.detach().flatten() for p in parameters])
            self.board.histograms(now["step"], group.name, weights, torch.cat(grads) if grads else None)

    def lr_event(self, now: dict, event: dict, text: str) -> None:
        self.lr_events.write({**now, **event})
        self.board.lr_event(now["step"], event, text)

    def close(self) -> None:
        for file in (self.metrics, self.lr_events, self.board):
            file.close()


class JsonLines:
    """A file of one JSON object per line, each written at once.

    Args:
        keep_to_step: on resume, drops lines of later steps: a stopped run wrote them behind its checkpoint.
    """

    def __init__(self, path: Path, keep_to_step: int | None = None):
        if keep_to_step is not None and path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= keep_to_step]
            temporary = path.with_suffix(".tmp")
            with writing(path):
                temporary.write_text("".join(f"{line}\n" for line in kept))
                os.replace(temporary, path)
        self.path = path
        self.file = open(path, "a", buffering=1)

    def write(self, record: dict) -> None:
        """Raises OSError that names the file, where it cannot be written."""
        with writing(self.path):
            self.file.write(to_json(record) + "\n")

    def close(self) -> None:
        self.file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash


def to_json(record: dict, indent: int | None = None) -> str:
    """JSON has no NaN and no infinity: they become "nan", "inf" and "-inf"."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
