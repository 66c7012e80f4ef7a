"""What do the group statistics cost?

    python -m tests.benchmarks.statistics_cost [rounds]

Blocks of 10 training steps over the same batches, alternating in one process: no statistics, a reading in the
block (the default interval), a reading at every step, and no statistics again, whose ratio to the first shows how
far the machine can be trusted. Logging to TensorBoard and files is included. Medians of the rounds' ratios.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from types import SimpleNamespace

import torch
from app.training.engine import train_one_epoch

import train
from app.commands.root_config import load_config
from app.records.run_folder import RunLog
from app.training.group_stats import GroupStatistics

MODES = {"off": 10**9, "every 10 steps": 10, "every step": 1, "off again": 10**9}


class Block(list):
    """Batches, as a loader."""

    sampler = SimpleNamespace(epoch=0)


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as at_end:
        overrides = [f"run.folder={folder}", "run.device=cpu"]
        run = train.prepare(*load_config("configs/fusion.yaml", overrides), None)
        train.open_run_folder(run, at_end)
        group_statistics = GroupStatistics(run.optimizer, run.groups, run.gradients)
        run_log = RunLog(run.folder, [group.name for group in run.groups], list(run.model.unimodal_heads))
        block = Block(batch for batch, _ in zip(run.train_loader, range(10), strict=False))
        readings = []

        def log(step, values, groups):
            start = time.perf_counter()
            run_log.training({"step": step, "epoch": 1}, values, groups)
            readings.append(time.perf_counter() - start)

        def seconds(every: int) -> float:
            parts = [run.optimizer, run.learning_rates, run.freezing, run.gradients, group_statistics]
            arguments = {"epoch": 0, "step": 0, "seed": 0, "log_every": every, "log": log}
            start = time.perf_counter()
            with open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
                train_one_epoch(
                    run.model,
                    block,
                    *parts,
                    **arguments,
                    device=torch.device("cpu"),
                    precision=run.config.run.precision,
                )
            return time.perf_counter() - start

        seconds(1)  # warm-up
        times = {mode: [] for mode in MODES}
        for i in range(rounds):
            modes = list(MODES.items())
            for mode, every in modes[i % 4 :] + modes[: i % 4]:  # no mode always follows the same one
                times[mode].append(seconds(every))
        run_log.close()

    for mode, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, times["off"], strict=True))
        step = statistics.median(values) * 100
        print(f"{mode:15s} {step:7.1f} ms a step, {ratio:.4f} x off (median of {rounds} rounds)")
    print(f"of which writing to TensorBoard and files: {statistics.median(readings) * 1000:.1f} ms a reading")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
