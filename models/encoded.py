"""What a branch gives, and what a fusion method is given."""

from typing import NamedTuple

import torch


class Encoded(NamedTuple):
    """A batch as a branch has encoded it.

    Branches make tokens only where they are asked to, and some have none: then `tokens` and `mask` are None. A fusion
    method gets each sample that has no such input, and each token outside the mask, as zeros.
    """

    pooled: torch.Tensor  # (B, D): the embedding
    tokens: torch.Tensor | None = None  # (B, N, E): places of the image, or frames
    mask: torch.Tensor | None = None  # (B, N) bool: which of them are real; None from a branch: all


class Dims(NamedTuple):
    """The widths of a branch's Encoded."""

    pooled: int  # D
    tokens: int | None  # E; None for a branch without tokens
