"""What does a batch cost?

    python -m tests.benchmarks.batches [rounds]
    python -m tests.benchmarks.batches files [rows]

First: on one core, for the default run's training samples, in batches of 32: drawing pairs and noise of an epoch,
gathering from them, and the whole sample, resized, normalised and with deltas; microseconds a sample, medians of the
rounds. Then, with all cores, which share of an epoch of the default training waits for its batches.

Second: a table of PNG of 64 x 64 pixels and .npy of 200 x 40 values, no two alike, trained on from a fresh cache in a
folder. Which share of each epoch waits for batches, and how much memory is the process's own (RssAnon, Linux only).
"""

import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from app.commands.build import build_run
from app.commands.root_config import load_config
from app.messages import format_table
from data.split import Batch, Split
from tests.benchmarks.check_manifest import in_kib


def seconds(part: Callable[[], object]) -> float:
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def sample_costs(train: Split, rounds: int) -> dict[str, list[float]]:
    """Of each part, by round: seconds for an epoch."""
    batches = torch.randperm(len(train)).split(32)
    times: dict[str, list[float]] = {"drawing": [], "gathering": [], "the whole sample": []}
    for epoch in range(rounds + 1):
        times["drawing"].append(seconds(lambda: train.gather(epoch, batches[0])))  # noqa: B023
        gathering = seconds(lambda: [train.gather(epoch, batch) for batch in batches])  # noqa: B023
        times["gathering"].append(gathering)
        whole = seconds(lambda: [train[epoch, batch] for batch in batches])  # noqa: B023
        times["the whole sample"].append(times["drawing"][-1] + whole)
    return {name: values[1:] for name, values in times.items()}  # the first is a warm-up


class Waits:
    """Iterates over batches, and adds up the time until each is there."""

    def __init__(self, batches: Iterable[Batch]):
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def share_of_waiting(run, epoch: int) -> float:
    """Of an epoch of training steps."""
    loader, position = run.loaders["train"], run.position
    loader.sampler.epoch = epoch
    run.train_step.start_epoch(epoch)
    waits, start = Waits(loader), time.perf_counter()
    for batch in waits:
        run.train_step(batch, position.step)
        position.step += 1
    return waits.seconds / (time.perf_counter() - start)


def default_samples(rounds: int) -> None:
    threads = torch.get_num_threads()
    run = build_run(*load_config("configs/fusion.yaml", ["run.device=cpu"]))
    train = run.parts.splits["train"]
    torch.set_num_threads(1)
    costs = sample_costs(train, rounds)
    lines = [("of a sample of the default run", "us")]
    lines += [(name, f"{statistics.median(values) / len(train) * 1e6:.1f}") for name, values in costs.items()]
    print(format_table(lines))
    torch.set_num_threads(threads)
    shares = [share_of_waiting(run, epoch) for epoch in range(rounds)]
    print(f"waiting for batches: {statistics.median(shares):.1%} of an epoch on {os.cpu_count()} cores")


def write_files(folder: Path, rows: int) -> Path:
    drawn = np.random.default_rng(0)
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("image", "sequence", "label", "split"))
        for row in range(rows):
            Image.fromarray(drawn.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{row}.png", compress_level=1)
            np.save(folder / f"{row}.npy", drawn.standard_normal((200, 40), np.float32))
            split = "train" if row >= 200 else ("val", "test")[row % 2]
            table.writerow((f"{row}.png", f"{row}.npy", f"class {row // 2 % 10}", split))
    return folder / "table.csv"


def from_files(rows: int, epochs: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = write_files(Path(folder), rows)
        overrides = [f"data.manifest={table}", f"data.cache_folder={folder}/cache", "run.device=cpu"]
        start = time.perf_counter()
        run = build_run(*load_config("configs/manifest.yaml", [*overrides, "data.sequence.deltas=false"]))
        print(f"check and cache: {time.perf_counter() - start:.1f} s; {run.parts.source.notes[-1]}")
        lines = [("epoch", "waits for batches", "RssAnon (MiB)")]
        for epoch in range(epochs):
            share = share_of_waiting(run, epoch)
            status = in_kib(Path("/proc/self/status"))
            memory = f"{status['RssAnon'] / 1024:.0f}" if "RssAnon" in status else ""
            lines.append((f"{epoch + 1}", f"{share:.1%}", memory))
        print(format_table(lines))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument != "files"]
    if "files" in sys.argv:
        from_files(*numbers or (16_000,))
    else:
        default_samples(*numbers or (3,))
