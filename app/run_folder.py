"""The folder that a run leaves behind: its name, and what is written into it while training goes on."""

import json
import math
import os
from pathlib import Path

import torch

from app.tensorboard import TensorBoard


def create_run_folder(folder: str | Path, name: str) -> Path:
    """A new runs/<name>, or runs/<name>-2, -3, ... if that exists. Safe against a second run starting now."""
    number = 1
    while True:
        path = Path(folder) / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def newest_checkpoint(folder: str | Path, name: str) -> Path | None:
    """checkpoints/last.pt of the run of that name that saved last; None if there is none."""
    candidates = [Path(folder) / name, *Path(folder).glob(f"{name}-[0-9]*")]
    saved = [path / "checkpoints" / "last.pt" for path in candidates]
    saved = [path for path in saved if path.is_file()]
    return max(saved, key=lambda path: path.stat().st_mtime) if saved else None


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

    def validation(
        self, now: dict, metrics: dict[str, float], reductions: dict[str, float], picture: torch.Tensor
    ) -> None:
        """reductions: {group: factor}; picture: sample predictions, (3, H, W) in [0, 1]."""
        self.metrics.write({**now, "kind": "val", **metrics})
        self.board.validation(now["step"], metrics, reductions)
        self.board.predictions(now["step"], picture)

    def lr_event(self, now: dict, event: dict, text: str) -> None:
        self.lr_events.write({**now, **event})
        self.board.lr_event(now["step"], event["group"], text)

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
            temporary.write_text("".join(f"{line}\n" for line in kept))
            os.replace(temporary, path)
        self.file = open(path, "a", buffering=1)

    def write(self, record: dict) -> None:
        self.file.write(json.dumps(_finite(record), allow_nan=False) + "\n")

    def close(self) -> None:
        self.file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash


def _finite(value):
    """JSON has no NaN and no infinity: they become "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
