"""The loss: what training minimises, and what validation reports of it."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import cross_entropy

from app.section import Section

# Stands for "no label" in cross_entropy: samples without that branch's input.
IGNORED = -100
BRANCHES = ("image_branch", "temporal_branch")  # in the order of `present`


class LossConfig(Section):
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: samples weigh training rows / (classes x training rows of their class), so that all "
        "classes weigh alike; in val/loss too",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each label that is spread over all classes; in val/loss too"
    )


@dataclass(frozen=True)
class Objective:
    """torch's cross_entropy with these settings, for the fusion and for each branch's own head.

    Args:
        class_weights: (C,) float32; None: all 1.
    """

    class_weights: torch.Tensor | None = None
    label_smoothing: float = 0.0

    def __call__(self, logits: torch.Tensor, label: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
        """Scalar, or (B,) for the reduction "none". logits: (B, C); label: (B,), IGNORED where there is none."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        settings = {"weight": weights, "label_smoothing": self.label_smoothing, "reduction": reduction}
        return cross_entropy(logits.float(), label, ignore_index=IGNORED, **settings)

    def of_mixed(
        self, logits: torch.Tensor, label: torch.Tensor, partner_label: torch.Tensor, share: torch.Tensor
    ) -> torch.Tensor:
        """Scalar, of samples that are mixed with partners: the mean over both labels of each sample, of which the own
        one counts by `share` (B,) and the partner's by the rest. Labels as in a call, IGNORED in both or in neither."""
        loss = weight = 0.0
        for part, target in ((share, label), (1 - share, partner_label)):
            loss = loss + (part * self(logits, target, reduction="none")).sum()
            weight = weight + (part * self._weight(target)).sum()
        return loss / weight

    def _weight(self, label: torch.Tensor) -> torch.Tensor:
        """(B,) of each sample's class; 0 where there is none."""
        weights = self.class_weights
        weight = torch.ones_like(label, dtype=torch.float32) if weights is None else weights[label.clamp(min=0)]
        return weight.masked_fill(label == IGNORED, 0.0)


def balanced_weights(class_counts: dict[str, int]) -> torch.Tensor:
    """(C,) float32: training rows / (classes x training rows of the class), as scikit-learn's compute_class_weight.

    Raises ValueError for a class without training rows.
    """
    if empty := [name for name, count in class_counts.items() if count == 0]:
        raise ValueError(
            f"loss.class_weights: found balanced, but no training row is of class {empty[0]!r}; add rows, take "
            "the class out of the data, or set none"
        )
    counts = torch.tensor(list(class_counts.values()), dtype=torch.float64)
    return (counts.sum() / (len(counts) * counts)).float()


def losses(output, batch: dict[str, torch.Tensor], objective: Objective) -> dict[str, torch.Tensor]:
    """{"loss": of the fusion, "<branch>/loss": of each branch's own head}, scalars in float32.

    Args:
        output: logits (B, C), unimodal_logits by branch, each (B, C); the loss of a branch is over the samples that
            have its input, and 0 where none has.
        batch: where samples are mixed with partners, it has `partner_label` (B,) and `share` (B,) of the own label.
    """
    names = _label_names(batch)
    values = {"loss": _loss(output.logits, [batch[name] for name in names], batch, objective)}
    for branch, logits in output.unimodal_logits.items():
        values[f"{branch}/loss"] = unimodal_loss(logits, batch, branch, objective)
    return values


def unimodal_loss(
    logits: torch.Tensor, batch: dict[str, torch.Tensor], branch: str, objective: Objective
) -> torch.Tensor:
    """Scalar: of a branch's own head, over the samples that have its input; 0 where none has. logits: (B, C)."""
    if not len(batch["present"][:, BRANCHES.index(branch)].nonzero()):
        return logits.new_zeros((), dtype=torch.float32)  # the mean of nothing is NaN
    labels = [unimodal_label(batch, branch, name) for name in _label_names(batch)]
    return _loss(logits, labels, batch, objective)


def _label_names(batch: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in ("label", "partner_label") if name in batch]


def _loss(
    logits: torch.Tensor, labels: list[torch.Tensor], batch: dict[str, torch.Tensor], objective: Objective
) -> torch.Tensor:
    return objective(logits, *labels) if len(labels) == 1 else objective.of_mixed(logits, *labels, batch["share"])


def total(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """What training minimises, a scalar. The model's gates decide which part of it reaches which branch."""
    return sum(values.values())


def unimodal_label(batch: dict[str, torch.Tensor], branch: str, name: str = "label") -> torch.Tensor:
    """(B,) labels for a branch's own head: IGNORED where the sample lacks that branch's input."""
    label, present = batch[name], batch["present"][:, BRANCHES.index(branch)]
    return label.masked_fill(~present.to(label.device, non_blocking=True), IGNORED)
