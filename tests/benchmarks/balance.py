"""What keeps the image branch from starving the temporal branch, and what each cure costs: on the default data.

    python -m tests.benchmarks.balance --folder runs/balance --jobs 2

Each row gets three trials, picked by the lowest val/loss of seed 0; the winner is trained with five other seeds, and
only those are reported, on the test split. The fusion methods are not tuned: multi-loss, three seeds. About 100
trainings, at least an hour on 2 cores; a finished one is not repeated.
"""

import statistics
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from app.messages import format_table
from models.fusion import FUSIONS
from tests.benchmarks.trainings import Training, arguments_of, conditions, pool, test_of, train

SEEDS = (1, 2, 3, 4, 5)
FUSION_SEEDS = SEEDS[:3]
Trials = list[tuple[dict[str, dict], tuple[str, ...]]]  # groups and overrides of each


def groups(image: float = 5e-4, temporal: float = 6e-3, head: float = 1e-3, own: float = 1e-2) -> dict[str, dict]:
    """Those of the default run with other lrs."""
    return {
        "image_branch": {"lr": image, "weight_decay": 0.05, "betas": [0.9, 0.999]},
        "temporal_branch": {"lr": temporal, "weight_decay": 0.01, "betas": [0.9, 0.98]},
        "fusion_head": {"lr": head, "weight_decay": 0.01, "betas": [0.9, 0.999]},
        "unimodal_heads": {"lr": own, "weight_decay": 0.0, "betas": [0.9, 0.999]},
    }


def without(group: str, values: dict[str, dict]) -> dict[str, dict]:
    return {name: value for name, value in values.items() if name != group}


def gates(fusion: float, own: float) -> tuple[str, ...]:
    branches = ("image_branch", "temporal_branch")
    return tuple(f"balance.gradients.{branch}={{fusion: {fusion}, own: {own}}}" for branch in branches)


JOINT, MULTI_LOSS, DECOUPLED = gates(1, 0), gates(1, 1), gates(0, 1)


def temporal_lrs(overrides: tuple[str, ...]) -> Trials:
    return [(groups(temporal=lr), overrides) for lr in (3e-3, 6e-3, 1.2e-2)]


def one_lr(overrides: tuple[str, ...]) -> Trials:
    return [(groups(lr, lr, lr, lr), overrides) for lr in (1e-3, 3e-3, 6e-3)]


def frozen_image(above: float, at_most: int) -> dict[str, dict]:
    until = {"monitor": "val/temporal_branch/accuracy", "above": above, "at_most": at_most}
    values = groups()
    return values | {"image_branch": values["image_branch"] | {"freeze_until": until}}


def miles(threshold: float, factor: float) -> tuple[str, ...]:
    rule = f"{{rule: miles, threshold: {threshold}, release: {0.75 * threshold}, factor: {factor}}}"
    return (*MULTI_LOSS, f"balance.learning_rates={rule}")


def dropout(image: float, sequence: float) -> tuple[str, ...]:
    return (*MULTI_LOSS, f"balance.modality_dropout={{image_branch: {image}, temporal_branch: {sequence}}}")


ROWS: dict[str, Trials] = {
    "joint": temporal_lrs(JOINT),
    "multi-loss": temporal_lrs(MULTI_LOSS),
    "decoupled": temporal_lrs(DECOUPLED),
    "multi-loss, miles": [(groups(), miles(*values)) for values in ((0.2, 0.5), (0.1, 0.5), (0.1, 0.2))],
    "joint, staged start": [(frozen_image(*values), JOINT) for values in ((0.5, 1), (0.6, 2), (0.7, 3))],
    "multi-loss, modality dropout": [(groups(), dropout(*shares)) for shares in ((0.1, 0.1), (0.3, 0.1), (0.3, 0.3))],
    "joint, one lr": one_lr(JOINT),
    "multi-loss, one lr": one_lr(MULTI_LOSS),
}
# Of the row "late fusion of separate models".
APART: dict[str, Trials] = {
    "image apart": [
        (without("temporal_branch", groups(image=lr)), ("model.temporal_branch=null", *JOINT))
        for lr in (2e-4, 5e-4, 1e-3)
    ],
    "sequence apart": [
        (without("image_branch", groups(temporal=lr)), ("model.image_branch=null", *JOINT))
        for lr in (3e-3, 6e-3, 1.2e-2)
    ],
}


def submit_trials(submit: Callable[..., Future], folder: Path, rows: dict[str, Trials]) -> dict[str, list[Future]]:
    return {row: [submit(train, folder, Training(*trial)) for trial in trials] for row, trials in rows.items()}


def submit_seeds(
    submit: Callable[..., Future], folder: Path, rows: dict[str, Trials], trials: dict[str, list[Future]]
) -> dict[str, list[Future]]:
    """Of the best trial of each row, which is printed."""
    jobs = {}
    for row, of_row in trials.items():
        losses = [min(job.result()["loss"]) for job in of_row]
        best = losses.index(min(losses))
        print(f"{row}: trial {best} of val/loss {', '.join(f'{loss:.4f}' for loss in losses)}", flush=True)
        jobs[row] = [submit(train, folder, Training(*rows[row][best], seed)) for seed in SEEDS]
    return jobs


def submit_fusion(submit: Callable[..., Future], folder: Path, method: str) -> list[Future]:
    values = without("fusion_head", groups()) if method == "late" else groups()
    overrides = (*MULTI_LOSS, f"model.fusion_head.method={method}") if method != "concat" else MULTI_LOSS
    return [submit(train, folder, Training(values, overrides, seed)) for seed in FUSION_SEEDS]


def table_of(title: str, records: dict[str, list[dict]]) -> str:
    """Mean and deviation over the seeds of each row."""
    first, *others = conditions()
    columns = [first, "image_branch alone", "temporal_branch alone", *others]
    table = [(title, *columns, "CPU seconds")]
    for row, of_row in records.items():
        cells = []
        for column in columns:
            values = [record["test"][column] for record in of_row if column in record["test"]]
            cells.append(f"{statistics.mean(values):.3f} ({statistics.stdev(values):.3f})" if len(values) > 1 else "-")
        table.append((row, *cells, f"{statistics.median(record['cpu'] for record in of_row):.0f}"))
    return format_table(table, left=(0,))


def main() -> None:
    args = arguments_of(__doc__)
    with pool(args.jobs) as submit:
        everything = ROWS | APART
        trials = submit_trials(submit, args.folder, everything)
        jobs = submit_seeds(submit, args.folder, everything, trials)
        of_method = {method: submit_fusion(submit, args.folder, method) for method in FUSIONS}
        records = {row: [job.result() for job in of_row] for row, of_row in jobs.items()}
        pairs = [*zip(*(records.pop(row) for row in APART), strict=True)]
        late = [submit(test_of, *(member["checkpoint"] for member in pair)) for pair in pairs]
        records["late fusion of separate models"] = [
            {"test": job.result(), "cpu": sum(member["cpu"] for member in pair)}
            for job, pair in zip(late, pairs, strict=True)
        ]
        print(table_of("", records))
        print(table_of("multi-loss, fusion by", {m: [job.result() for job in of] for m, of in of_method.items()}))


if __name__ == "__main__":
    main()
