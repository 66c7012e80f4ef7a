"""Joins the embeddings of the branches."""

import torch
from torch import nn


class FusionHead(nn.Module):
    """Concatenation, hidden layer, dropout, logits: embeddings (B, D_i) -> (B, num_classes)."""

    def __init__(self, embedding_dims: list[int], num_classes: int, *, hidden_size: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(sum(embedding_dims), hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, num_classes),
        )

    def forward(self, embeddings: list[torch.Tensor]) -> torch.Tensor:
        return self.layers(torch.cat(embeddings, dim=1))
