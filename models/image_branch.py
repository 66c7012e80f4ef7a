"""The image encoder: any classification network of torchvision, without its classification layer."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import WeightsEnum

from app.section import Section
from models.encoded import Dims, Encoded

# Number of classes that torchvision's networks are built for. It marks the layer to take off.
_IMAGENET_CLASSES = 1000
# The module of torchvision's networks that gives the last map, before it is pooled: (B, C, H, W), or (B, 1 + N, C) of
# ViT's encoder. Of Swin's two, `permute` is the last.
_LAST_MAP = (
    "permute",
    "features",
    "layer4",
    "trunk_output",
    "conv5",
    "layers",
    "inception5b",
    "Mixed_7c",
    "blocks",
    "encoder",
)


class ImageBranchConfig(Section):
    architecture: str = Field(description="any classification network of torchvision, by its name")
    weights: str = Field(
        description="packaged (mobilenet_v2), a name of torchvision's (IMAGENET1K_V1, ...; downloaded once), the path "
        "of a state dict, or none; an error if they cannot be had, or are another network's"
    )


def check_architecture(architecture: str) -> None:
    """Raises ValueError, with the nearest names, if torchvision has no classification network of that name."""
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        near = ", ".join(difflib.get_close_matches(architecture, known, n=3, cutoff=0.4))
        network = f"a classification network of torchvision {torchvision.__version__}"
        raise ValueError(f"architecture '{architecture}' is not {network}; nearest: {near or ', '.join(known)}")


def build_network(
    architecture: str, weights: WeightsEnum | None = None, arguments: dict[str, Any] | None = None
) -> nn.Module:
    """torchvision's network by its name, complete: with `weights`, which torchvision loads, or randomly initialised.

    Args:
        arguments: of torchvision's builder; those that `weights` implies are left to torchvision.

    Raises ValueError for an unknown architecture.
    """
    check_architecture(architecture)
    arguments = dict(arguments or {})
    if weights is None and architecture in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True  # their default, which they warn of unless it is given
    return torchvision.models.get_model(architecture, weights=weights, **arguments)


def classifier_modules(network: nn.Module) -> list[str]:
    """Names of the modules that `remove_classification_layer` takes off: auxiliary classifiers, and the layer that
    gives the 1,000 ImageNet logits."""
    auxiliary = [name for name in ("aux1", "aux2", "AuxLogits") if getattr(network, name, None) is not None]
    width = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}
    layers = [
        name
        for name, module in network.named_modules()
        if type(module) in width and getattr(module, width[type(module)]) == _IMAGENET_CLASSES
    ]
    return [*auxiliary, layers[-1]]


def remove_classification_layer(network: nn.Module) -> nn.Module:
    """Puts an identity in place of the layer that gives the 1,000 ImageNet logits, in place.

    Auxiliary classifiers (GoogLeNet, Inception) are dropped as well.
    """
    *auxiliary, layer = classifier_modules(network)
    for name in auxiliary:
        setattr(network, name, None)
    if hasattr(network, "aux_logits"):
        network.aux_logits = False
    parent, _, attribute = layer.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return network


def encode_image(network: nn.Module, image: torch.Tensor, *, with_tokens: bool = False) -> Encoded:
    """(B, 3, H, W) -> Encoded, by a network without its classification layer.

    With tokens: the places of its last map (B, H' * W', C), or ViT's patches. None for a network that is not
    torchvision's.
    """
    module = _last_map_module(network) if with_tokens else None
    if module is None:
        with _running_statistics_for_single_values(network, image):
            return Encoded(network(image).flatten(1))
    caught = []
    # For this call only, so that copies of the network and its state know nothing of it.
    hook = module.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    with hook, _running_statistics_for_single_values(network, image):
        pooled = network(image).flatten(1)
    (last_map,) = caught
    if last_map.dim() == 3:  # ViT: the first is the class token, which is `pooled`
        return Encoded(pooled, last_map[:, 1:])
    return Encoded(pooled, last_map.flatten(2).transpose(1, 2))


@contextmanager
def _running_statistics_for_single_values(network: nn.Module, image: torch.Tensor) -> Iterator[None]:
    """In a batch of one, a BatchNorm in training uses its running statistics, and leaves them, where it gets one value
    per channel: that has no variance, and torch raises."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training] if len(image) == 1 else []
    hooks = [norm.register_forward_pre_hook(_train_on_several_values) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm in norms:
            norm.train()


def _train_on_several_values(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    norm.train(inputs[0].numel() > inputs[0].shape[1])  # (B, C, ...)


def _last_map_module(network: nn.Module) -> nn.Module | None:
    for name in _LAST_MAP:
        module = getattr(network, name, None)
        if isinstance(module, nn.Module):
            return module[-1] if isinstance(module, nn.ModuleList) else module
    return None


def measure_dims(network: nn.Module, image_size: int, architecture: str) -> Dims:
    """The widths of what `network` gives for images of (image_size, image_size) pixels.

    Raises ValueError, with the size that it is built for, if it cannot read images of that size.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            encoded = encode_image(network, torch.zeros(1, 3, image_size, image_size), with_tokens=True)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason, built_for = (str(error) or type(error).__name__).splitlines()[0], getattr(network, "image_size", 224)
        raise ValueError(
            f"{architecture} cannot read images of {image_size} x {image_size} pixels ({reason}); set "
            f"data.image_size={built_for}, which it is built for, or choose another architecture"
        ) from None
    network.train(was_training)
    return Dims(encoded.pooled.shape[1], None if encoded.tokens is None else encoded.tokens.shape[2])
