"""How much of an epoch is the training itself?

    python -m tests.benchmarks.loop_overhead [rounds]

Bare: forward, backward and step on batches that are already there. Loop: train_one_epoch with its loader,
learning rates, statistics, TensorBoard and files. Both run over the same epoch, alternating in one process;
bare runs twice a round, and the ratio of the two shows how far the machine can be trusted. The epoch's end
(validation, picture, checkpoint) is timed on its own.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from torch.nn.functional import cross_entropy

import train
from app.commands.build import build_run
from app.commands.open_run import open_run_folder, open_run_log
from app.commands.pictures import draw_validation
from app.commands.root_config import load_config
from app.records.checkpoint import save_checkpoint
from app.training.group_stats import Starvation


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as at_end:
        overrides = [f"run.folder={folder}", "run.device=cpu"]
        run = build_run(*load_config("configs/fusion.yaml", overrides))
        open_run_folder(run, at_end)
        model, optimizer = run.parts.model, run.train_step.optimizer
        run_log = open_run_log(run)
        batches = list(run.loaders["train"])
        starvation = Starvation(run.config.statistics)

        def bare():
            model.train()
            for batch in batches:
                output = model(batch["image"], batch["sequence"], batch["length"], batch["present"])
                losses = [cross_entropy(logits, batch["label"]) for logits in output.unimodal_logits.values()]
                optimizer.zero_grad(set_to_none=True)
                sum(losses, cross_entropy(output.logits, batch["label"])).backward()
                optimizer.step()

        def loop():
            run.position.epoch = run.position.step = 0
            with open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
                train.train_one_epoch(run, run_log, starvation)

        def end_of_epoch():
            val, predictions = run.validate(model)
            pictures = draw_validation(run, predictions)
            run_log.validation({"step": 0, "epoch": 1}, val, run.learning_rates.curves(), pictures)
            save_checkpoint(Path(folder) / "last.pt", run.checkpoint(val))

        bare()  # warm-up
        times = {"bare": [], "loop": [], "bare again": [], "end": []}
        for _ in range(rounds):
            for name, part in zip(times, (bare, loop, bare, end_of_epoch), strict=True):
                times[name].append(seconds(part))
        run_log.close()

    def median_ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    for name, values in times.items():
        print(f"{name:11s} {statistics.median(values):6.2f} s (median of {rounds})")
    print(f"share of the loop spent in forward + backward + step: {median_ratio('bare', 'loop'):.3f}")
    print(f"control, bare / bare again:                            {median_ratio('bare', 'bare again'):.3f}")
    print(f"end of epoch (validation, picture, checkpoint) / loop: {median_ratio('end', 'loop'):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
