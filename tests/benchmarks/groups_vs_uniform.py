"""When do param groups pay? One lr for everything against one lr per group, on the default data.

    python -m tests.benchmarks.groups_vs_uniform --folder runs/groups_vs_uniform --jobs 2

For SGD (momentum 0.9) and for AdamW, each side gets the same number of trials (TRIALS), picked by the lowest val/loss
of seed 0; then the winners are trained with five other seeds, and only those are reported. Everything else is
equal: epochs, batch size, weight decay, warm-up, a cosine schedule to 0, no reductions. A finished training is
not repeated: the command can be stopped and started again. Each job uses one CPU thread.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.messages import format_table

EPOCHS = 6
SEEDS = (1, 2, 3, 4, 5)
GROUPS = ("image_branch", "temporal_branch", "fusion_head")
# lr of image_branch, temporal_branch, fusion_head. Uniform: a grid over a factor of 30 or more. Per group: around the
# uniform range, the pretrained branch slower and the new LSTM faster by some factor.
TRIALS = {
    ("AdamW", "uniform"): [(lr,) * 3 for lr in (1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 6e-3)],
    ("AdamW", "per group"): [
        (3e-4, 3e-3, 1e-3),
        (5e-4, 3e-3, 1e-3),
        (5e-4, 6e-3, 1e-3),
        (1e-3, 3e-3, 1e-3),
        (1e-3, 6e-3, 1e-3),
        (1e-3, 6e-3, 3e-3),
    ],
    ("SGD", "uniform"): [(lr,) * 3 for lr in (0.003, 0.01, 0.02, 0.05, 0.1, 0.2)],
    ("SGD", "per group"): [
        (0.01, 0.1, 0.03),
        (0.02, 0.2, 0.05),
        (0.02, 0.5, 0.05),
        (0.05, 0.2, 0.05),
        (0.05, 0.5, 0.05),
        (0.05, 0.5, 0.1),
    ],
}


def overrides(optimizer: str, lrs: tuple[float, ...], seed: int) -> list[str]:
    values = dict(zip(GROUPS, lrs, strict=True)) | {"unimodal_heads": 0.01}  # these only watch
    lines = [f"optimizer.name={optimizer}", f"run.epochs={EPOCHS}", f"run.seed={seed}", "run.device=cpu"]
    lines += ["learning_rates.reductions=[]"]
    for group, lr in values.items():
        key = f"optimizer.groups.{group}"
        lines += [f"{key}.lr={lr}", f"{key}.weight_decay=0.0005", f"learning_rates.schedules.{group}.name=cosine"]
        lines += [f"{key}.betas=null", f"{key}.options.momentum=0.9"] if optimizer == "SGD" else []
        lines += [f"{key}.betas=[0.9,0.999]"] if optimizer == "AdamW" else []
    return lines


def train(folder: Path, optimizer: str, lrs: tuple[float, ...], seed: int) -> dict:
    """Validation losses and accuracies by epoch, and the test accuracy of the best epoch."""
    name = f"{optimizer}_{'_'.join(f'{lr:g}' for lr in lrs)}_seed{seed}"
    done = folder / f"{name}.json"
    if not done.exists():
        command = [sys.executable, "train.py", "--config", "configs/fusion.yaml", f"run.folder={folder}"]
        command += [f"run.name={name}", *overrides(optimizer, lrs, seed)]
        result = subprocess.run(command, capture_output=True, text=True, env=one_thread())
        test = re.search(r"test accuracy (\d\.\d+)", result.stdout)
        if test is None:
            if result.returncode != 1 or "was not finite" not in result.stderr:
                raise RuntimeError(f"{name} failed: {result.stderr.strip().splitlines()[-1:]}")
            # an lr that diverges is a result too
            record = {"loss": [float("inf")], "accuracy": [0.0], "test": 0.0}
        else:
            folder_of_run = re.search(r"the run lies in (.+)", result.stdout).group(1)
            lines = [json.loads(line) for line in (Path(folder_of_run) / "metrics.jsonl").read_text().splitlines()]
            val = [line for line in lines if line["kind"] == "val"]
            record = {key: [float(line[key]) for line in val] for key in ("loss", "accuracy")}
            record["test"] = float(test.group(1))
        done.write_text(json.dumps(record))
    return json.loads(done.read_text())


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def epochs_to(accuracies: list[float], target: float) -> int | None:
    return next((epoch for epoch, accuracy in enumerate(accuracies, start=1) if accuracy >= target), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/groups_vs_uniform"))
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        tuned = {
            cell: [(lrs, pool.submit(train, args.folder, cell[0], lrs, 0)) for lrs in trials]
            for cell, trials in TRIALS.items()
        }
        best = {}
        for cell, trials in tuned.items():
            losses = {lrs: min(job.result()["loss"]) for lrs, job in trials}
            best[cell] = min(losses, key=losses.get)
            print(cell, {lrs: round(loss, 4) for lrs, loss in losses.items()}, flush=True)
        final = {
            cell: [pool.submit(train, args.folder, cell[0], lrs, seed) for seed in SEEDS] for cell, lrs in best.items()
        }
        rows = [("optimizer", "lr", "image", "temporal", "head", "test accuracy", "deviation", "epochs to 0.95")]
        for (optimizer, kind), jobs in final.items():
            results = [job.result() for job in jobs]
            tests = [result["test"] for result in results]
            reached = [epochs_to(result["accuracy"], 0.95) for result in results]
            times = f"{statistics.mean(t for t in reached if t):.1f}" if any(reached) else "-"
            never = sum(t is None for t in reached)
            lrs = [f"{lr:g}" for lr in best[optimizer, kind]]
            scores = [f"{statistics.mean(tests):.4f}", f"{statistics.stdev(tests):.4f}"]
            rows.append((optimizer, kind, *lrs, *scores, times + (f" ({never} of 5 never)" if never else "")))
    print(format_table(rows, left=(0, 1)))


if __name__ == "__main__":
    main()
