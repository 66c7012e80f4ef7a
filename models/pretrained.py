"""Weights for the image branch. What was asked for is what is loaded, or an error says why not."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
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
        description = f"ImageNet, packaged: {_load_packaged(network, fetch_packaged())}"
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
    """Loads a state dict whose tensors are `network`'s own, by name (see match_tensors), in place.

    The file may hold it under "state_dict" or "model", with DataParallel's "module." before each name, and in another
    precision (float16, bfloat16, float64).

    Returns a description. Raises FileNotFoundError or ValueError, before anything changes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist; {_ALTERNATIVES}")
    return _load(network, _read_state_dict(path), path)


def _load_packaged(network: nn.Module, path: Path) -> str:
    """That file has mobilenet_v2's tensors before the classifier in torchvision's order, some under older names."""
    names = [name for name in network.state_dict() if not _is_below(name, classifier_modules(network))]
    return _load(network, dict(zip(names, _read_state_dict(path).values(), strict=True)), path)


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"weights file {path} cannot be read as a state dict ({reason}); {_ALTERNATIVES}") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ValueError(f"weights file {path} holds no state dict (names -> tensors); {_ALTERNATIVES}")
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def _load(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> str:
    own = network.state_dict()
    try:
        names = match_tensors(shapes_of(own), classifier_modules(network), shapes_of(state))
    except ValueError as error:
        raise ValueError(f"weights file {path} is not of this architecture: {error}; {_ALTERNATIVES}") from None
    for name in names:
        found, wanted = state[name], own[name]
        plain = found.layout == torch.strided and not (found.is_quantized or found.is_meta)
        if not plain or found.is_floating_point() != wanted.is_floating_point():
            raise ValueError(
                f"weights file {path}: {name} is {'' if plain else 'not a plain dense tensor, '}{_short(found.dtype)}, "
                f"the network needs {_short(wanted.dtype)}; {_ALTERNATIVES}"
            )
    # What is finite in the file need not be so in the network's type.
    loaded = {name: state[name].detach().to(own[name].dtype) for name in names}
    _check_finite(f"weights file {path}", network, loaded)
    for name, tensor in loaded.items():
        own[name].copy_(tensor)
    return f"{path.name} ({len(names)} tensors)"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shapes_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def match_tensors(network: dict[str, torch.Size], classifier: list[str], file: dict[str, torch.Size]) -> list[str]:
    """The names to load: every tensor before the classifier must be in the file in its exact shape, and the file may
    hold nothing else. The classifier is taken off anyway: it may differ or be missing. As for torch itself, a file may
    lack num_batches_tracked.

    Args:
        network, file: name -> shape.
        classifier: the network's modules that are taken off.

    Raises ValueError, naming the first tensors that do not fit.
    """
    needed = [name for name in network if not _is_below(name, classifier)]
    found = [name for name in needed if name in file]
    problems = [
        f"{n} has shape {tuple(file[n])}, the network's {tuple(network[n])}" for n in found if file[n] != network[n]
    ]
    missing = [n for n in needed if n not in file and not n.endswith("num_batches_tracked")]
    further = [n for n in file if n not in network and not _is_below(n, classifier)]
    problems = (
        problems[:1] + [f"{n} is missing" for n in missing[:1]] + [f"the network has no {n}" for n in further[:1]]
    )
    if problems:
        raise ValueError(f"its tensors must have torchvision's names and shapes; {', and '.join(problems)}")
    return found


def _is_below(name: str, modules: list[str]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))


def _check_finite(what: str, network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Some of torchvision's files hold NaN where a part was not published (VGG16's IMAGENET1K_FEATURES)."""
    classifier = classifier_modules(network)
    for name, tensor in state.items():
        if not _is_below(name, classifier) and not torch.isfinite(tensor).all():
            raise ValueError(f"{what}: {name} is not finite as {_short(tensor.dtype)}; {_ALTERNATIVES}")
