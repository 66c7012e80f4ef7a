"""A pass over a split: what the model says of its samples, as one table."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from app.messages import name_beside
from app.training.objective import BRANCHES
from app.training.precision import autocast

INPUTS = {"image_branch": "image", "temporal_branch": "sequence"}  # what each branch reads, in words


@torch.no_grad()
def predict(
    model: nn.Module,
    loader: Iterable[dict[str, torch.Tensor]],
    class_names: list[str],
    *,
    device: torch.device,
    precision: str,
) -> "Predictions":
    """What the model says, in eval mode, of all samples of `loader`, in their order; of several windows the mean."""
    model.eval()
    nothing, branches = torch.zeros(0, len(class_names)), list(model.unimodal_heads)
    table = {name: [torch.zeros(0, dtype=torch.int64)] for name in ("index", "label")}
    table |= {"present": [torch.zeros(0, 2, dtype=torch.bool)]} | {name: [nothing] for name in ("logits", *branches)}
    for batch in loader:
        with autocast(device, precision):
            output = _mean_over_windows(model, batch) if "windows" in batch else _run(model, batch)
        for name in ("index", "label", "present"):
            table[name].append(batch[name].cpu())
        for name, logits in {"logits": output.logits, **output.unimodal_logits}.items():
            table[name].append(logits.float().cpu())
    columns = {name: torch.cat(parts) for name, parts in table.items()}
    unimodal_logits = {branch: columns.pop(branch) for branch in branches}
    return Predictions(class_names=class_names, unimodal_logits=unimodal_logits, **columns)


def _run(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple:
    return model(batch["image"], batch["sequence"], batch["length"], batch["present"])


def _mean_over_windows(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple:
    """The mean logits over the windows of each sample, of which there are `windows` (B,): `sequence` (W, T, F) and
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
        of_windows = torch.cat(values).float()  # (W, C)
        sums = of_windows.new_zeros(len(counts), of_windows.shape[1]).index_add(0, sample_of, of_windows)
        return sums / counts[:, None]

    own = {branch: mean([output.unimodal_logits[branch] for output in outputs]) for branch in model.unimodal_heads}
    return outputs[0]._replace(logits=mean([output.logits for output in outputs]), unimodal_logits=own)


@dataclass(frozen=True)
class Predictions:
    """What a model says of N samples, on the CPU."""

    class_names: list[str]
    index: torch.Tensor  # (N,) int64, the sample's place in its split
    label: torch.Tensor  # (N,) int64, negative where none is known
    present: torch.Tensor  # (N, 2) bool: whether there is an image, a sequence
    logits: torch.Tensor  # (N, C) float32
    unimodal_logits: dict[str, torch.Tensor]  # each branch's own, (N, C) float32; without meaning where it has no input

    def __len__(self) -> int:
        return len(self.label)

    @property
    def probabilities(self) -> torch.Tensor:
        """(N, C)"""
        return self.logits.softmax(1)

    @property
    def prediction(self) -> torch.Tensor:
        """(N,) int64"""
        return self.logits.argmax(1)

    @property
    def correct(self) -> torch.Tensor:
        """(N,) bool"""
        return self.prediction == self.label

    def has(self, branch: str) -> torch.Tensor:
        """(N,) bool, whether the sample has the input of that branch."""
        return self.present[:, BRANCHES.index(branch)]

    def take(self, rows: torch.Tensor) -> "Predictions":
        """Some of the samples. rows: (M,) places, or (N,) bool."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        parts |= {name: value[rows] for name, value in parts.items() if isinstance(value, torch.Tensor)}
        own = {branch: logits[rows] for branch, logits in self.unimodal_logits.items()}
        return Predictions(**parts | {"unimodal_logits": own})

    def scaled(self, temperature: float) -> "Predictions":
        """The same with the fusion's logits divided by it."""
        return self if temperature == 1 else replace(self, logits=self.logits / temperature)

    def labelled(self) -> "Predictions":
        """Those whose label is known."""
        return self.take(self.label >= 0)

    def what_is_present(self) -> list[str]:
        """Of each sample, in words: the inputs that it has, of those that the model reads."""
        there = {branch: self.has(branch).tolist() for branch in self.unimodal_logits}
        return [_in_words(dict(zip(there, row, strict=True))) for row in zip(*there.values(), strict=True)]

    def columns(self) -> dict[str, list]:
        """Of each sample: truth ("" where none is known), prediction, its probability, which inputs it has (of
        those that the model reads), what each branch alone would have predicted ("" without its input), and the
        probability of each class, as p(class)."""
        names, probabilities = self.class_names, self.probabilities
        probability, prediction = probabilities.max(1)
        columns = {
            "index": self.index.tolist(),
            "label": [names[i] if i >= 0 else "" for i in self.label.tolist()],
            "prediction": [names[i] for i in prediction.tolist()],
            "probability": [f"{p:.6f}" for p in probability.tolist()],
            "present": self.what_is_present(),
        }
        for branch, logits in self.unimodal_logits.items():
            own = zip(logits.argmax(1).tolist(), self.has(branch).tolist(), strict=True)
            columns[branch] = [names[i] if has else "" for i, has in own]
        for name, of_class in zip(names, probabilities.T.tolist(), strict=True):
            columns[f"p({name})"] = [f"{p:.6f}" for p in of_class]
        return columns

    def rows(self) -> list[dict]:
        """One per sample, by column."""
        columns = self.columns()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


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
