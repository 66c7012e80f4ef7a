"""A pass over a split: the model's output for each batch, and one row for each sample."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader

from app.evaluation.metrics import ClassificationMetrics
from app.training.precision import autocast, to_device


@torch.no_grad()
def predict(
    model: nn.Module, loader: DataLoader, *, device: torch.device, precision: str
) -> Iterator[tuple[dict[str, torch.Tensor], tuple]]:
    """Yields each batch of `loader` with the output of the model in eval mode."""
    model.eval()
    for batch in loader:
        batch = to_device(batch, device)
        with autocast(device, precision):
            output = model(batch["image"], batch["sequence"], batch["length"], batch["present"])
        yield batch, output  # outside autocast, which would cast the caller's operations too


def validate(
    model: nn.Module,
    loader: DataLoader,
    metrics: ClassificationMetrics,
    *,
    device: torch.device,
    precision: str,
) -> dict[str, float]:
    """The metrics of the whole split."""
    metrics.to(device)
    for metric in metrics.metrics.values():
        metric.reset()
    for batch, output in predict(model, loader, device=device, precision=precision):
        metrics.update(output, batch)
    return metrics.compute()


def rows_of(batch: dict[str, torch.Tensor], output, class_names: list[str]) -> list[dict]:
    """One row per sample: truth, prediction, its probability, and what each branch alone would have predicted."""
    probability, prediction = output.logits.float().softmax(1).max(1)
    columns = {
        "index": batch["index"].tolist(),
        "label": [class_names[i] for i in batch["label"].tolist()],
        "prediction": [class_names[i] for i in prediction.tolist()],
        "probability": [f"{p:.6f}" for p in probability.tolist()],
    }
    for branch, logits in output.unimodal_logits.items():
        columns[branch] = [class_names[i] for i in logits.argmax(1).tolist()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
