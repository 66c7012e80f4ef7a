"""What a branch gives, and what a fusion method is given."""

from typing import NamedTuple

import torch


class Encoded(NamedTuple):
    """A batch as a branch has encoded it.

    Branches make tokens only where they are asked to, and some have none: then `tokens` and `mask` are None.

    A branch is given the samples only that have its input, a fusion method the whole batch: there `pooled` of a sample
    without that input is the learned vector that stands in for it (see models/fusion.py), its mask is False
    throughout, and each token outside a mask is zeros. A batch wholly without it has N = 1.
    """

    pooled: torch.Tensor  # (B, D): the embedding
    tokens: torch.Tensor | None = None  # (B, N, E): places of the image, or frames
    mask: torch.Tensor | None = None  # (B, N) bool: which of them are real; None from a branch: all


class Dims(NamedTuple):
    """The widths of a branch's Encoded."""

    pooled: int  # D
    tokens: int | None  # E; None for a branch without tokens
