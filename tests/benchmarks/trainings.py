"""Trainings that benchmarks compare: each is done once, its figures kept in a JSON file that is named by its settings.
So a benchmark can be stopped and started again, and shares a folder with others. Each runs on one CPU thread."""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EPOCHS = 6
PART_GROUPS = ("image_branch", "temporal_branch", "fusion_head", "unimodal_heads")
# Noise of the default data that the tests double.
NOISE = {"image_noise": 0.25, "sequence_noise": 1.5}


@dataclass(frozen=True)
class Training:
    """The default run with other values: cosine schedules to 0, no reductions, no modality dropout.

    Args:
        groups: the section `optimizer.groups`.
    """

    groups: dict[str, dict]
    overrides: tuple[str, ...] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(self.arguments()).encode()).hexdigest()[:16]

    def arguments(self) -> list[str]:
        schedules = dict.fromkeys(self.groups, {"name": "cosine"})
        settings = {"run.epochs": EPOCHS, "run.seed": self.seed, "run.device": "cpu", "learning_rates.reductions": []}
        settings |= {"optimizer.groups": self.groups, "learning_rates.schedules": schedules}
        settings |= {"balance.modality_dropout": {}}
        return [*(f"{key}={json.dumps(value)}" for key, value in settings.items()), *self.overrides]


def arguments_of(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the runs and their figures")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    return parser.parse_args()


@contextmanager
def pool(jobs: int) -> Iterator[Callable[..., Future]]:
    """Gives `submit`."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor.submit


def train(folder: Path, training: Training) -> dict:
    """{"arguments", "loss", "accuracy": of the fusion in each validation, "test": see test_of, "cpu": seconds,
    "checkpoint": best.pt (lowest val/loss)}. A training that diverges has the loss infinity."""
    name = training.name
    done = folder / f"{name}.json"
    if not done.exists():
        from train import main  # here, in a process of its own: it is slow to import

        folder.mkdir(parents=True, exist_ok=True)
        where = [f"run.folder={folder}", f"run.name={name}"]
        started = time.process_time()
        with open(folder / f"{name}.log", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            code = main(["--config", "configs/fusion.yaml", *where, *training.arguments()])
        seconds, text = time.process_time() - started, (folder / f"{name}.log").read_text()
        if code == 0:
            run_folder = Path(re.search(r"the run lies in (.+)", text).group(1))
            lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
            val = [line for line in lines if line["kind"] == "val"]
            record = {key: [float(line[key]) for line in val] for key in ("loss", "accuracy")}
            checkpoint = run_folder / "checkpoints" / "best.pt"
            record |= {"cpu": seconds, "checkpoint": str(checkpoint), "test": test_of(checkpoint)}
        elif "was not finite" in text or "are not finite" in text:
            record = {"loss": [float("inf")], "accuracy": [0.0], "cpu": seconds, "checkpoint": None, "test": {}}
        else:
            raise RuntimeError(f"{name} failed: {text.strip().splitlines()[-1]}")
        temporary = done.with_suffix(".tmp")
        temporary.write_text(json.dumps({"arguments": training.arguments(), **record}))
        temporary.replace(done)
    return json.loads(done.read_text())


def conditions() -> dict[str, dict]:
    """How the test split is changed: {column: {"lacks": place in `present`} or {"noise": key of NOISE}}"""
    return {
        "fused": {},
        "no image": {"lacks": 0},
        "no sequence": {"lacks": 1},
        "image noise x2": {"noise": "image_noise"},
        "sequence noise x2": {"noise": "sequence_noise"},
    }


def test_of(*checkpoints: Path | str) -> dict[str, float]:
    """Test accuracy under each of `conditions`, and of each branch alone, by column: of one checkpoint, or of the late
    fusion of two models that were trained apart."""
    from app.commands.trained import build_trained
    from app.evaluation.late_fusion import join_predictions
    from app.evaluation.scores import own_accuracy

    members = [build_trained(Path(checkpoint), "cpu") for checkpoint in checkpoints]
    branches = [branch for member in members for branch in member.branches]
    found = {}
    for column, change in conditions().items():
        if "lacks" in change and len(branches) == 1:
            continue
        for member in members:
            member.parts.splits["test"] = changed_test_split(member, **change)
        tables = [member.predict("test") for member in members]
        predictions = join_predictions(*tables, members[0].prior) if len(tables) == 2 else tables[0]
        found[column] = predictions.correct.double().mean().item()
        if column == "fused":
            found |= {f"{b} alone": own_accuracy(predictions, b)["value"] for b in branches}
    return found


def changed_test_split(trained, lacks: int | None = None, noise: str | None = None):
    from data.source import make_source

    data = trained.data_config.model_copy(update={noise: 2 * NOISE[noise]} if noise else {})
    weights = trained.parts.image_weights
    source = make_source(data, trained.parts.data_spec)
    split = source.splits(seed=0, image_mean=weights.mean, image_std=weights.std)["test"]
    if lacks is not None:
        split.present[:, lacks] = False
    return split
