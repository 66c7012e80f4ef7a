"""Mixup (Zhang et al. 2018): image, sequence and label as weighted means of a sample and a partner."""

import torch
from torch import Tensor


class Partners:
    """Finds a partner for each sample among those that have the same modalities; it may be the sample itself.

    Args:
        present: (N, M) bool, of all samples that may be partners: whether each has each modality.
    """

    def __init__(self, present: Tensor):
        _, self.group, counts = present.unique(dim=0, return_inverse=True, return_counts=True)
        self.order = self.group.argsort(stable=True)
        self.count, self.first = counts, counts.cumsum(0) - counts

    def __call__(self, uniform: Tensor, indices: Tensor) -> Tensor:
        """(B,) int64. uniform: (B,) in [0, 1); indices: (B,) of the samples."""
        group = self.group[indices]
        return self.order[self.first[group] + (uniform.double() * self.count[group]).long()]


def share(uniform: Tensor, alpha: float) -> Tensor:
    """(B,) float32: each sample's own share, by the inverse of the distribution function of Beta(alpha, alpha).

    uniform: (B,) in [0, 1), on the CPU.
    """
    from scipy.special import betaincinv  # here: runs without mixup need no scipy, which takes its time

    return torch.from_numpy(betaincinv(alpha, alpha, uniform.double().numpy())).float()


def mix(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """B samples of a batch as data/loaders.py describes it, in which 2B stand: these, then their partners in turn.

    `share` (B,) is each sample's own share. `image` and `sequence` become the weighted mean (after a sequence's end
    there are zeros), `length` the longer of the two. The others are the sample's own, and `partner_label` (B,) is new.
    """
    own, size = batch["share"], len(batch["share"])
    first = {name: tensor[:size] for name, tensor in batch.items()}
    second = {name: tensor[size:] for name, tensor in batch.items()}
    mixed = {"length": torch.maximum(first["length"], second["length"]), "partner_label": second["label"]}
    for name, shape in (("image", (-1, 1, 1, 1)), ("sequence", (-1, 1, 1))):
        part = own.view(shape)
        mixed[name] = part * first[name] + (1 - part) * second[name]
    return first | mixed
