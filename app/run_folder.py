"""The folder that a run leaves behind: its name, and its line-by-line records."""

import json
import math
import os
from pathlib import Path


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
