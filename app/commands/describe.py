"""What a training prints, as text."""

import sys
from pathlib import Path

from app.commands.build import Run
from app.commands.open_run import SKIPPED
from app.evaluation.metrics import best_of
from app.messages import format_table
from app.param_groups.groups import group_table
from app.training.precision import slow_precision
from models.temporal_branch import lstm_in_fp32


def describe_run(run: Run) -> str:
    """Before the first step: where it comes from, what it runs on, the table of groups, and the plan of their lrs."""
    config, weights, lines = run.config, run.parts.image_weights, []
    if run.resumed_from:
        lines.append(f"resuming {run.resumed_from} after epoch {run.position.epoch}")
        lines += [f"  {note}" for note in run.notes]
    lines += [f"note: {note}" for note in run.parts.source.notes]
    if skipped := run.parts.source.skipped:
        lines.append(f"warning: rows are left out for {len(skipped)} findings (data.on_error=skip), see {SKIPPED}")
    if config.model.image_branch:
        lines.append(f"image branch: {config.model.image_branch.architecture}, weights: {weights.description}")
        if weights.image_size not in (None, config.data.image_size):
            size = f"{weights.image_size} x {weights.image_size}"
            lines.append(
                f"note: these weights are made for images of {size} pixels; data.image_size is {config.data.image_size}"
            )
    lines.append(f"device: {run.device}, precision: {config.run.precision}, optimizer: {config.optimizer.name}")
    if slow := slow_precision(run.parts.model, run.parts.first_batch, **run.placement, training=True):
        lines.append(f"warning: {slow}; run.precision=fp32 is the remedy")
    if note := lstm_in_fp32(run.parts.model.temporal_branch, **run.placement):
        lines.append(f"note: {note}")
    rows = run.learning_rates.plans()
    plans = format_table([tuple(rows[0]), *(tuple(row.values()) for row in rows)], left=(0, 1, 2, 3))
    if stop := run.learning_rates.stop_plan():
        plans += f"\ntraining stops when {stop}"
    return "\n".join([*lines, "", group_table(run.groups), "", plans, ""])


def describe_scores(metrics: dict[str, float], branches: list[str]) -> str:
    return f"val loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}  ({_alone(metrics, branches)})"


def describe_end(run: Run, test: dict[str, float], saved: dict, checkpoint: Path, seconds: float) -> str:
    """What came out, and what to do next. saved: the content of `checkpoint`, whose weights were tested."""
    python, position = _python_command(), saved["position"]
    is_best = saved["val"][position["monitor"].removeprefix("val/")] == position["best"]
    why = f" ({best_of(position['monitor'])})" if is_best else ""
    if limit := run.config.run.limit_batches:
        why += f"; run.limit_batches={limit}, in this test too"
    return (
        f"\ntest accuracy {test['accuracy']:.4f} ({_alone(test, run.parts.branches)}), "
        f"with the weights of epoch {position['epoch']}{why}\n"
        f"training took {seconds:.0f} s; the run lies in {run.folder}\n\n"
        f"evaluate:     {python} evaluate.py --checkpoint {checkpoint}\n"
        f"TensorBoard:  {python} -m tensorboard.main --logdir {run.folder.parent}"
    )


def _alone(metrics: dict[str, float], branches: list[str]) -> str:
    return ", ".join(f"{branch} alone {metrics[f'{branch}/accuracy']:.4f}" for branch in branches)


def _python_command() -> str:
    """How the user calls this Python from here: .venv/bin/python for the environment that make made."""
    python, here = Path(sys.executable), Path.cwd()
    return str(python.relative_to(here)) if python.is_relative_to(here) else "python"
