"""What one file holds: the facts that are checked, and the form in which it is stored."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from data.files.decoding import read_bytes
from data.files.images import read_image
from data.files.sequences import Sequence, read_sequence
from data.manifest.config import ManifestConfig


class ImageFacts(NamedTuple):
    digest: bytes
    width: int
    height: int
    depth: str  # numpy's name for the type of the values
    lowest: float
    highest: float


class SequenceFacts(NamedTuple):
    digest: bytes
    is_array: bool  # of a file whose rows may be frames or features
    length: int  # frames
    columns: tuple[str, ...] | None  # their names, where the file gives them
    mean: np.ndarray  # (F,) float64, over the frames
    spread: np.ndarray  # (F,) float64: the squared differences from the mean, summed


File = tuple[str, str]  # a modality, and a cell of its column
Facts = ImageFacts | SequenceFacts


def decode(modality: str, path: Path, config: ManifestConfig) -> np.ndarray | Sequence:
    """The pixels of an image, or a sequence, as the file holds them. Raises BadFile."""
    if modality == "image":
        return read_image(path, config.image.max_pixels)
    return read_sequence(path, config.sequence, config.audio)


def stored_form(decoded: np.ndarray | Sequence, config: ManifestConfig) -> np.ndarray:
    """What batches are made of, whether it was in a cache or not.

    Of an image (C, h, w) in its depth, C 1 or 3: edges longer than config.stored_image_size are shrunk to it, and then
    whole numbers rounded, halves to the even one. Of a sequence (T, F) float32, not normalised.
    """
    if isinstance(decoded, Sequence):
        return decoded.frames
    size = tuple(min(edge, config.stored_image_size) for edge in decoded.shape[1:])
    if size == decoded.shape[1:]:
        return decoded
    shrunk = interpolate(torch.from_numpy(decoded.astype(np.float32))[None], size, mode="bilinear", antialias=True)[0]
    return (shrunk if decoded.dtype == np.float32 else shrunk.round()).numpy().astype(decoded.dtype)


def measure(decoded: np.ndarray | Sequence, path: Path, digest: bytes) -> Facts:
    if isinstance(decoded, Sequence):
        frames = decoded.frames.astype(np.float64)
        mean = frames.mean(0)
        spread = np.square(frames - mean).sum(0)
        is_array = path.suffix.lower() in (".npy", ".npz")
        return SequenceFacts(digest, is_array, len(frames), decoded.columns, mean, spread)
    _, height, width = decoded.shape
    return ImageFacts(digest, width, height, decoded.dtype.name, float(decoded.min()), float(decoded.max()))


def digest_of(path: Path) -> bytes:
    """Of the content. Raises BadFile."""
    return hashlib.blake2b(read_bytes(path), digest_size=16).digest()
