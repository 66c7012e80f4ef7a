"""The whole model: an image branch and a temporal branch, joined by a fusion head."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import nn

from app.messages import nearest
from app.section import Section
from models.encoded import Encoded
from models.fusion import FUSIONS, FusionHeadConfig
from models.image_branch import ImageBranchConfig, encode_image, measure_dims, remove_classification_layer
from models.pretrained import IMAGENET_MEAN, IMAGENET_STD, ImageWeights, build_pretrained, rebuild
from models.temporal_branch import TemporalBranch, TemporalBranchConfig


class UnimodalHeadsConfig(Section):
    loss_weight: float = Field(
        ge=0, description="weight of their losses in what trains the branches; 0: only the heads learn from them"
    )


class ModelConfig(Section):
    image_branch: ImageBranchConfig | None = Field(description="null: a model that reads sequences only")
    temporal_branch: TemporalBranchConfig | None = Field(description="an LSTM; null: a model that reads images only")
    fusion_head: FusionHeadConfig = Field(description="joined embeddings -> hidden layer -> logits")
    unimodal_heads: UnimodalHeadsConfig = Field(description="a linear classifier on each branch's embedding")

    @model_validator(mode="after")
    def _has_a_branch(self) -> "ModelConfig":
        if self.image_branch is None and self.temporal_branch is None:
            raise ValueError("image_branch and temporal_branch are both null; a model needs one of them")
        return self


class Output(NamedTuple):
    """What the model gives for a batch; the dicts are keyed by branch name."""

    logits: torch.Tensor  # (B, num_classes)
    embeddings: dict[str, torch.Tensor]  # each (B, D)
    unimodal_logits: dict[str, torch.Tensor]  # each (B, num_classes): that branch on its own


class FusionClassifier(nn.Module):
    """Late fusion of built parts (the shape of late fusion in TorchMultimodal).

    Args:
        image_branch: (B, 3, H, W) -> (B, D), for encode_image, or None for a model that reads sequences only.
        temporal_branch: (B, T, F), (B,) -> Encoded, or None for a model that reads images only.
        fusion_head: a fusion method (see models/fusion.py).
        unimodal_heads: branch name -> (B, D) -> (B, num_classes).
        loss_weight: of the unimodal heads' losses in what trains the branches: the factor of the gradient that goes
            on from a head to its branch. With 0 the heads read detached embeddings; they themselves always learn.
    """

    def __init__(
        self,
        image_branch: nn.Module | None,
        temporal_branch: nn.Module | None,
        fusion_head: nn.Module,
        unimodal_heads: dict[str, nn.Module],
        *,
        loss_weight: float = 0.0,
    ):
        super().__init__()
        self.image_branch = image_branch
        self.temporal_branch = temporal_branch
        self.fusion_head = fusion_head
        self.unimodal_heads = nn.ModuleDict(unimodal_heads)
        self.loss_weight = loss_weight

    def forward(
        self,
        image: torch.Tensor,  # (B, 3, H, W)
        sequence: torch.Tensor,  # (B, T, F)
        length: torch.Tensor,  # (B,)
        present: torch.Tensor,  # (B, 2) bool: whether there is an image, a sequence
    ) -> Output:
        with_tokens = self.fusion_head.reads_tokens
        encoded = {}
        if self.image_branch is not None:
            of_image = encode_image(self.image_branch, image, with_tokens=with_tokens)
            encoded["image_branch"] = _without_absent(of_image, present[:, 0:1])
        if self.temporal_branch is not None:
            of_sequence = self.temporal_branch(sequence, length, with_tokens=with_tokens)
            encoded["temporal_branch"] = _without_absent(of_sequence, present[:, 1:2])
        embeddings = {name: branch.pooled for name, branch in encoded.items()}
        unimodal_logits = {
            name: head(_scale_gradient(embeddings[name], self.loss_weight))
            for name, head in self.unimodal_heads.items()
        }
        return Output(self.fusion_head(encoded, present), embeddings, unimodal_logits)


def _without_absent(encoded: Encoded, present: torch.Tensor) -> Encoded:
    """Zeros for samples that are not `present` (B, 1), and for tokens that are not real."""
    pooled = encoded.pooled.masked_fill(~present, 0.0)
    if encoded.tokens is None:
        return Encoded(pooled)
    mask = present.expand(encoded.tokens.shape[:2]) if encoded.mask is None else encoded.mask & present
    return Encoded(pooled, encoded.tokens.masked_fill(~mask[:, :, None], 0.0), mask)


def _scale_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The value of `x`, with `factor` times its gradient."""
    detached = x.detach()
    return detached if factor == 0 else detached + factor * (x - detached)


def build_fusion_classifier(
    *,
    image_branch: dict | None,
    temporal_branch: dict | None,
    fusion_head: dict,
    unimodal_heads: dict,
    image_size: int,
    num_features: int,
    num_classes: int,
    fetch_packaged: Callable[[], Path] | None = None,
    image_weights: ImageWeights | None = None,
) -> tuple[FusionClassifier, ImageWeights]:
    """Builds all parts from the config's `model` section, given as plain values; a branch may be None.

    Args:
        image_size: pixels of an edge.
        num_features: F of the sequences (B, T, F).
        fetch_packaged: gives the file of the packaged weights.
        image_weights: those of a checkpoint, for a model whose tensors come from there: nothing is loaded, and
            fetch_packaged not needed.

    Returns the model and the image branch's weights. Raises ValueError or FileNotFoundError for an unknown
    fusion method or architecture, an image_size it cannot read, or weights that cannot be had.
    """
    method, settings = fusion_head["method"], {name: v for name, v in fusion_head.items() if name != "method"}
    if method not in FUSIONS:
        raise ValueError(f"model.fusion_head.method: unknown method '{method}'; {nearest(method, list(FUSIONS))}")
    dims, network, temporal = {}, None, None
    if image_branch is not None:
        architecture = image_branch["architecture"]
        if image_weights is not None:
            network = rebuild(architecture, image_weights)
        else:
            network, image_weights = build_pretrained(architecture, image_branch["weights"], fetch_packaged)
        network = remove_classification_layer(network)
        # channels_last weights make convolutions run in that layout: 1.6x faster on a CPU, faster on a GPU too.
        network.to(memory_format=torch.channels_last)
        dims["image_branch"] = measure_dims(network, image_size, architecture)
    if temporal_branch is not None:
        temporal = TemporalBranch(num_features, **temporal_branch)
        dims["temporal_branch"] = temporal.dims
    model = FusionClassifier(
        network,
        temporal,
        FUSIONS[method](dims, num_classes, **settings),
        {name: nn.Linear(branch.pooled, num_classes) for name, branch in dims.items()},
        loss_weight=unimodal_heads["loss_weight"],
    )
    if image_weights is None:
        image_weights = ImageWeights("no image branch", "", {}, list(IMAGENET_MEAN), list(IMAGENET_STD), None)
    return model, image_weights
