"""Weights for the image branch. What was asked for is what is loaded, or an error says why not."""

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

PACKAGED_ARCHITECTURE = "mobilenet_v2"
_ALTERNATIVES = (
    "use 'packaged' (mobilenet_v2), a torchvision weights name such as IMAGENET1K_V1, "
    "the path of a state dict (.pt), or 'none' for a random start"
)


def load_weights(network: nn.Module, architecture: str, weights: str, fetch_packaged: Callable[[], Path]) -> str:
    """Loads what `weights` names into a complete torchvision network, in place.

    Args:
        weights: packaged | a torchvision weights name | the path of a state dict | none.
        fetch_packaged: gives the packaged file of mobilenet_v2.

    Returns a description of the weights. Raises ValueError or FileNotFoundError, naming the alternatives.
    """
    if weights == "none":
        return "random start"
    if weights == "packaged":
        if architecture != PACKAGED_ARCHITECTURE:
            raise ValueError(
                f"weights 'packaged' exist for {PACKAGED_ARCHITECTURE} only, not for {architecture}; {_ALTERNATIVES}"
            )
        return f"ImageNet, packaged: {load_weights_file(network, fetch_packaged())}"
    if Path(weights).suffix or "/" in weights or "\\" in weights:
        return load_weights_file(network, Path(weights))
    return load_torchvision_weights(network, architecture, weights)


def load_torchvision_weights(network: nn.Module, architecture: str, weights: str) -> str:
    """Downloads and loads torchvision's weights by their name (IMAGENET1K_V1, DEFAULT, ...).

    Returns a description. Raises ValueError for an unknown name, FileNotFoundError if they cannot be had.
    """
    known = torchvision.models.get_model_weights(architecture)
    if weights not in known.__members__:
        raise ValueError(
            f"weights '{weights}' is neither a file nor among torchvision's for {architecture} "
            f"({', '.join(known.__members__)}); {_ALTERNATIVES}"
        )
    try:
        state = known[weights].get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"weights '{weights}' of {architecture} could not be downloaded ({error}); {_ALTERNATIVES}"
        ) from None
    network.load_state_dict(state)
    return f"{known[weights]} from torchvision"


def load_weights_file(network: nn.Module, path: Path) -> str:
    """Loads a state dict whose tensors are `network`'s own, by name or, failing that, by order.

    Matching by order serves files whose nesting differs (the same network written by someone else). The
    classification layer (the last tensors) may be missing from the file; every other tensor must be there
    in its exact shape. Returns a description. Raises FileNotFoundError or ValueError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist; {_ALTERNATIVES}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        reason = str(error).splitlines()[0]
        raise ValueError(f"weights file {path} cannot be read as a state dict ({reason}); {_ALTERNATIVES}") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"weights file {path} holds no state dict (names -> tensors); {_ALTERNATIVES}")

    own = network.state_dict()
    needed = list(own)[: _num_tensors_before_classifier(network)]
    source = list(state) if not set(needed) <= set(state) else needed
    mismatch = _first_mismatch(own, needed, state, source)
    if mismatch:
        raise ValueError(f"weights file {path} is not of this architecture: {mismatch}; {_ALTERNATIVES}")
    for name, source_name in zip(needed, source, strict=False):
        own[name].copy_(state[source_name])
    return f"{path.name} ({len(needed)} tensors)"


def _num_tensors_before_classifier(network: nn.Module) -> int:
    """Tensors up to the last Linear or Conv2d, which is the classification layer."""
    names = list(network.state_dict())
    layer = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    return min(index for index, name in enumerate(names) if name.startswith(f"{layer}."))


def _first_mismatch(own: dict, needed: list[str], state: dict, source: list[str]) -> str:
    if not len(needed) <= len(source) <= len(own):
        return f"it has {len(source)} tensors, the network {len(own)} ({len(needed)} without its last layer)"
    for name, source_name in zip(needed, source, strict=False):
        if own[name].shape != state[source_name].shape:
            return f"{source_name} has shape {tuple(state[source_name].shape)}, {name} needs {tuple(own[name].shape)}"
    return ""
