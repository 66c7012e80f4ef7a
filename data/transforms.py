"""Images and sequences, as stored -> as the networks read them. Whole batches at once; no randomness here."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torchaudio.functional import compute_deltas


def gray_to_network_image(
    gray: torch.Tensor, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """(B, h, w) with black 0 and white 1 -> (B, 3, image_size, image_size), less `mean` and over `std` (3 each)."""
    resized = F.interpolate(gray[:, None], size=(image_size, image_size), mode="bilinear")
    return normalise_image(resized, mean, std)


def resize_image(image: torch.Tensor, image_size: int) -> torch.Tensor:
    """(C, h, w) -> (C, image_size, image_size), stretched where h is not w; a smaller image is averaged from all."""
    size = (image_size, image_size)
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


def normalise_image(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(B, 1 or 3, H, W) with black 0 and white 1 -> (B, 3, H, W), less `mean` and over `std` (3 each)."""
    return (image - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def network_image_to_rgb(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """What gray_to_network_image made of an image (B, 3, H, W) -> the same in [0, 1], to be shown."""
    mean, std = (torch.tensor(values, device=image.device).view(1, 3, 1, 1) for values in (mean, std))
    return (image * std + mean).clamp(0, 1)


def with_deltas(sequence: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """(B, T, F) -> (B, T, 3F): the features, their deltas and the deltas of those; zeros after each end.

    Each row equals what torchaudio.functional.compute_deltas gives for that sequence alone: the frames after
    the end are filled with the last one before each pass, which is that function's own treatment of an edge.
    """
    deltas = _deltas_of_rows(sequence, length)
    features = torch.cat([sequence, deltas, _deltas_of_rows(deltas, length)], dim=2)
    after_end = torch.arange(sequence.shape[1]) >= length[:, None]  # (B, T)
    return features.masked_fill(after_end[:, :, None], 0.0)


def _deltas_of_rows(sequence: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    frame = torch.minimum(torch.arange(sequence.shape[1]), length[:, None] - 1)  # (B, T)
    held = sequence.gather(1, frame[:, :, None].expand_as(sequence))
    return compute_deltas(held.transpose(1, 2)).transpose(1, 2)
