"""The image encoder: any classification network of torchvision, without its classification layer."""

import difflib

import torch
import torchvision
from torch import nn

# Number of classes that torchvision's networks are built for. It marks the layer to take off.
_IMAGENET_CLASSES = 1000


def build_network(architecture: str) -> nn.Module:
    """torchvision's network by its name, complete and randomly initialised.

    Raises ValueError, with the nearest names, if torchvision has no classification network of that name.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3, cutoff=0.4)
        raise ValueError(
            f"architecture '{architecture}' is not a classification network of torchvision "
            f"{torchvision.__version__}; {'nearest: ' + ', '.join(near) if near else 'known: ' + ', '.join(known)}"
        )
    # Asked for their weights' sake, two families want to initialise slowly, or warn that they will.
    extra = {"init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(architecture, weights=None, **extra)


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


def measure_embedding_dim(network: nn.Module, image_size: int) -> int:
    """D of the embedding (B, D) that `network` gives for images of (image_size, image_size) pixels.

    Raises ValueError if the network cannot read images of that size.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            embedding = network(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{type(network).__name__} cannot read images of {image_size} x {image_size} pixels "
            f"({str(error).splitlines()[0]}); choose another image_size or architecture"
        ) from None
    network.train(was_training)
    return embedding.flatten(1).shape[1]
