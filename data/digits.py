"""The default data set: a written digit and a spoken digit of the same class, both noisy.

Written digits are scikit-learn's `load_digits` (1,797 images of 8x8, UCI "Optical Recognition of Handwritten
Digits", CC BY 4.0). Spoken digits are `assets.SPOKEN_DIGITS`. Neither source knows the other, so pairs are
made here: both sources are split first, and paired by class inside a split, so no recording and no image is
ever in two splits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset

from app.randomness import stream
from data import assets
from data.spec import SPLITS, DataConfig, DataSpec
from data.transforms import gray_to_network_image, with_deltas

CLASS_NAMES = tuple(str(digit) for digit in range(10))
NUM_FEATURES = 39  # 13 MFCC, their deltas and the deltas of those
# The splits, and the pairs and noise of validation and test, are the same for every run and every seed.
SPLIT_SEED = 0


class DigitsConfig(DataConfig):
    source: Literal["digits"] = Field(description="written and spoken digits, paired by class")
    image_noise: float = Field(
        ge=0, description="deviation of the noise on the 8x8 image; 1 is black to white; 0: none"
    )
    sequence_noise: float = Field(
        ge=0, description="deviation of the noise on each MFCC, in that MFCC's deviations; 0: none"
    )
    redraw: bool = Field(
        True, description="a new image and new noise for each recording in each epoch of training; false: one draw"
    )


@dataclass(frozen=True)
class Recordings:
    """N recordings: mfcc (N, T, 13) padded with zeros, length (N,), label (N,)."""

    mfcc: torch.Tensor
    length: torch.Tensor
    label: torch.Tensor

    def take(self, rows: np.ndarray) -> "Recordings":
        return Recordings(self.mfcc[rows], self.length[rows], self.label[rows])


class PairedDigits(Dataset):
    """One split. A sample is a recording; its image is drawn among the split's images of the same class.

    Indexed by (epoch, indices), and returns that whole batch (see data/loaders.py). Image and noise of a
    sample come from a stream derived from (seed, epoch, sample) where `redraw` is true, and never change
    where it is false.

    Args:
        images: (M, 8, 8) float32 from 0 to 1.
        image_label: (M,) int64.
        recordings: already normalised.
        image_mean, image_std: of red, green and blue, as the image network expects them.
        image_noise: deviation of the noise on the 8x8 image; 1 is the step from black to white.
        sequence_noise: deviation of the noise on each MFCC, in deviations of that MFCC.
    """

    def __init__(
        self,
        images: torch.Tensor,
        image_label: torch.Tensor,
        recordings: Recordings,
        *,
        split: str,
        image_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        image_noise: float,
        sequence_noise: float,
        seed: int,
        redraw: bool,
    ):
        self.images = images
        self.images_of_class = [torch.nonzero(image_label == c).flatten() for c in range(len(CLASS_NAMES))]
        self.recordings = recordings
        self.split = split
        self.image_size, self.image_mean, self.image_std = image_size, image_mean, image_std
        self.image_noise = image_noise
        self.sequence_noise = sequence_noise
        self.seed = seed if redraw else SPLIT_SEED
        self.redraw = redraw

    def __len__(self) -> int:
        return len(self.recordings.label)

    @property
    def labels(self) -> torch.Tensor:
        """(N,) int64"""
        return self.recordings.label

    def cells(self, index: int) -> dict[str, str]:
        return {}

    def __getitem__(self, epoch_and_indices: tuple[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        epoch, indices = epoch_and_indices
        images, sequence, length = self.draw(epoch, indices)
        return {
            "image": gray_to_network_image(images, self.image_size, self.image_mean, self.image_std),
            "sequence": with_deltas(sequence, length),
            "length": length,
            "present": torch.ones(len(indices), 2, dtype=torch.bool),
            "label": self.labels[indices],
            "index": indices,
        }

    def draw(self, epoch: int, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (B, 8, 8), sequences (B, T, 13) and lengths (B,), with their noise."""
        label, length = self.labels[indices], self.recordings.length[indices]
        sequence = self.recordings.mfcc[indices, : int(length.max())]  # a copy
        images = torch.empty(len(indices), *self.images.shape[1:])
        for row, index in enumerate(indices.tolist()):
            generator = stream("pair", self.split, self.seed, epoch if self.redraw else 0, index)
            candidates = self.images_of_class[label[row]]
            choice = torch.randint(len(candidates), (1,), generator=generator)
            images[row] = self.images[candidates[choice]]
            if self.image_noise:
                images[row] += self.image_noise * torch.randn(images.shape[1:], generator=generator)
            if self.sequence_noise:
                frames = sequence[row, : length[row]]
                frames += self.sequence_noise * torch.randn(frames.shape, generator=generator)
        return images, sequence, length


class Digits:
    """2,100 pairs for training, 450 for validation, 450 for test (see data/source.py for what a source gives).

    Raises FileNotFoundError or ValueError if the recordings cannot be had (see data/assets.py).
    """

    Config: ClassVar = DigitsConfig
    skipped: ClassVar[list[dict[str, str]]] = []
    notes: ClassVar[list[str]] = []

    def __init__(self, config: DigitsConfig, saved: DataSpec | None = None, modalities: Sequence[str] = ()):
        """`modalities` change nothing: all rows have both."""
        from sklearn.datasets import load_digits  # here: other sources need no scikit-learn, which takes its time

        written = load_digits()
        self.config = config
        self.images = torch.from_numpy(written.images).float() / 16  # stored as 0 to 16
        self.image_label = torch.from_numpy(written.target).long()
        self.recordings = _read_recordings()
        self.image_rows = _split_rows(written.target)
        self.recording_rows = _split_rows(self.recordings.label.numpy())
        training = self.recordings.take(self.recording_rows["train"])
        self.spec = DataSpec(
            class_names=CLASS_NAMES,
            num_features=NUM_FEATURES,
            normalisation=saved.normalisation if saved else _measure(training),
            class_counts=tuple(training.label.bincount(minlength=len(CLASS_NAMES)).tolist()),
            absent=(0, 0),
            rows={s: f"{len(r)} rows, {assets.SPOKEN_DIGITS.sha256[:16]}" for s, r in self.recording_rows.items()},
        )

    def splits(self, *, seed: int, image_mean: Sequence[float], image_std: Sequence[float]) -> dict[str, PairedDigits]:
        recordings = _normalise(self.recordings, self.spec.normalisation)
        return {
            split: PairedDigits(
                self.images[self.image_rows[split]],
                self.image_label[self.image_rows[split]],
                recordings.take(self.recording_rows[split]),
                split=split,
                image_size=self.config.image_size,
                image_mean=image_mean,
                image_std=image_std,
                image_noise=self.config.image_noise,
                sequence_noise=self.config.sequence_noise,
                seed=seed,
                redraw=self.config.redraw and split == "train",
            )
            for split in SPLITS
        }


def _read_recordings() -> Recordings:
    with np.load(assets.fetch(assets.SPOKEN_DIGITS)) as archive:
        frames, label, lengths = archive["X"], archive["y"], archive["lengths"]
    rows = torch.split(torch.from_numpy(frames), lengths.tolist())
    mfcc = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Recordings(mfcc, torch.from_numpy(lengths), torch.from_numpy(label))


def _split_rows(label: np.ndarray) -> dict[str, np.ndarray]:
    """70/15/15, stratified by class."""
    from sklearn.model_selection import train_test_split

    train, rest = train_test_split(np.arange(len(label)), train_size=0.7, stratify=label, random_state=SPLIT_SEED)
    val, test = train_test_split(rest, train_size=0.5, stratify=label[rest], random_state=SPLIT_SEED)
    return dict(zip(SPLITS, (train, val, test), strict=True))


def _real_frames(recordings: Recordings) -> torch.Tensor:
    return torch.arange(recordings.mfcc.shape[1]) < recordings.length[:, None]  # (N, T)


def _measure(recordings: Recordings) -> dict[str, list[float]]:
    frames = recordings.mfcc[_real_frames(recordings)]  # (frames, 13)
    return {"mean": frames.mean(0).tolist(), "std": frames.std(0).tolist()}


def _normalise(recordings: Recordings, normalisation: dict[str, list[float]]) -> Recordings:
    mean, std = torch.tensor(normalisation["mean"]), torch.tensor(normalisation["std"])
    mfcc = (recordings.mfcc - mean) / std * _real_frames(recordings)[:, :, None]
    return Recordings(mfcc, recordings.length, recordings.label)
