"""Metrics of a whole split, gathered batch by batch; torchmetrics does the counting."""

import math

import torch
from torch import nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from app.messages import nearest
from app.training.objective import IGNORED, Objective, unimodal_label

# What is better of a metric: a lower value or a higher one. In the spelling of torch's ReduceLROnPlateau.
DIRECTIONS = {"loss": "min", "accuracy": "max", "macro_f1": "max"}


def direction(monitor: str) -> str:
    """Of `val/loss`, `val/image_branch/accuracy`, ...: "min" or "max"."""
    return DIRECTIONS[monitor.rpartition("/")[2]]


def best_of(monitor: str) -> str:
    """In words: "lowest val/loss", "highest val/accuracy"."""
    return f"{'lowest' if direction(monitor) == 'min' else 'highest'} {monitor}"


def check_monitor(key: str, monitor: str, known: list[str]) -> None:
    """Raises ValueError, which begins with the `key` of the config, if a validation does not report `monitor`."""
    if monitor not in known:
        raise ValueError(f"{key}: '{monitor}' is not a validation metric; {nearest(monitor, known)}")


def metric_names(branches: list[str]) -> list[str]:
    """What ClassificationMetrics.compute reports: the monitors that a config may name, without "val/"."""
    return [*DIRECTIONS, *(f"{b}/{m}" for b in branches for m in ("loss", "accuracy"))]


class ClassificationMetrics(nn.Module):
    """loss (the objective), accuracy and macro F1 of the fusion; loss and accuracy of each branch's own head."""

    def __init__(self, num_classes: int, branches: list[str], objective: Objective):
        super().__init__()
        self.objective = objective
        self.num_classes = num_classes
        # A NaN must be seen, so it is replaced by NaN: the strategy "disable" of torchmetrics 1.9 drops the weights.
        self.metrics = nn.ModuleDict(
            {
                "loss": MeanMetric(nan_strategy=math.nan),
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "macro_f1": MulticlassF1Score(num_classes, average="macro"),
                "confusion": MulticlassConfusionMatrix(num_classes),
            }
        )
        for branch in branches:
            self.metrics[f"{branch}/loss"] = MeanMetric(nan_strategy=math.nan)
            self.metrics[f"{branch}/accuracy"] = MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORED)

    def update(self, output, batch: dict[str, torch.Tensor]) -> None:
        """Takes a batch and the model's output for it (logits (B, C), unimodal_logits by branch)."""
        label, logits = batch["label"], output.logits.float()
        self.metrics["loss"].update(*self.objective.of_samples(logits, label))
        for name in ("accuracy", "macro_f1", "confusion"):
            self.metrics[name].update(logits, label)
        for branch, branch_logits in output.unimodal_logits.items():
            own = unimodal_label(batch, branch)
            self.metrics[f"{branch}/loss"].update(*self.objective.of_samples(branch_logits, own))
            self.metrics[f"{branch}/accuracy"].update(branch_logits, own)

    def compute(self) -> dict[str, float]:
        """Loss and accuracy of a branch are NaN where no sample had its input."""
        values = {name: metric.compute().item() for name, metric in self.metrics.items() if name != "confusion"}
        for name, metric in self.metrics.items():
            if name.endswith("/loss") and metric.weight == 0:  # torchmetrics gives an accuracy of 0
                values[name.replace("/loss", "/accuracy")] = float("nan")
        return values

    def confusion_matrix(self) -> torch.Tensor:
        """(C, C) counts: rows are true classes, columns predictions."""
        return self.metrics["confusion"].compute().cpu()
