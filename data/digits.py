"""The default data set: a written digit and a spoken digit of the same class, both noisy.

Written digits are scikit-learn's `load_digits` (1,797 images of 8x8, UCI "Optical Recognition of Handwritten
Digits", CC BY 4.0). Spoken digits are `assets.SPOKEN_DIGITS`. Neither source knows the other, so pairs are
made here: both sources are split first, and paired by class inside a split, so no recording and no image is
ever in two splits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from app.randomness import stream
from data import assets
from data.spec import SPLITS, DataConfig, DataSpec
from data.split import Batch, PreparedSplit
from data.transforms import Preparation, zero_after_end

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

    def adds(self, modalities: Sequence[str]) -> dict[str, Any]:
        return {f"data.{modality}_noise": getattr(self, f"{modality}_noise") for modality in modalities}


@dataclass(frozen=True)
class Recordings:
    """N recordings: their frames (sum of length, 13), one recording after the other; length (N,), label (N,)."""

    frames: torch.Tensor
    length: torch.Tensor
    label: torch.Tensor

    def take(self, rows: np.ndarray) -> "Recordings":
        frames = self.frames.split(self.length.tolist())
        return Recordings(torch.cat([frames[row] for row in rows]), self.length[rows], self.label[rows])


class PairedDigits(PreparedSplit):
    """One split. A sample is a recording; its image is drawn among the split's images of the same class.

    Where `redraw` is true, images and noise are drawn anew for each epoch, for all samples at once, from a stream
    derived from (seed, epoch); where it is false they never change.

    Args:
        images: (M, 8, 8) float32 from 0 to 1.
        image_label: (M,) int64.
        recordings: already normalised.
        image_noise: deviation of the noise on the 8x8 image; 1 is the step from black to white.
        sequence_noise: deviation of the noise on each MFCC, in deviations of that MFCC.
        prepare: see data/split.py.
    """

    def __init__(
        self,
        images: torch.Tensor,
        image_label: torch.Tensor,
        recordings: Recordings,
        *,
        split: str,
        image_noise: float,
        sequence_noise: float,
        seed: int,
        redraw: bool,
        prepare: Preparation,
    ):
        self.images = images
        self.images_of_class = [torch.nonzero(image_label == c).flatten() for c in range(len(CLASS_NAMES))]
        self.recordings = recordings
        self.labels = recordings.label
        self.first_frame = recordings.length.cumsum(0) - recordings.length  # (N,), in recordings.frames
        self.split = split
        self.image_noise = image_noise
        self.sequence_noise = sequence_noise
        self.seed = seed
        self.redraw = redraw
        self.prepare = prepare
        self.present = torch.ones(len(recordings.label), 2, dtype=torch.bool)
        self.drawn: tuple[int, torch.Tensor, torch.Tensor] | None = None  # epoch, images, frames

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, epoch: int, indices: torch.Tensor) -> Batch:
        images, sequence, length = self.draw(epoch, indices)
        return {
            "image": images[:, None],
            "sequence": sequence,
            "length": length,
            "present": self.present[indices],
            "label": self.labels[indices],
            "index": indices,
        }

    def draw(self, epoch: int, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (B, 8, 8), sequences (B, T, 13) and lengths (B,), with their noise."""
        epoch = epoch if self.redraw else 0
        if self.drawn is None or self.drawn[0] != epoch:
            self.drawn = (epoch, *(self._draw_epoch(epoch) if self.redraw else self._draw_once()))
        _, images, frames = self.drawn
        length = self.recordings.length[indices]
        place = torch.arange(int(length.max()))  # (T,)
        sequence = frames[(self.first_frame[indices, None] + place).clamp(max=len(frames) - 1)]
        return images[indices], zero_after_end(sequence, length), length

    def _draw_epoch(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, 8, 8) and frames (sum of length, 13) of all samples."""
        generator = stream("pairs", self.split, self.seed, epoch)
        counts = torch.tensor([len(candidates) for candidates in self.images_of_class])
        first = counts.cumsum(0) - counts
        choice = (torch.rand(len(self), generator=generator) * counts[self.labels]).long()
        images = self.images[torch.cat(self.images_of_class)[first[self.labels] + choice]]
        images += self.image_noise * torch.randn(images.shape, generator=generator)
        clean = self.recordings.frames
        return images, clean + self.sequence_noise * torch.randn(clean.shape, generator=generator)

    def _draw_once(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As _draw_epoch, from a stream for each sample: the one draw of validation and test, by which runs are
        compared since this data set began."""
        images, frames = torch.empty(len(self), *self.images.shape[1:]), self.recordings.frames.clone()
        for row, (of_row, label) in enumerate(
            zip(frames.split(self.recordings.length.tolist()), self.labels.tolist(), strict=True)
        ):
            generator = stream("pair", self.split, SPLIT_SEED, 0, row)
            candidates = self.images_of_class[label]
            choice = torch.randint(len(candidates), (1,), generator=generator)
            images[row] = self.images[candidates[choice]]
            if self.image_noise:
                images[row] += self.image_noise * torch.randn(images.shape[1:], generator=generator)
            if self.sequence_noise:
                of_row += self.sequence_noise * torch.randn(of_row.shape, generator=generator)
        return images, frames


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
        measured = {"mean": training.frames.mean(0).tolist(), "std": training.frames.std(0).tolist()}
        self.spec = DataSpec(
            class_names=CLASS_NAMES,
            num_features=NUM_FEATURES,
            normalisation=saved.normalisation if saved else measured,
            class_counts=tuple(training.label.bincount(minlength=len(CLASS_NAMES)).tolist()),
            absent=(0, 0),
            rows={s: f"{len(r)} rows, {assets.SPOKEN_DIGITS.sha256[:16]}" for s, r in self.recording_rows.items()},
        )

    def fingerprint(self, split: str, modality: str | None) -> str:
        return self.spec.rows[split]

    def splits(self, *, seed: int, image_mean: Sequence[float], image_std: Sequence[float]) -> dict[str, PairedDigits]:
        mean, std = (torch.tensor(self.spec.normalisation[name]) for name in ("mean", "std"))
        recordings = replace(self.recordings, frames=(self.recordings.frames - mean) / std)
        prepare = Preparation(
            image_size=self.config.image_size, image_mean=image_mean, image_std=image_std, deltas=True
        )
        return {
            split: PairedDigits(
                self.images[self.image_rows[split]],
                self.image_label[self.image_rows[split]],
                recordings.take(self.recording_rows[split]),
                split=split,
                image_noise=self.config.image_noise,
                sequence_noise=self.config.sequence_noise,
                seed=seed,
                redraw=self.config.redraw and split == "train",
                prepare=prepare,
            )
            for split in SPLITS
        }


def _read_recordings() -> Recordings:
    with np.load(assets.fetch(assets.SPOKEN_DIGITS)) as archive:
        return Recordings(*(torch.from_numpy(archive[name]) for name in ("X", "lengths", "y")))


def _split_rows(label: np.ndarray) -> dict[str, np.ndarray]:
    """70/15/15, stratified by class."""
    from sklearn.model_selection import train_test_split

    train, rest = train_test_split(np.arange(len(label)), train_size=0.7, stratify=label, random_state=SPLIT_SEED)
    val, test = train_test_split(rest, train_size=0.5, stratify=label[rest], random_state=SPLIT_SEED)
    return dict(zip(SPLITS, (train, val, test), strict=True))
