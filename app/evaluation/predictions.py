"""A pass over a split: the model's output for each batch, and one row for each sample."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from app.evaluation.metrics import ClassificationMetrics
from app.messages import name_beside
from app.training.objective import BRANCHES
from app.training.precision import autocast

INPUTS = {"image_branch": "image", "temporal_branch": "sequence"}  # what each branch reads, in words


@torch.no_grad()
def predict(
    model: nn.Module, loader: Iterable[dict[str, torch.Tensor]], *, device: torch.device, precision: str
) -> Iterator[tuple[dict[str, torch.Tensor], tuple]]:
    """Yields each batch of `loader` with the output of the model in eval mode."""
    model.eval()
    for batch in loader:
        with autocast(device, precision):
            output = _mean_over_windows(model, batch) if "windows" in batch else _run(model, batch)
        yield batch, output  # outside autocast, which would cast the caller's operations too


def _run(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple:
    return model(batch["image"], batch["sequence"], batch["length"], batch["present"])


def _mean_over_windows(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple:
    """The mean output over the windows of each sample, of which there are `windows` (B,): `sequence` (W, T, F) and
    `length` (W,) have those of one sample after those of another. As many windows at a time as there are samples."""
    counts, device = batch["windows"].cpu(), batch["sequence"].device
    sample_of = torch.repeat_interleave(torch.arange(len(counts)), counts)  # (W,)
    outputs = []
    for windows in torch.arange(len(sample_of)).split(len(counts)):
        samples = sample_of[windows]
        part = {name: batch[name][windows.to(batch[name].device)] for name in ("sequence", "length")}
        part |= {name: batch[name][samples.to(batch[name].device)] for name in ("image", "present")}
        outputs.append(_run(model, part))
    sample_of, counts = sample_of.to(device), counts.to(device)

    def mean(values: list[torch.Tensor]) -> torch.Tensor:
        of_windows = torch.cat(values).float()  # (W, D)
        sums = of_windows.new_zeros(len(counts), of_windows.shape[1]).index_add(0, sample_of, of_windows)
        return sums / counts[:, None]

    dicts = {field: getattr(outputs[0], field).keys() for field in ("embeddings", "unimodal_logits")}
    means = {field: {k: mean([getattr(o, field)[k] for o in outputs]) for k in keys} for field, keys in dicts.items()}
    return outputs[0]._replace(logits=mean([output.logits for output in outputs]), **means)


def validate(
    model: nn.Module,
    loader: Iterable[dict[str, torch.Tensor]],
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
    """One row per sample: truth ("" where none is known), prediction, its probability, which inputs it has (of those
    that the model reads), what each branch alone would have predicted ("" without its input), and the probability of
    each class, as p(class)."""
    probabilities = output.logits.float().softmax(1)
    probability, prediction = probabilities.max(1)
    there = {branch: batch["present"][:, BRANCHES.index(branch)].tolist() for branch in output.unimodal_logits}
    columns = {
        "index": batch["index"].tolist(),
        "label": [class_names[i] if i >= 0 else "" for i in batch["label"].tolist()],
        "prediction": [class_names[i] for i in prediction.tolist()],
        "probability": [f"{p:.6f}" for p in probability.tolist()],
        "present": [_in_words(dict(zip(there, row, strict=True))) for row in zip(*there.values(), strict=True)],
    }
    for branch, logits in output.unimodal_logits.items():
        own = [class_names[i] for i in logits.argmax(1).tolist()]
        columns[branch] = [name if has else "" for name, has in zip(own, there[branch], strict=True)]
    for name, of_class in zip(class_names, probabilities.T.tolist(), strict=True):
        columns[f"p({name})"] = [f"{p:.6f}" for p in of_class]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def row_names(branches: Iterable[str], class_names: Iterable[str]) -> list[str]:
    """The columns of rows_of."""
    return [
        *("index", "label", "prediction", "probability", "present"),
        *branches,
        *(f"p({name})" for name in class_names),
    ]


def labelled(batch: dict[str, torch.Tensor], output) -> tuple[tuple, dict[str, torch.Tensor]]:
    """Output and batch, as ClassificationMetrics reads them, of the samples whose label is known; of the others it is
    negative."""
    known = batch["label"] >= 0
    unimodal_logits = {branch: logits[known] for branch, logits in output.unimodal_logits.items()}
    part = {"label": batch["label"][known], "present": batch["present"][known.to(batch["present"].device)]}
    return output._replace(logits=output.logits[known], unimodal_logits=unimodal_logits), part


def with_cells(rows: list[dict], cells: list[dict[str, str]]) -> list[dict]:
    """Each row, all of the same columns, with the cells that it was made of; where both have a column of one name, that
    of the cells becomes "input <name>"."""
    taken = rows[0].keys() if rows else ()
    return [
        row | {name_beside(taken, name, of_row): cell for name, cell in of_row.items()}
        for row, of_row in zip(rows, cells, strict=True)
    ]


def _in_words(there: dict[str, bool]) -> str:
    found = [INPUTS[branch] for branch, has in there.items() if has]
    if not found:
        return "nothing"
    return " and ".join(found) + ("" if all(there.values()) else " only")
