"""Fusion methods: from what the branches give to the logits. A new one is one class and one line in FUSIONS.

A method is an nn.Module with

    reads_tokens                               whether the branches shall make tokens for it
    __init__(dims, num_classes, **settings)    dims: branch name -> Dims; settings: `model.fusion_head` without `method`
    forward(encoded, present)                  encoded: branch name -> Encoded, of the branches that the model has;
                                               present (B, 2) bool: whether there is an image, a sequence
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


class Concat(nn.Module):
    """Concatenated embeddings, hidden layer, dropout, logits."""

    reads_tokens = False

    def __init__(self, dims: dict[str, Dims], num_classes: int, *, hidden_size: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(sum(branch.pooled for branch in dims.values()), hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, num_classes),
        )

    def forward(self, encoded: dict[str, Encoded], present: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([branch.pooled for branch in encoded.values()], dim=1))


FUSIONS: dict[str, type[nn.Module]] = {"concat": Concat}
