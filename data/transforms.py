"""Images and sequences, as stored -> as the networks read them. Whole batches at once; no randomness here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torchaudio.functional import compute_deltas


class Preparation:
    """The arithmetic between a gathered batch and the networks, on the device where the batch is (see data/split.py).

    Args:
        image_size: pixels of an edge that the network reads.
        image_mean, image_std: of red, green and blue, as the image network expects them.
        feature_mean, feature_std: of each feature, to normalise sequences by; None: they are normalised already.
        deltas: whether the features' deltas, and the deltas of those, are appended.
    """

    def __init__(
        self,
        *,
        image_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        feature_mean: Sequence[float] | None = None,
        feature_std: Sequence[float] | None = None,
        deltas: bool,
    ):
        self.image_size, self.image_mean, self.image_std = image_size, image_mean, image_std
        self.feature_mean, self.feature_std, self.deltas = feature_mean, feature_std, deltas

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`image` (B, 1 or 3, h, w), uint8 or float32 with black 0 and white 1; `sequence` (B, T, F)."""
        return self.end(self.begin(batch))

    def begin(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Images float32 with black 0 and white 1, sequences normalised, zeros after each end."""
        image, sequence = batch["image"], batch["sequence"]
        if image.dtype == torch.uint8:
            image = image.float() / 255
        if self.feature_mean is not None:
            mean, std = (sequence.new_tensor(values) for values in (self.feature_mean, self.feature_std))
            sequence = zero_after_end((sequence - mean) / std, batch["length"])
        return batch | {"image": image, "sequence": sequence}

    def end(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """From there to what the networks read."""
        image, sequence, length = batch["image"], batch["sequence"], batch["length"]
        image = normalise_image(resize_images(image, self.image_size), self.image_mean, self.image_std)
        if not (has_image := batch["present"][:, 0]).all():
            image = image.masked_fill(~has_image.to(image.device)[:, None, None, None], 0.0)
        if self.deltas and sequence.shape[2]:  # torchaudio takes no 0 features
            sequence = with_deltas(sequence, length)
        return batch | {"image": image, "sequence": sequence}


@contextmanager
def one_thread() -> Iterator[None]:
    """For what must not depend on the number of threads, as sums of torch do: features of a recording differed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def resize_images(image: torch.Tensor, image_size: int) -> torch.Tensor:
    """(B, C, h, w) -> (B, C, image_size, image_size), stretched where h is not w, averaged where it shrinks."""
    size = (image_size, image_size)
    return image if image.shape[2:] == size else F.interpolate(image, size=size, mode="bilinear", antialias=True)


def normalise_image(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(B, 1 or 3, H, W) with black 0 and white 1 -> (B, 3, H, W), less `mean` and over `std` (3 each)."""
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (image - mean).div_(std)


def network_image_to_rgb(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """What normalise_image made of images (B, 3, H, W) -> the same in [0, 1], to be shown."""
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (image * std + mean).clamp(0, 1)


def zero_after_end(sequence: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """(B, T, F), lengths (B,)"""
    after_end = torch.arange(sequence.shape[1], device=length.device) >= length[:, None]  # (B, T)
    return sequence.masked_fill(after_end[:, :, None], 0.0)


def with_deltas(sequence: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """(B, T, F) -> (B, T, 3F): the features, their deltas and the deltas of those; zeros after each end.

    Each row equals what torchaudio.functional.compute_deltas gives for that sequence alone: the frames after
    the end are filled with the last one before each pass, which is that function's own treatment of an edge.
    """
    deltas = _deltas_of_rows(sequence, length)
    return zero_after_end(torch.cat([sequence, deltas, _deltas_of_rows(deltas, length)], dim=2), length)


def _deltas_of_rows(sequence: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    frames = torch.arange(sequence.shape[1], device=length.device)
    frame = torch.minimum(frames, length[:, None] - 1)  # (B, T)
    held = sequence.gather(1, frame[:, :, None].expand_as(sequence))
    return compute_deltas(held.transpose(1, 2)).transpose(1, 2)
