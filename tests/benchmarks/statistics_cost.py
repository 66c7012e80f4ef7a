"""What do the group statistics cost?

    python -m tests.benchmarks.statistics_cost [rounds]

Blocks of 10 training steps over the same batches, alternating in one process: no statistics, a reading in the
block (the default interval), a reading at every step, and no statistics again, whose ratio to the first shows how
far the machine can be trusted. Logging to TensorBoard and files is included. Medians of the rounds' ratios.
"""

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack

from app.commands.build import build_run
from app.commands.open_run import open_run_folder
from app.commands.root_config import load_config
from app.records.run_log import RunLog

MODES = {"off": 10**9, "every 10 steps": 10, "every step": 1, "off again": 10**9}


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as at_end:
        overrides = [f"run.folder={folder}", "run.device=cpu"]
        run = build_run(*load_config("configs/fusion.yaml", overrides))
        open_run_folder(run, at_end)
        run_log = RunLog(run.folder, [group.name for group in run.groups], run.parts.branches)
        block = [batch for batch, _ in zip(run.loaders["train"], range(10), strict=False)]
        readings = []

        def seconds(every: int) -> float:
            start = time.perf_counter()
            run.train_step.read_every = every
            run.train_step.start_epoch(0)
            for step, batch in enumerate(block):
                if reading := run.train_step(batch, step):
                    written = time.perf_counter()
                    run_log.training({"step": step + 1, "epoch": 1}, reading)
                    readings.append(time.perf_counter() - written)
            run.train_step.end_epoch()
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
