"""Everything that goes to TensorBoard. Each tag is spelled here, once. The only user of SummaryWriter."""

from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from app.group_stats import STATISTICS

HYPERPARAMETERS = ("lr", "weight_decay", "beta1", "beta2")


class TensorBoard:
    """Tags are `statistic/group`, so TensorBoard stacks the groups of a statistic in one section."""

    def __init__(self, folder: Path, group_names: list[str], branches: list[str], resume_after: int | None = None):
        """resume_after: hides what a stopped run wrote behind this step."""
        purge_step = None if resume_after is None else resume_after + 1
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        charts = {
            statistic: ["Multiline", [f"{statistic}/{name}" for name in group_names]]
            for statistic in (*HYPERPARAMETERS, *STATISTICS, "reduction")
        }
        validation = {
            metric: ["Multiline", [f"val/{metric}", *(f"val/{branch}/{metric}" for branch in branches)]]
            for metric in ("loss", "accuracy")
        }
        self.writer.add_custom_scalars({"groups": charts, "fusion against each branch alone": validation})

    def config(self, text: str) -> None:
        self.writer.add_text("config", f"```yaml\n{text}\n```")

    def train(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def groups(self, step: int, values: dict[str, dict[str, float]]) -> None:
        """values: {group: {statistic or hyper-parameter: value}}"""
        for group, readings in values.items():
            for name, value in readings.items():
                self.writer.add_scalar(f"{name}/{group}", value, step)

    def validation(self, step: int, metrics: dict[str, float], reductions: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(f"val/{name}", value, step)
        for group, factor in reductions.items():
            self.writer.add_scalar(f"reduction/{group}", factor, step)

    def lr_event(self, step: int, group: str, text: str) -> None:
        self.writer.add_text(f"lr_events/{group}", text, step)

    def predictions(self, step: int, grid: torch.Tensor) -> None:
        """grid: (3, H, W) in [0, 1]"""
        self.writer.add_image("val/predictions", grid, step)

    def close(self) -> None:
        self.writer.close()
