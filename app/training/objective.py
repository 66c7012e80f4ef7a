"""The loss: what training minimises, and what validation reports of it."""

import torch
from torch.nn.functional import cross_entropy

# Stands for "no label" in cross_entropy and in torchmetrics: samples without that branch's input.
IGNORED = -100
BRANCHES = ("image_branch", "temporal_branch")  # in the order of `present`


def losses(output, batch: dict[str, torch.Tensor], *, reduction: str = "mean") -> dict[str, torch.Tensor]:
    """{"loss": of the fusion, "<branch>/loss": of each branch's own head}, in float32.

    Args:
        output: logits (B, C), unimodal_logits by branch, each (B, C).
        reduction: "mean" gives scalars, "none" a loss for each sample, of a branch for those that have its input.
    """
    values = {"loss": cross_entropy(output.logits.float(), batch["label"], reduction=reduction)}
    for branch, logits in output.unimodal_logits.items():
        label = unimodal_label(batch, branch)
        own = cross_entropy(logits.float(), label, ignore_index=IGNORED, reduction=reduction)
        values[f"{branch}/loss"] = own[label != IGNORED] if reduction == "none" else own
    return values


def total(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """What training minimises, a scalar. The model decides whether the own heads' part reaches the branches."""
    return sum(values.values())


def unimodal_label(batch: dict[str, torch.Tensor], branch: str) -> torch.Tensor:
    """(B,) labels for a branch's own head: IGNORED where the sample lacks that branch's input."""
    return batch["label"].masked_fill(~batch["present"][:, BRANCHES.index(branch)], IGNORED)
