"""Fusion methods: from what the branches give to the logits. A new one is one class and one line in FUSIONS.

A method is a Fusion with

    reads_tokens                               whether the branches shall make tokens for it; False unless it says so
    __init__(dims, num_classes, **settings)    dims: branch name -> Dims; settings: `model.fusion_head` without `method`
    forward(encoded, present)                  encoded: branch name -> Encoded of the whole batch, for every branch of
                                               the model, in the order of dims; present (B, branches) bool, in the same
                                               order: which samples have that branch's input
                                               -> logits (B, num_classes)
"""

import torch
from pydantic import Field
from torch import nn

from app.section import Section
from models.encoded import Dims, Encoded


class FusionHeadConfig(Section):
    method: str = Field("concat", description="how the branches are joined: a name in FUSIONS of models/fusion.py")
    hidden_size: int = Field(ge=1, description="values of the hidden layer")
    dropout: float = Field(ge=0, lt=1, description="share of values dropped after the hidden layer")


class Fusion(nn.Module):
    """What all methods have: one learned vector per branch, `absent`, in place of an embedding that there is none of.

    It is 0 at first, and stays so to the bit unless a training batch lacks that branch's input somewhere: only then
    does it get a gradient.
    """

    reads_tokens = False

    def __init__(self, dims: dict[str, Dims]):
        super().__init__()
        self.dims = dims
        self.absent = nn.ParameterDict({name: torch.zeros(branch.pooled) for name, branch in dims.items()})

    def fill_in(self, branch: str, encoded: Encoded | None, rows: torch.Tensor, batch_size: int) -> Encoded:
        """The Encoded of a batch that partly or wholly lacks a branch's input.

        Args:
            encoded: of the samples that have it; None if none has.
            rows: (samples,) int64, their places in the batch.
        """
        absent = self.absent[branch]
        if encoded is None:
            width = self.dims[branch].tokens
            if not self.reads_tokens or width is None:
                return Encoded(absent.expand(batch_size, -1))
            tokens = absent.new_zeros(batch_size, 1, width)
            return Encoded(absent.expand(batch_size, -1), tokens, torch.zeros_like(tokens[:, :, 0], dtype=torch.bool))
        pooled = absent.to(encoded.pooled.dtype).expand(batch_size, -1).index_copy(0, rows, encoded.pooled)
        if encoded.tokens is None:
            return Encoded(pooled)
        return Encoded(pooled, spread(encoded.tokens, rows, batch_size), spread(encoded.mask, rows, batch_size))


class Concat(Fusion):
    """Concatenated embeddings, hidden layer, dropout, logits."""

    def __init__(self, dims: dict[str, Dims], num_classes: int, *, hidden_size: int, dropout: float = 0.0):
        super().__init__(dims)
        self.layers = nn.Sequential(
            nn.Linear(sum(branch.pooled for branch in dims.values()), hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, num_classes),
        )

    def forward(self, encoded: dict[str, Encoded], present: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([branch.pooled for branch in encoded.values()], dim=1))


def spread(values: torch.Tensor, rows: torch.Tensor, batch_size: int) -> torch.Tensor:
    """(samples, ...) -> (batch_size, ...): each at its place in the batch, `rows` (samples,); zeros elsewhere."""
    return values.new_zeros(batch_size, *values.shape[1:]).index_copy(0, rows, values)


FUSIONS: dict[str, type[Fusion]] = {"concat": Concat}
