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

import torch
from app.training.engine import train_one_epoch, validate
from torch.nn.functional import cross_entropy

import train
from app.commands.root_config import load_config
from app.evaluation.metrics import ClassificationMetrics
from app.records.checkpoint import save_checkpoint
from app.records.run_folder import RunLog
from app.training.group_stats import GroupStatistics


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as at_end:
        overrides = [f"run.folder={folder}", "run.device=cpu"]
        run = train.prepare(*load_config("configs/fusion.yaml", overrides), None)
        train.open_run_folder(run, at_end)
        cpu = {"device": torch.device("cpu"), "precision": "fp32"}
        names = [group.name for group in run.groups]
        run_log = RunLog(run.folder, names, list(run.model.unimodal_heads))
        batches = list(run.train_loader)
        group_statistics = GroupStatistics(run.optimizer, run.groups, run.gradients)
        metrics = ClassificationMetrics(10, list(run.model.unimodal_heads))

        def bare():
            run.model.train()
            for batch in batches:
                output = run.model(batch["image"], batch["sequence"], batch["length"], batch["present"])
                losses = [cross_entropy(logits, batch["label"]) for logits in output.unimodal_logits.values()]
                run.optimizer.zero_grad(set_to_none=True)
                sum(losses, cross_entropy(output.logits, batch["label"])).backward()
                run.optimizer.step()

        def log(step, values, groups):
            run_log.training({"step": step, "epoch": 1}, values, groups)

        def loop():
            every = run.config.statistics.every
            parts = [run.optimizer, run.learning_rates, run.freezing, run.gradients, group_statistics]
            arguments = {"epoch": 0, "step": 0, "seed": 0, "log_every": every, "log": log, **cpu}
            with open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
                train_one_epoch(run.model, run.train_loader, *parts, **arguments)

        def end_of_epoch():
            val = validate(run.model, run.val_loader, metrics, **cpu)
            picture = train.draw_predictions(run.model, run.val_loader, **cpu)
            run_log.validation({"step": 0, "epoch": 1}, val, run.learning_rates.curves(), picture)
            save_checkpoint(Path(folder) / "last.pt", train.content_of(run, val))

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
