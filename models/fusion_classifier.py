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
from models.fusion import FUSIONS, Fusion, FusionHeadConfig, spread
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
    fusion_head: FusionHeadConfig = Field(description="what joins the branches -> logits")
    unimodal_heads: UnimodalHeadsConfig = Field(description="a linear classifier on each branch's embedding")

    @model_validator(mode="after")
    def _has_a_branch(self) -> "ModelConfig":
        if self.image_branch is None and self.temporal_branch is None:
            raise ValueError("image_branch and temporal_branch are both null; a model needs one of them")
        return self


class Output(NamedTuple):
    """What the model gives for a batch; the dicts are keyed by branch name."""

    logits: torch.Tensor  # (B, num_classes)
    embeddings: dict[str, torch.Tensor]  # each (B, D): what the fusion reads
    unimodal_logits: dict[str, torch.Tensor]  # each (B, num_classes): that branch on its own; 0 without its input


class FusionClassifier(nn.Module):
    """Late fusion of built parts (the shape of late fusion in TorchMultimodal).

    A branch and its own head run on the samples only that have their input, and not at all where none has: what stands
    in the tensors of the others is never read, and changes no norm's statistics and no other sample.

    Args:
        image_branch: (B, 3, H, W) -> (B, D), for encode_image, or None for a model that reads sequences only.
        temporal_branch: (B, T, F), (B,) -> Encoded, or None for a model that reads images only.
        fusion_head: a method of models/fusion.py.
        unimodal_heads: branch name -> (B, D) -> (B, num_classes).
        loss_weight: of the unimodal heads' losses in what trains the branches: the factor of the gradient that goes
            on from a head to its branch. With 0 the heads read detached embeddings; they themselves always learn.
    """

    def __init__(
        self,
        image_branch: nn.Module | None,
        temporal_branch: nn.Module | None,
        fusion_head: Fusion,
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
        present: torch.Tensor,  # (B, 2) bool: whether there is an image, a sequence; on the CPU, or it is waited for
    ) -> Output:
        inputs = {"image_branch": (image,), "temporal_branch": (sequence, length)}  # in the order of `present`
        columns = {name: i for i, name in enumerate(inputs) if getattr(self, name) is not None}
        rows = {name: _rows_with_input(present[:, i], image.device) for name, i in columns.items()}
        parts = {name: self._encode(name, inputs[name], rows[name]) for name in columns}
        encoded = {
            name: part if rows[name] is None else self.fusion_head.fill_in(name, part, rows[name], len(present))
            for name, part in parts.items()
        }
        unimodal_logits = {}
        for name, head in self.unimodal_heads.items():
            if parts[name] is None:
                unimodal_logits[name] = torch.zeros_like(head(encoded[name].pooled))
                continue
            own = head(_scale_gradient(parts[name].pooled, self.loss_weight))
            unimodal_logits[name] = own if rows[name] is None else spread(own, rows[name], len(present))
        there = present[:, list(columns.values())].to(image.device, non_blocking=True)
        logits = self.fusion_head(encoded, there, unimodal_logits)
        embeddings = {name: branch.pooled for name, branch in encoded.items()}
        return Output(logits, embeddings, unimodal_logits)

    def _encode(self, name: str, inputs: tuple[torch.Tensor, ...], rows: torch.Tensor | None) -> Encoded | None:
        """Of the samples in `rows` (None: of all); None if there are none."""
        if rows is not None:
            if len(rows) == 0:
                return None
            inputs = tuple(tensor.index_select(0, rows) for tensor in inputs)
        branch, with_tokens = getattr(self, name), self.fusion_head.reads_tokens
        if name == "image_branch":
            encoded = encode_image(branch, *inputs, with_tokens=with_tokens)
        else:
            encoded = branch(*inputs, with_tokens=with_tokens)
        return _without_padding(encoded)


def _rows_with_input(present: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """present (B,) bool -> places of the samples that have this input, on `device`; None for all."""
    rows = present.nonzero().flatten()
    return None if len(rows) == len(present) else rows.to(device, non_blocking=True)


def _without_padding(encoded: Encoded) -> Encoded:
    """With a mask wherever there are tokens, and zeros outside it."""
    if encoded.tokens is None:
        return encoded
    mask = encoded.mask
    if mask is None:
        return encoded._replace(mask=torch.ones_like(encoded.tokens[:, :, 0], dtype=torch.bool))
    return encoded._replace(tokens=encoded.tokens.masked_fill(~mask[:, :, None], 0.0))


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
    method = fusion_head["method"]
    settings = {name: v for name, v in fusion_head.items() if name != "method" and v is not None}
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
        if FUSIONS[method].reads_tokens and dims["image_branch"].tokens is None:
            raise ValueError(
                f"model.image_branch.architecture: {architecture} gives no tokens, which model.fusion_head.method="
                f"{method} reads; choose another architecture or method"
            )
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
