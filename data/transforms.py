"""Images and sequences, as stored -> as the networks read them. Whole batches at once; no randomness here."""

import torch
import torch.nn.functional as F
from torchaudio.functional import compute_deltas

# Channel statistics of ImageNet in RGB: what torchvision's pretrained networks expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def gray_to_network_image(gray: torch.Tensor, image_size: int) -> torch.Tensor:
    """(B, h, w) with black 0 and white 1 -> (B, 3, image_size, image_size), ImageNet-normalised."""
    resized = F.interpolate(gray[:, None], size=(image_size, image_size), mode="bilinear")
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (resized - mean) / std  # one channel broadcasts to three


def network_image_to_rgb(image: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W), ImageNet-normalised -> the same in [0, 1], for the eye."""
    mean = torch.tensor(IMAGENET_MEAN, device=image.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=image.device).view(1, 3, 1, 1)
    return (image * std + mean).clamp(0, 1)


def with_deltas(sequence: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """(B, T, F) -> (B, T, 3F): the features, their deltas and the deltas of those; zeros behind each end.

    Each row equals what torchaudio.functional.compute_deltas gives for that sequence alone: the frames behind
    the end are filled with the last one before each pass, which is that function's own treatment of an edge.
    """
    deltas = _deltas_of_rows(sequence, length)
    features = torch.cat([sequence, deltas, _deltas_of_rows(deltas, length)], dim=2)
    behind_end = torch.arange(sequence.shape[1]) >= length[:, None]  # (B, T)
    return features.masked_fill(behind_end[:, :, None], 0.0)


def _deltas_of_rows(sequence: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    frame = torch.minimum(torch.arange(sequence.shape[1]), length[:, None] - 1)  # (B, T)
    held = sequence.gather(1, frame[:, :, None].expand_as(sequence))
    return compute_deltas(held.transpose(1, 2)).transpose(1, 2)
