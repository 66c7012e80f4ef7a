"""The whole model: an image branch and a temporal branch, joined by a fusion head."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import nn

from app.messages import nearest
from app.randomness import seed_device
from app.section import Section
from models.encoded import Encoded
from models.fusion import FUSIONS, Fusion, FusionHeadConfig, spread
from models.image_branch import ImageBranchConfig, encode_image, measure_dims, remove_classification_layer
from models.pretrained import IMAGENET_MEAN, IMAGENET_STD, ImageWeights, build_pretrained, rebuild
from models.temporal_branch import TemporalBranch, TemporalBranchConfig

BRANCHES = ("image_branch", "temporal_branch")  # in the order of `present`


class ModelConfig(Section):
    image_branch: ImageBranchConfig | None = Field(description="null: a model that reads sequences only")
    temporal_branch: TemporalBranchConfig | None = Field(description="an LSTM; null: a model that reads images only")
    fusion_head: FusionHeadConfig = Field(description="what joins the branches -> logits")

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


class Gates(NamedTuple):
    """How much of two gradients reaches a branch: (1, 0) is joint training, (1, 1) multi-loss, (0, 1) decoupled."""

    fusion: float = 1.0  # of the gradient that comes from the fusion
    own: float = 0.0  # of the gradient that comes from the branch's own head


class FusionClassifier(nn.Module):
    """Late fusion of built parts (the shape of late fusion in TorchMultimodal).

    A branch and its own head run on the samples only that have their input, and not at all where none has: what stands
    in the tensors of the others is never read, and changes no norm's statistics and no other sample.

    Args:
        image_branch: (B, 3, H, W) -> (B, D), for encode_image, or None for a model that reads sequences only.
        temporal_branch: (B, T, F), (B,) -> Encoded, or None for a model that reads images only.
        fusion_head: a method of models/fusion.py.
        unimodal_heads: branch name -> (B, D) -> (B, num_classes).
        gates: by branch; those of a branch that is not named are Gates(). Fusion head and unimodal heads learn from
            all of their own gradient, whatever the gates are.
    """

    def __init__(
        self,
        image_branch: nn.Module | None,
        temporal_branch: nn.Module | None,
        fusion_head: Fusion,
        unimodal_heads: dict[str, nn.Module],
        *,
        gates: dict[str, Gates] | None = None,
    ):
        super().__init__()
        self.image_branch = image_branch
        self.temporal_branch = temporal_branch
        self.fusion_head = fusion_head
        self.unimodal_heads = nn.ModuleDict(unimodal_heads)
        self.gates = {name: (gates or {}).get(name, Gates()) for name in BRANCHES}

    def forward(
        self,
        image: torch.Tensor,  # (B, 3, H, W)
        sequence: torch.Tensor,  # (B, T, F)
        length: torch.Tensor,  # (B,)
        present: torch.Tensor,  # (B, 2) bool: whether there is an image, a sequence; on the CPU, or it is waited for
        *,
        before_part: Callable[[str], None] = lambda part: None,  # is told which part runs next: "image_branch", ...
    ) -> Output:
        inputs = {"image": image, "sequence": sequence, "length": length, "present": present}
        encoded, unimodal_logits, columns = {}, {}, []
        for column, name in enumerate(BRANCHES):
            if getattr(self, name) is None:
                continue
            rows, part = self._encode(name, inputs, before_part)
            if name in self.unimodal_heads:
                unimodal_logits[name] = self._own_logits(name, part, rows, len(present), before_part)
            part = _for_fusion(part, self.gates[name].fusion)
            encoded[name] = part if rows is None else self.fusion_head.fill_in(name, part, rows, len(present))
            columns.append(column)
        before_part("fusion_head")
        there = present[:, columns].to(image.device, non_blocking=True)
        logits = self.fusion_head(encoded, there, unimodal_logits)
        return Output(logits, {name: branch.pooled for name, branch in encoded.items()}, unimodal_logits)

    def encode(self, branch: str, inputs: dict[str, torch.Tensor]) -> Encoded:
        """What a branch makes of samples that all have its input; for `fuse`.

        inputs: those of `forward`, by name.
        """
        return self._encode(branch, inputs, lambda part: None)[1]

    def fuse(self, encoded: dict[str, Encoded | None], batch_size: int) -> torch.Tensor:
        """(B, num_classes): the logits of samples of which each has the same inputs.

        encoded: by branch, in the order of `dims`; None where the samples lack its input.
        """
        device = next(self.parameters()).device
        parts, unimodal_logits = {}, {}
        nobody, there = torch.zeros(0, dtype=torch.int64, device=device), []
        for name, part in encoded.items():
            there.append(part is not None)
            parts[name] = part if part is not None else self.fusion_head.fill_in(name, None, nobody, batch_size)
            if name in self.unimodal_heads:
                rows = None if part is not None else nobody
                unimodal_logits[name] = self._own_logits(name, part, rows, batch_size, lambda part: None)
        present = torch.tensor(there, device=device).expand(batch_size, -1)
        return self.fusion_head(parts, present, unimodal_logits)

    def _own_logits(
        self,
        name: str,
        encoded: Encoded | None,
        rows: torch.Tensor | None,
        batch_size: int,
        before_part: Callable[[str], None],
    ) -> torch.Tensor:
        before_part(f"unimodal_heads.{name}")
        head = self.unimodal_heads[name]
        if encoded is None:
            return head.weight.new_zeros(batch_size, head.out_features)
        own = head(gate(encoded.pooled, self.gates[name].own))
        return own if rows is None else spread(own, rows, batch_size)

    def _encode(
        self, name: str, inputs: dict[str, torch.Tensor], before_part: Callable[[str], None]
    ) -> tuple[torch.Tensor | None, Encoded | None]:
        """The places of the samples that have this branch's input (None: all have it), and what the branch makes of
        them (None if there are none)."""
        before_part(name)
        rows = _rows_with_input(inputs["present"][:, BRANCHES.index(name)], inputs["image"].device)
        if rows is not None and len(rows) == 0:
            return rows, None
        read = {"image_branch": ("image",), "temporal_branch": ("sequence", "length")}[name]
        values = [inputs[key] if rows is None else inputs[key].index_select(0, rows) for key in read]
        branch, with_tokens = getattr(self, name), self.fusion_head.reads_tokens
        if name == "image_branch":
            encoded = encode_image(branch, *values, with_tokens=with_tokens)
        else:
            encoded = branch(*values, with_tokens=with_tokens)
        return rows, _without_padding(encoded)


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


def _for_fusion(encoded: Encoded | None, share: float) -> Encoded | None:
    if encoded is None:
        return None
    tokens = None if encoded.tokens is None else gate(encoded.tokens, share)
    return encoded._replace(pooled=gate(encoded.pooled, share), tokens=tokens)


def gate(x: torch.Tensor, share: float) -> torch.Tensor:
    """The value of `x`, with `share` of its gradient."""
    if share == 1:
        return x
    detached = x.detach()
    # At 0 the formula would let a NaN of the gradient through.
    return detached if share == 0 else detached + share * (x - detached)


def build_fusion_classifier(
    *,
    image_branch: dict | None,
    temporal_branch: dict | None,
    fusion_head: dict,
    gates: dict[str, Gates],
    seed: int,
    image_size: int,
    num_features: int,
    num_classes: int,
    fetch_packaged: Callable[[], Path] | None = None,
    image_weights: ImageWeights | None = None,
) -> tuple[FusionClassifier, ImageWeights]:
    """Builds all parts from the config's `model` section, given as plain values; a branch may be None.

    Args:
        gates: see FusionClassifier.
        seed: of the initial weights; each part draws from a stream of its own, so that adding one changes no other.
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

    def start(part: str) -> None:
        seed_device(torch.device("cpu"), "initial weights", part, seed)

    if image_branch is not None:
        start("image_branch")
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
        start("temporal_branch")
        temporal = TemporalBranch(num_features, **temporal_branch)
        dims["temporal_branch"] = temporal.dims
    start("fusion_head")
    head = FUSIONS[method](dims, num_classes, **settings)
    unimodal_heads = {}
    for name, branch in dims.items():
        start(f"unimodal_heads.{name}")
        unimodal_heads[name] = nn.Linear(branch.pooled, num_classes)
    model = FusionClassifier(network, temporal, head, unimodal_heads, gates=gates)
    if image_weights is None:
        image_weights = ImageWeights("no image branch", "", {}, list(IMAGENET_MEAN), list(IMAGENET_STD), None)
    return model, image_weights
