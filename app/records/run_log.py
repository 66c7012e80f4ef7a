"""What is written down while a run goes on: metrics.jsonl, lr_events.jsonl and TensorBoard."""

import json
import math
import os
from pathlib import Path

import numpy as np

from app.evaluation.figures import pixels_of, text_figure
from app.learning_rates.events import LrEvent
from app.messages import format_table, writing
from app.param_groups.groups import Group, group_rows, hyperparameters
from app.records.tensorboard import TensorBoard
from app.training.group_stats import ratio_between
from app.training.objective import BRANCHES
from app.training.step import Reading

CHANGES_SHOWN = 12  # of lrs, in a table that has its place among charts


class RunLog:
    """Writes each thing that happens to where it is read: metrics.jsonl, lr_events.jsonl and TensorBoard.

    `now` is {"step": finished optimizer steps, "epoch": counted from 1}.

    Args:
        clip_norm: of the groups without one of their own.
        plans: a row for each group, in words: its schedule, its reductions.
        seed: of the run.
        resume_after: the step of the checkpoint that a run continues from; what was written later is dropped.
    """

    def __init__(
        self,
        folder: Path,
        groups: list[Group],
        branches: list[str],
        *,
        clip_norm: float | None,
        plans: list[dict[str, str]],
        seed: int,
        resume_after: int | None = None,
    ):
        self.metrics = JsonLines(folder / "metrics.jsonl", resume_after)
        self.events = JsonLines(folder / "lr_events.jsonl", resume_after)
        self.changes = [_change(record) for record in self.events.read()]  # of lrs, so far
        self.board = TensorBoard(folder, [group.name for group in groups], branches, resume_after)
        self.not_drawn = {group.name: _never_changing(group, clip_norm) for group in groups}
        config, tables = (folder / "config.yaml").read_text(), [group_rows(groups), plans]
        self.board.about(config, tables, _hparams(groups, seed))

    def training(self, now: dict, reading: Reading) -> None:
        values, groups = {"loss": reading.loss, "accuracy": reading.accuracy}, reading.groups
        self.metrics.write({**now, "kind": "train", **values})
        self.metrics.write({**now, "kind": "stats", "groups": groups})
        self.board.train(now["step"], values)
        drawn = {
            group: {name: value for name, value in of.items() if name not in self.not_drawn[group]}
            for group, of in groups.items()
        }
        self.board.groups(now["step"], drawn)
        ratio = ratio_between(groups, *BRANCHES)
        if ratio is not None:
            self.board.between_groups(now["step"], *BRANCHES, ratio)

    def validation(
        self,
        now: dict,
        metrics: dict[str, float],
        curves: dict[str, dict[str, float]],
        pictures: dict[str, np.ndarray] | None = None,
    ) -> None:
        """curves: see LearningRates.curves; pictures: of the validation by name, each (H, W, 3) uint8."""
        self.metrics.write({**now, "kind": "val", **metrics})
        self.board.validation(now["step"], metrics, curves)
        self.board.pictures(now["step"], {f"val/{name}": picture for name, picture in (pictures or {}).items()})

    def restored(self, now: dict, metrics: dict[str, float]) -> None:
        """The validation of weights that restore_best has put back. A kind of its own: a replay must not count it."""
        self.metrics.write({**now, "kind": "restored", **metrics})

    def lr_events(self, now: dict, events: list[LrEvent]) -> None:
        """Into the file, onto the board and the terminal."""
        if not events:
            return
        records, texts = [event.as_record() for event in events], [event.describe() for event in events]
        for record, text in zip(records, texts, strict=True):
            self.events.write({**now, **record})
            self.changes.append(_change({**now, **record}))
            print(f"  {text}")
        when = f"epoch {now['epoch']}, step {now['step']}"
        text, changes = "\n\n".join(f"{when}: {text}" for text in texts), self.changes[-CHANGES_SHOWN:]
        table = format_table([tuple(changes[0]), *(tuple(change.values()) for change in changes)], left=(2, 4))
        self.board.lr_events(now["step"], records, text, pixels_of(text_figure(table)))

    def end(self, step: int, test: dict[str, float]) -> None:
        """Of a run that has come to its end."""
        self.board.test(step, test)
        self.close()

    def close(self) -> None:
        for file in (self.metrics, self.events, self.board):
            file.close()


def _change(record: dict) -> dict[str, str]:
    """A line of lr_events.jsonl in words, by column."""
    lr = f"{float(record['from']):.3g} → {float(record['to']):.3g}"
    when = {"step": str(record["step"]), "epoch": str(record["epoch"])}
    return when | {"group": record["group"], "lr": lr, "cause": record["cause"]}


def _never_changing(group: Group, clip_norm: float | None) -> set[str]:
    """The readings of a group that are the same throughout, or the same as another: they are in the table of groups."""
    constant = {"weight_decay", "beta1", "beta2"}
    if group.config.clip_norm is None and clip_norm is None:
        constant |= {"clipped_grad_norm", "clipped_share"}
    if group.config.freeze_until == 0 and group.config.freeze_from is None:
        constant |= {"effective_lr"}
    return constant


def _hparams(groups: list[Group], seed: int) -> dict[str, float]:
    """As "<value> <group>". Betas are two numbers, so that runs can be sorted by them."""
    readings = hyperparameters(groups)
    found = {f"lr {group.name}": group.config.lr for group in groups}
    for name in ("weight_decay", "beta1", "beta2"):
        found |= {f"{name} {group}": float(of[name]) for group, of in readings.items() if name in of}
    return found | {"seed": float(seed)}


class JsonLines:
    """A file of one JSON object per line, each written at once.

    Args:
        keep_to_step: on resume, drops lines of later steps: a stopped run wrote them after its checkpoint.
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

    def read(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def close(self) -> None:
        self.file.close()


def read_validations(path: str | Path) -> list[dict]:
    """The validation records of a metrics.jsonl. Raises FileNotFoundError, or ValueError if there are none."""
    if not str(path):
        raise ValueError("--replay is empty; give the metrics.jsonl of a run")
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
