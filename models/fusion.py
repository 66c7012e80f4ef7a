"""Fusion methods: from what the branches give to the logits. A new one is one class and one line in FUSIONS.

A method is a Fusion with

    reads_tokens                               whether the branches shall make tokens for it; False unless it says so
    has_parameters                             whether there is anything to train in it; True unless it says otherwise
    __init__(dims, num_classes, **settings)    dims: branch name -> Dims; settings: `model.fusion_head` without `method`
                                               and without what is null there
    forward(encoded, present, unimodal_logits) encoded: branch name -> Encoded of the whole batch, for every branch of
                                               the model, in the order of dims; present (B, branches) bool, in the same
                                               order: which samples have that branch's input; unimodal_logits: branch
                                               name -> (B, num_classes) of its own head, 0 without its input
                                               -> logits (B, num_classes)

In the comments below H is hidden_size.
"""

import math

import torch
from pydantic import Field
from torch import nn

from app.section import Section
from models.encoded import Dims, Encoded


class FusionHeadConfig(Section):
    method: str = Field(
        "concat",
        description="how the branches are joined: concat, sum, gated, attention, late (FUSIONS in models/fusion.py)",
    )
    hidden_size: int = Field(ge=1, description="values of the hidden layer; late has none")
    dropout: float = Field(ge=0, lt=1, description="share of values dropped after the hidden layer; late has none")


class Fusion(nn.Module):
    """What all methods with parameters have: one learned vector per branch, `absent`, in place of an embedding that
    there is none of.

    It is 0 at first, and stays so to the bit unless a training batch lacks that branch's input somewhere: only then
    does it get a gradient. A method without parameters has none, and zeros in its place.
    """

    reads_tokens = False
    has_parameters = True

    def __init__(self, dims: dict[str, Dims]):
        super().__init__()
        self.dims = dims
        stood_in = dims if self.has_parameters else {}
        self.absent = nn.ParameterDict({name: torch.zeros(branch.pooled) for name, branch in stood_in.items()})

    def fill_in(self, branch: str, encoded: Encoded | None, rows: torch.Tensor, batch_size: int) -> Encoded:
        """The Encoded of a batch that partly or wholly lacks a branch's input.

        Args:
            encoded: of the samples that have it; None if none has.
            rows: (samples,) int64, their places in the batch.
        """
        dims = self.dims[branch]
        if self.has_parameters:
            absent = self.absent[branch]
        else:
            absent = torch.zeros(dims.pooled, device=rows.device)
        if encoded is None:
            if not self.reads_tokens or dims.tokens is None:
                return Encoded(absent.expand(batch_size, -1))
            tokens = absent.new_zeros(batch_size, 1, dims.tokens)
            return Encoded(absent.expand(batch_size, -1), tokens, torch.zeros_like(tokens[:, :, 0], dtype=torch.bool))
        pooled = absent.to(encoded.pooled.dtype).expand(batch_size, -1).index_copy(0, rows, encoded.pooled)
        if encoded.tokens is None:
            return Encoded(pooled)
        return Encoded(pooled, spread(encoded.tokens, rows, batch_size), spread(encoded.mask, rows, batch_size))


class SideBySide(nn.Module):
    """Layers that work beside each other, each found by its name: one layer to `layer_decay`."""

    def __init__(self, layers: dict[str, nn.Module]):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class Concat(Fusion):
    """Concatenated embeddings, hidden layer, dropout, logits."""

    def __init__(self, dims: dict[str, Dims], num_classes: int, *, hidden_size: int, dropout: float = 0.0):
        super().__init__(dims)
        self.layers = hidden_layer(sum(branch.pooled for branch in dims.values()), hidden_size, num_classes, dropout)

    def forward(self, encoded: dict[str, Encoded], present: torch.Tensor, unimodal_logits: dict) -> torch.Tensor:
        return self.layers(concatenated(encoded))


class Sum(Fusion):
    """The sum over the branches of ReLU(W x + b), x an embedding; then as Concat: hidden layer, dropout, logits.

    Without the ReLU before the sum it would be Concat: W [x; y] is U x + V y.
    """

    def __init__(self, dims: dict[str, Dims], num_classes: int, *, hidden_size: int, dropout: float = 0.0):
        super().__init__(dims)
        self.projections = SideBySide({name: nn.Linear(branch.pooled, hidden_size) for name, branch in dims.items()})
        self.layers = hidden_layer(hidden_size, hidden_size, num_classes, dropout)

    def forward(self, encoded: dict[str, Encoded], present: torch.Tensor, unimodal_logits: dict) -> torch.Tensor:
        parts = [getattr(self.projections, name)(branch.pooled).relu() for name, branch in encoded.items()]
        return self.layers(sum(parts))


class Gated(Fusion):
    """Gated multimodal unit, GMU (Arevalo et al. 2017, arXiv 1702.01992), dropout, logits.

    Of two branches z * tanh(U x) + (1 - z) * tanh(V y), with a gate z = sigmoid(W [x; y]) for each of H values. That is
    softmax(W [x; y], 0) over the branches, which is how more of them are weighed; one alone has no gate.
    """

    def __init__(self, dims: dict[str, Dims], num_classes: int, *, hidden_size: int, dropout: float = 0.0):
        super().__init__(dims)
        width, others = sum(branch.pooled for branch in dims.values()), len(dims) - 1
        layers = {name: nn.Linear(branch.pooled, hidden_size) for name, branch in dims.items()}
        self.unit = SideBySide(layers | ({"gates": nn.Linear(width, others * hidden_size)} if others else {}))
        self.layers = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden_size, num_classes))

    def forward(self, encoded: dict[str, Encoded], present: torch.Tensor, unimodal_logits: dict) -> torch.Tensor:
        parts = [getattr(self.unit, name)(branch.pooled).tanh() for name, branch in encoded.items()]
        values = torch.stack(parts, dim=1)  # (B, branches, H)
        scores = torch.zeros_like(values[:, :1])
        if len(encoded) > 1:
            gates = self.unit.gates(concatenated(encoded)).unflatten(1, (len(encoded) - 1, -1))
            scores = torch.cat([gates, scores], dim=1)  # (B, branches, H)
        return self.layers((scores.softmax(1) * values).sum(1))


class Attention(Fusion):
    """Cross attention (Vaswani et al. 2017, arXiv 1706.03762) from each branch's embedding to the tokens of all
    branches, added to the embedding; concatenated, hidden layer, dropout, logits.

    All are projected to H values first. H / 4 values a head where 4 divides H. A zero token that is always there
    (add_zero_attn) keeps the softmax of a sample without tokens finite.
    """

    reads_tokens = True

    def __init__(self, dims: dict[str, Dims], num_classes: int, *, hidden_size: int, dropout: float = 0.0):
        super().__init__(dims)
        queries = {f"{name}_query": nn.Linear(branch.pooled, hidden_size) for name, branch in dims.items()}
        tokens = {f"{name}_tokens": nn.Linear(branch.tokens, hidden_size) for name, branch in dims.items()}
        self.projections = SideBySide(queries | tokens)
        heads = math.gcd(hidden_size, 4)
        self.attention = nn.MultiheadAttention(hidden_size, heads, add_zero_attn=True, batch_first=True)
        self.layers = hidden_layer(len(dims) * hidden_size, hidden_size, num_classes, dropout)

    def forward(self, encoded: dict[str, Encoded], present: torch.Tensor, unimodal_logits: dict) -> torch.Tensor:
        queries = [getattr(self.projections, f"{name}_query")(branch.pooled) for name, branch in encoded.items()]
        tokens = [getattr(self.projections, f"{name}_tokens")(branch.tokens) for name, branch in encoded.items()]
        queries, tokens = torch.stack(queries, dim=1), torch.cat(tokens, dim=1)  # (B, branches, H), (B, all N, H)
        outside = ~torch.cat([branch.mask for branch in encoded.values()], dim=1)  # (B, all N)
        # With weights it is plain matrix products and a softmax; the fused kernel's gradient may vary on a GPU.
        found, _ = self.attention(queries, tokens, tokens, key_padding_mask=outside, average_attn_weights=False)
        return self.layers((queries + found).flatten(1))


class Late(Fusion):
    """The mean, over the branches that a sample has, of the log-probabilities of their own heads: the log of a product
    of experts (Hinton 2002), to the power of 1 / branches and not normalised. 0 for a sample that has none.

    Nothing to train, and no gradient: each branch and head learns from the own head's loss alone.
    """

    has_parameters = False

    def __init__(self, dims: dict[str, Dims], num_classes: int, *, hidden_size: int = 0, dropout: float = 0.0):
        """hidden_size, dropout: not read, so that `method` alone changes the method."""
        super().__init__(dims)

    def forward(self, encoded: dict[str, Encoded], present: torch.Tensor, unimodal_logits: dict) -> torch.Tensor:
        own = torch.stack([unimodal_logits[name].detach() for name in encoded], dim=1)  # (B, branches, num_classes)
        counted = own.log_softmax(2).masked_fill(~present[:, :, None], 0.0)
        return counted.sum(1) / present.sum(1, keepdim=True).clamp(min=1)


def concatenated(encoded: dict[str, Encoded]) -> torch.Tensor:
    """The embeddings side by side: (B, sum of D)."""
    return torch.cat([branch.pooled for branch in encoded.values()], dim=1)


def hidden_layer(width: int, hidden_size: int, num_classes: int, dropout: float) -> nn.Sequential:
    """(B, width) -> logits (B, num_classes)"""
    return nn.Sequential(
        nn.Linear(width, hidden_size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_size, num_classes)
    )


def spread(values: torch.Tensor, rows: torch.Tensor, batch_size: int) -> torch.Tensor:
    """(samples, ...) -> (batch_size, ...): each at its place in the batch, `rows` (samples,); zeros elsewhere."""
    return values.new_zeros(batch_size, *values.shape[1:]).index_copy(0, rows, values)


FUSIONS: dict[str, type[Fusion]] = {
    "concat": Concat,
    "sum": Sum,
    "gated": Gated,
    "attention": Attention,
    "late": Late,
}
