"""Weights for the image branch. What was asked for is what is loaded, or an error says why not."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from models.image_branch import build_network, check_architecture, classifier_modules

PACKAGED_ARCHITECTURE = "mobilenet_v2"
# Channel statistics of ImageNet in RGB: what networks expect whose weights say nothing else.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Arguments of torchvision's builders that depend on the weights, and are attributes of what was built.
_ARGUMENTS_OF_WEIGHTS = ("image_size", "transform_input")
_ALTERNATIVES = (
    "use 'packaged' (mobilenet_v2), a torchvision weights name such as IMAGENET1K_V1, "
    "the path of a state dict (.pt), or 'none' for a random start"
)


@dataclass(frozen=True)
class ImageWeights:
    """What an image network starts from, and what that implies: enough to build the same network without them, and
    to prepare images for it. Plain values, for checkpoints."""

    description: str
    architecture: str
    arguments: dict[str, Any]  # of torchvision's builder of that architecture
    mean: list[float]  # of red, green and blue, where black is 0 and white 1
    std: list[float]
    image_size: int | None  # pixels of an edge that the weights are made for; None: unknown, or no weights


def build_pretrained(
    architecture: str, weights: str, fetch_packaged: Callable[[], Path]
) -> tuple[nn.Module, ImageWeights]:
    """A complete torchvision network with what `weights` names.

    Args:
        weights: packaged | a torchvision weights name | the path of a state dict | none.
        fetch_packaged: gives the packaged file of mobilenet_v2.

    Raises ValueError or FileNotFoundError, naming the alternatives.
    """
    check_architecture(architecture)
    mean, std, image_size = list(IMAGENET_MEAN), list(IMAGENET_STD), None
    if weights == "none":
        network, description = build_network(architecture), "random start"
    elif weights == "packaged":
        if architecture != PACKAGED_ARCHITECTURE:
            raise ValueError(
                f"weights 'packaged' exist for {PACKAGED_ARCHITECTURE} only, not for {architecture}; {_ALTERNATIVES}"
            )
        network, image_size = build_network(architecture), 224
        description = f"ImageNet, packaged: {load_weights_file(network, fetch_packaged())}"
    elif Path(weights).suffix or "/" in weights or "\\" in weights:
        network = build_network(architecture)
        description = load_weights_file(network, Path(weights))
    else:
        network, entry = _build_with_torchvision_weights(architecture, weights)
        description, preprocessing = f"{entry} from torchvision", entry.transforms()
        mean, std, image_size = list(preprocessing.mean), list(preprocessing.std), preprocessing.crop_size[0]
    arguments = {name: getattr(network, name) for name in _ARGUMENTS_OF_WEIGHTS if hasattr(network, name)}
    return network, ImageWeights(description, architecture, arguments, mean, std, image_size)


def rebuild(architecture: str, weights: ImageWeights) -> nn.Module:
    """The network that `weights` were built into, randomly initialised, for tensors that come from a checkpoint.

    Of another architecture its plain network, which those tensors will not fit.
    """
    return build_network(architecture, arguments=weights.arguments if architecture == weights.architecture else {})


def _build_with_torchvision_weights(architecture: str, weights: str) -> tuple[nn.Module, WeightsEnum]:
    """torchvision fetches (unless its cache has them) and loads them, and chooses the arguments that they need.

    Raises ValueError for an unknown name or useless content, FileNotFoundError if they cannot be had.
    """
    known = torchvision.models.get_model_weights(architecture)
    if weights not in known.__members__:
        raise ValueError(
            f"weights '{weights}' is neither a file nor among torchvision's for {architecture} "
            f"({', '.join(known.__members__)}); {_ALTERNATIVES}"
        )
    entry = known[weights]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(entry.url).name
    try:
        network = build_network(architecture, weights=entry)
    except Exception as error:  # of the network, of the disk, or any that torch raises for a file that is damaged
        reason = " ".join(str(error).split())[:200]
        if cached.exists():
            raise ValueError(
                f"weights '{weights}' of {architecture} cannot be read from {cached} ({reason}); "
                "delete that file, and it is downloaded again"
            ) from None
        raise FileNotFoundError(
            f"weights '{weights}' of {architecture} could not be downloaded ({reason}); {_ALTERNATIVES}"
        ) from None
    _check_finite(f"weights '{weights}' of {architecture}", network, network.state_dict())
    return network, entry


def load_weights_file(network: nn.Module, path: Path) -> str:
    """Loads a state dict whose tensors are `network`'s own (see match_tensors), in place.

    A file may hold another precision (float16, bfloat16, float64), but floating point numbers where the network has
    them, and whole numbers where it has those.

    Returns a description. Raises FileNotFoundError or ValueError, before anything changes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist; {_ALTERNATIVES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        reason = str(error).splitlines()[0]
        raise ValueError(f"weights file {path} cannot be read as a state dict ({reason}); {_ALTERNATIVES}") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ValueError(f"weights file {path} holds no state dict (names -> tensors); {_ALTERNATIVES}")
    for name, tensor in state.items():
        if kind := _special_kind(tensor):
            raise ValueError(f"weights file {path}: {name} is {kind}; save plain dense tensors, or {_ALTERNATIVES}")

    own = network.state_dict()
    try:
        source_of = match_tensors(shapes_of(own), classifier_modules(network), shapes_of(state))
    except ValueError as error:
        raise ValueError(f"weights file {path} is not of this architecture: {error}; {_ALTERNATIVES}") from None
    for name, source in source_of.items():
        found, wanted = state[source].dtype, own[name].dtype
        if _kind_of_number(found) != _kind_of_number(wanted):
            raise ValueError(
                f"weights file {path}: {source} holds {_kind_of_number(found)} ({_short(found)}), the network needs "
                f"{_kind_of_number(wanted)} ({_short(wanted)}); {_ALTERNATIVES}"
            )
    # What is finite in the file need not be so in the network's type.
    loaded = {name: state[source].detach().to(own[name].dtype) for name, source in source_of.items()}
    _check_finite(f"weights file {path}", network, loaded)
    for name, tensor in loaded.items():
        own[name].copy_(tensor)
    return f"{path.name} ({len(source_of)} tensors)"


def _special_kind(tensor: torch.Tensor) -> str | None:
    """What a tensor is that cannot be copied into a network's as it stands; None for a plain one."""
    if tensor.is_meta:
        return "a meta tensor, which has no values"
    if tensor.is_quantized:
        return f"quantised ({_short(tensor.dtype)})"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"not dense (its layout is {'nested' if tensor.is_nested else _short(tensor.layout)})"
    return None


def _kind_of_number(dtype: torch.dtype) -> str:
    if dtype.is_floating_point or dtype.is_complex:
        return "floating point numbers" if dtype.is_floating_point else "complex numbers"
    return "truth values" if dtype == torch.bool else "whole numbers"


def _short(torch_name: torch.dtype | torch.layout) -> str:
    return str(torch_name).removeprefix("torch.")


def shapes_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def match_tensors(network: dict[str, torch.Size], classifier: list[str], file: dict[str, torch.Size]) -> dict[str, str]:
    """Which tensor of a file goes where: the network's name -> the file's.

    By name or, where the names differ (the same network written by someone else), by order. Every tensor before the
    classifier must be there in its exact shape, and the file may hold nothing else; by order the last parts of the
    names (weight, running_mean, ...) must agree too. The classifier is taken off anyway: it may differ or be missing.
    As for torch itself, a file may lack num_batches_tracked.

    Args:
        network, file: name -> shape, in the order of the state dict.
        classifier: the network's modules that are taken off, the classification layer last.

    Raises ValueError, naming the first tensor that does not fit.
    """
    try:
        return _match_by_name(network, classifier, file)
    except ValueError as by_name:
        try:
            return _match_by_order(network, classifier, file)
        except ValueError as by_order:
            raise (by_name if network.keys() & file.keys() else by_order) from None


def _match_by_name(
    network: dict[str, torch.Size], classifier: list[str], file: dict[str, torch.Size]
) -> dict[str, str]:
    needed = [name for name in network if not _is_below(name, classifier)]
    found = [name for name in needed if name in file]
    wrong = [name for name in found if file[name] != network[name]]
    missing = [name for name in needed if name not in file and not _is_counter(name)]
    further = [name for name in file if name not in network and not _is_below(name, classifier)]
    problems, kinds = [], []
    if wrong:
        problems.append(f"{wrong[0]} has shape {tuple(file[wrong[0]])}, the network's {tuple(network[wrong[0]])}")
        kinds.append("of other widths")
    if missing:
        problems.append(f"{missing[0]} is missing")
        kinds.append("shallower, or cut short")
    if further:
        problems.append(f"the network has no {further[0]}")
        kinds.append("deeper")
    if problems:
        kind = kinds[0] if len(kinds) == 1 else "another"
        raise ValueError(f"{' and '.join(problems)}: the file's network seems to be {kind}")
    return {name: name for name in found}


def _match_by_order(
    network: dict[str, torch.Size], classifier: list[str], file: dict[str, torch.Size]
) -> dict[str, str]:
    *auxiliary, layer = classifier
    own, source = list(network), list(file)
    if not any(_is_counter(name) for name in source):
        own = [name for name in own if not _is_counter(name)]
    head = [name for name in own if _is_below(name, [layer])]  # the last tensors of all
    body = [name for name in own if not _is_below(name, [layer])]
    if len(source) < len(body):  # saved without its auxiliary classifiers
        body = [name for name in body if not _is_below(name, auxiliary)]
    count = f"it has {len(file)} tensors, the network {len(network)} ({len(body)} before its classifier)"
    for name, other in zip(body, source, strict=False):
        if name.rpartition(".")[2] != other.rpartition(".")[2]:
            raise ValueError(f"{count}, and by order {other} stands where {name} belongs")
        if network[name] != file[other] and not _is_below(name, auxiliary):
            raise ValueError(
                f"{count}, and by order {other} of shape {tuple(file[other])} stands where {name} "
                f"of {tuple(network[name])} belongs"
            )
    if len(source) < len(body):
        raise ValueError(f"{count}: it ends before {body[len(source)]}, so its network seems to be shallower")
    # A classifier of another number of classes differs in its tensors' first dimension.
    rest = [(name.rpartition(".")[2], file[name][1:]) for name in source[len(body) :]]
    allowed = [(name.rpartition(".")[2], network[name][1:]) for name in head]
    if rest != allowed[: len(rest)]:
        raise ValueError(f"{count}: it goes on with {source[len(body)]}, so its network seems to be deeper")
    return {name: other for name, other in zip(body, source, strict=False) if not _is_below(name, auxiliary)}


def _is_below(name: str, modules: list[str]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _check_finite(what: str, network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Some of torchvision's files hold NaN where a part was not published (VGG16's IMAGENET1K_FEATURES)."""
    classifier = classifier_modules(network)
    for name, tensor in state.items():
        if not _is_below(name, classifier) and not torch.isfinite(tensor).all():
            raise ValueError(f"{what}: {name} is not finite as {_short(tensor.dtype)}; {_ALTERNATIVES}")
