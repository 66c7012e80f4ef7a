"""Everything that goes to TensorBoard. Each tag is spelled here, once. The only user of SummaryWriter."""

import threading
from pathlib import Path

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter

from app.evaluation.metrics import RECALL
from app.messages import writing
from app.training.group_stats import MOMENTS, STATISTICS

CLASSES_DRAWN = 20  # with more of them no recall is drawn
HYPERPARAMETERS = ("lr", "effective_lr", "weight_decay", "beta1", "beta2")


class TensorBoard:
    """Tags are `statistic/group`, so TensorBoard stacks the groups of a statistic in one section.

    The files are written by a thread: what it cannot write is an OSError of the next call, of `close` at the latest.
    """

    def __init__(self, folder: Path, group_names: list[str], branches: list[str], resume_after: int | None = None):
        """resume_after: hides what a stopped run wrote after this step."""
        self.folder = folder
        threading.excepthook = _report_thread_error
        purge_step = None if resume_after is None else resume_after + 1
        with writing(folder):
            self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        charts = {
            statistic: ["Multiline", [f"{statistic}/{name}" for name in group_names]]
            for statistic in ("lr", *STATISTICS, *MOMENTS, "reduction", "balance", *HYPERPARAMETERS[1:])
        }
        validation = {
            metric: ["Multiline", [f"val/{metric}", *(f"val/{branch}/{metric}" for branch in branches)]]
            for metric in ("loss", "accuracy")
        }
        with writing(folder):
            self.writer.add_custom_scalars({"groups": charts, "fusion against each branch alone": validation})

    def config(self, text: str) -> None:
        with writing(self.folder):
            self.writer.add_text("config", f"```yaml\n{text}\n```")

    def train(self, step: int, values: dict[str, float]) -> None:
        with writing(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(f"train/{name}", value, step)

    def groups(self, step: int, values: dict[str, dict[str, float]]) -> None:
        """values: {group: {statistic or hyper-parameter: value}}"""
        with writing(self.folder):
            scalars = [
                Summary.Value(tag=f"{name}/{group}", simple_value=value)
                for group, readings in values.items()
                for name, value in readings.items()
            ]
            # One event for all, as add_scalar writes one for each: a third of the time.
            self.writer.file_writer.add_summary(Summary(value=scalars), step)

    def between_groups(self, step: int, first: str, second: str, ratio: float) -> None:
        with writing(self.folder):
            self.writer.add_scalar(f"update_ratio_between/{first}_over_{second}", ratio, step)

    def validation(self, step: int, metrics: dict[str, float], curves: dict[str, dict[str, float]]) -> None:
        """curves: {statistic: {group: value}}, the state of the learning rates' rules."""
        with writing(self.folder):
            many_classes = sum(name.startswith(RECALL) for name in metrics) > CLASSES_DRAWN
            for name, value in metrics.items():
                if not (many_classes and name.startswith(RECALL)):
                    self.writer.add_scalar(f"val/{name}", value, step)
            for statistic, values in curves.items():
                for group, value in values.items():
                    self.writer.add_scalar(f"{statistic}/{group}", value, step)

    def lr_event(self, step: int, event: dict, text: str) -> None:
        """In words, and as a single point at the new lr: a marker in the time series."""
        with writing(self.folder):
            self.writer.add_text(f"lr_events/{event['group']}", text, step)
            self.writer.add_scalar(f"lr_event/{event['group']}", event["to"], step)

    def histograms(self, step: int, group: str, weights: torch.Tensor, gradients: torch.Tensor | None) -> None:
        """All of a group's values, flat."""
        with writing(self.folder):
            self.writer.add_histogram(f"weights/{group}", weights, step)
            if gradients is not None:
                self.writer.add_histogram(f"gradients/{group}", gradients, step)

    def predictions(self, step: int, grid: torch.Tensor) -> None:
        """grid: (3, H, W) in [0, 1]"""
        with writing(self.folder):
            self.writer.add_image("val/predictions", grid, step)

    def augmentation(self, picture: torch.Tensor) -> None:
        """picture: (3, H, W) in [0, 1]"""
        with writing(self.folder):
            self.writer.add_image("train/augmentation", picture, 0)

    def close(self) -> None:
        with writing(self.folder):
            self.writer.close()


def _report_thread_error(args: threading.ExceptHookArgs) -> None:
    """The thread that writes prints no traceback: its error is raised where the next call is made."""
    if not isinstance(args.thread, _AsyncWriterThread):
        threading.__excepthook__(args)
