"""When do param groups pay? One lr for everything against one lr per group, where each branch has a loss of its own.

    python -m tests.benchmarks.groups_vs_uniform --folder runs/groups_vs_uniform --jobs 2

Multi-loss on the default data. For SGD (momentum 0.9, weight decay 0.0005) and for AdamW (weight decay and betas of the
default run), each side gets five trials, picked by the lowest val/loss of seed 0; the winners are trained with five
other seeds, and only those are reported, on the test split. Everything else is equal: epochs, batch size, warm-up, a
cosine schedule to 0, no reductions. 40 trainings, at least half an hour on 2 cores; a finished one is not repeated, and
those that tests.benchmarks.balance has in the same folder are taken from there.
"""

from tests.benchmarks.balance import MULTI_LOSS, Trials, groups, submit_seeds, submit_trials, table_of
from tests.benchmarks.trainings import PART_GROUPS, arguments_of, pool

# lr of image_branch, temporal_branch, fusion_head, unimodal_heads.
LRS = {
    "SGD, one lr": [(lr,) * 4 for lr in (0.005, 0.01, 0.02, 0.05, 0.1)],
    "SGD, per group": [
        (0.01, 0.2, 0.02, 0.02),
        (0.02, 0.1, 0.02, 0.02),
        (0.02, 0.2, 0.02, 0.02),
        (0.02, 0.5, 0.02, 0.02),
        (0.02, 0.2, 0.05, 0.05),
    ],
    "AdamW, one lr": [(lr,) * 4 for lr in (3e-4, 1e-3, 2e-3, 3e-3, 6e-3)],
    "AdamW, per group": [
        (5e-4, 3e-3, 1e-3, 1e-2),
        (5e-4, 6e-3, 1e-3, 1e-2),
        (5e-4, 1.2e-2, 1e-3, 1e-2),
        (3e-4, 6e-3, 1e-3, 1e-2),
        (1e-3, 6e-3, 1e-3, 1e-2),
    ],
}


def trials_of(row: str) -> Trials:
    if row.startswith("AdamW"):
        return [(groups(*lrs), MULTI_LOSS) for lrs in LRS[row]]
    values = {"options": {"momentum": 0.9}, "weight_decay": 0.0005}
    overrides = (*MULTI_LOSS, "optimizer.name=SGD")
    return [({g: values | {"lr": lr} for g, lr in zip(PART_GROUPS, lrs, strict=True)}, overrides) for lrs in LRS[row]]


def main() -> None:
    args = arguments_of(__doc__)
    rows = {row: trials_of(row) for row in LRS}
    with pool(args.jobs) as submit:
        trials = submit_trials(submit, args.folder, rows)
        jobs = submit_seeds(submit, args.folder, rows, trials)
        records = {row: [job.result() for job in of_row] for row, of_row in jobs.items()}
    for row, of_row in trials.items():
        for lrs, job in zip(LRS[row], of_row, strict=True):
            test = {name: f"{value:.3f}" for name, value in job.result()["test"].items()}
            print(f"{row} {lrs}, seed 0: {test}")
    print(table_of("multi-loss", records))


if __name__ == "__main__":
    main()
