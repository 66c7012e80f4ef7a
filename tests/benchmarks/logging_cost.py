"""Which share of a training is logging: metrics.jsonl, TensorBoard's scalars, texts and pictures?

    python -m tests.benchmarks.logging_cost [rounds]

A round is an epoch of the default run with its validation. Logging is timed inside it, call by call, so the share does
not depend on how fast the machine is just then; CPU time of all threads, as the event files are written by threads of
their own. What the statistics themselves cost: tests.benchmarks.statistics_cost.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack

import train
from app.commands.build import build_run
from app.commands.open_run import open_run_folder, open_run_log
from app.commands.pictures import draw_validation
from app.commands.root_config import load_config
from app.training.group_stats import Starvation


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as at_end:
        run = build_run(*load_config("configs/fusion.yaml", [f"run.folder={folder}", "run.device=cpu"]))
        open_run_folder(run, at_end)
        run_log, starvation = open_run_log(run), Starvation(run.config.statistics)
        spent = {"training readings": 0.0, "pictures": 0.0, "validation": 0.0}

        def timed(name, function):
            def call(*arguments):
                start = time.process_time()
                try:
                    return function(*arguments)
                finally:
                    spent[name] += time.process_time() - start

            return call

        run_log.training = timed("training readings", run_log.training)
        draw, write = timed("pictures", draw_validation), timed("validation", run_log.validation)
        shares = []
        for _ in range(rounds + 1):
            spent |= dict.fromkeys(spent, 0.0)
            run.position.epoch = run.position.step = 0
            start = time.process_time()
            with open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
                train.train_one_epoch(run, run_log, starvation)
            val, predictions = run.validate(run.parts.model)
            write({"step": 66, "epoch": 1}, val, run.learning_rates.curves(), draw(run, predictions))
            total = time.process_time() - start
            shares.append({name: seconds / total for name, seconds in spent.items()})
        run_log.close()
    for name in spent:
        print(f"{name:18s} {statistics.median(share[name] for share in shares[1:]):.2%}")  # the first is a warm-up
    print(f"{'all of logging':18s} {statistics.median(sum(share.values()) for share in shares[1:]):.2%} of an epoch")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
