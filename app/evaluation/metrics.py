"""Metrics of a whole split, gathered batch by batch; torchmetrics does the counting."""

import math

import torch
from torch import nn

from app.messages import nearest
from app.training.objective import IGNORED, Objective, unimodal_label

# What is better of a metric: a lower value or a higher one. In the spelling of torch's ReduceLROnPlateau.
DIRECTIONS = {"loss": "min", "accuracy": "max", "macro_f1": "max", "balanced_accuracy": "max"}
RECALL = "recall/"  # before the name of a class, which may be any text


def is_metric(name: str) -> bool:
    """Whether `name` has the form of a metric: "loss", "image_branch/accuracy", "recall/<class>", ..."""
    return name.startswith(RECALL) or name.rpartition("/")[2] in DIRECTIONS


def direction(monitor: str) -> str:
    """Of `val/loss`, `val/image_branch/accuracy`, `val/recall/<class>`, ...: "min" or "max"."""
    name = monitor.removeprefix("val/")
    return "max" if name.startswith(RECALL) else DIRECTIONS[name.rpartition("/")[2]]


def best_of(monitor: str) -> str:
    """In words: "lowest val/loss", "highest val/accuracy"."""
    return f"{'lowest' if direction(monitor) == 'min' else 'highest'} {monitor}"


def is_beyond(value: float, above: float | None, below: float | None) -> bool:
    """Above the one or below the other, whichever is given; NaN is neither."""
    return value > above if above is not None else value < below


def beyond_in_words(monitor: str, above: float | None, below: float | None) -> str:
    return f"{monitor} > {above:g}" if above is not None else f"{monitor} < {below:g}"


def never_beyond(monitor: str, above: float | None, below: float | None) -> str | None:
    """The setting that no value of the metric can meet, as "key: why"; None without one."""
    if above is not None and direction(monitor) == "max" and above >= 1:
        return f"above: found {above:g}, but {monitor} is never above 1"
    if below is not None and below <= 0:
        return f"below: found {below:g}, but {monitor} is never below 0"
    return None


def check_monitor(key: str, monitor: str, known: list[str]) -> None:
    """Raises ValueError, which begins with the `key` of the config, if a validation does not report `monitor`."""
    if monitor not in known:
        others = [name for name in known if not name.startswith(f"val/{RECALL}")]
        shown = others if len(others) == len(known) else [*others, f"val/{RECALL}<class>"]
        raise ValueError(f"{key}: '{monitor}' is not a validation metric; {nearest(monitor, known, shown)}")


def metric_names(class_names: list[str], branches: list[str]) -> list[str]:
    """What ClassificationMetrics.compute reports: the monitors that a config may name, without "val/"."""
    own = [f"{branch}/{metric}" for branch in branches for metric in ("loss", "accuracy")]
    return [*DIRECTIONS, *own, *(f"{RECALL}{name}" for name in class_names)]


class ClassificationMetrics(nn.Module):
    """Of the fusion: loss (the objective), accuracy, macro F1, recall of each class (NaN for one without samples), and
    balanced accuracy (the mean of the others). Of each branch's own head: loss and accuracy."""

    def __init__(self, class_names: list[str], branches: list[str], objective: Objective):
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

        super().__init__()
        self.class_names, self.branches, self.objective = class_names, branches, objective
        num_classes = len(class_names)
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
        counts = self.confusion_matrix().double()
        recall = counts.diag() / counts.sum(1)
        values["balanced_accuracy"] = recall.nanmean().item()
        values |= {f"{RECALL}{name}": value for name, value in zip(self.class_names, recall.tolist(), strict=True)}
        return {name: values[name] for name in metric_names(self.class_names, self.branches)}

    def samples_of_branches(self) -> dict[str, int]:
        """Those that had that branch's input."""
        accuracies = {branch: self.metrics[f"{branch}/accuracy"] for branch in self.branches}
        return {branch: int((metric.tp + metric.fn).sum()) for branch, metric in accuracies.items()}

    def confusion_matrix(self) -> torch.Tensor:
        """(C, C) counts: rows are true classes, columns predictions."""
        return self.metrics["confusion"].compute().cpu()
