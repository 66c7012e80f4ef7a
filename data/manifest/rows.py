"""Rows of a table as a split: what their files hold, in batches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from app.randomness import Draws
from data.files.audio import read_recording
from data.files.images import to_unit
from data.files.paths import BadFile, resolve
from data.files.sequences import AUDIO
from data.manifest.cache import Cache
from data.manifest.config import ManifestConfig
from data.manifest.finding import Finding
from data.manifest.table import Row, Table
from data.spec import MODALITIES, DataSpec
from data.split import Batch, PreparedSplit
from data.transforms import Preparation, resize_images


class ManifestRows(PreparedSplit):
    """Some rows of a table.

    Where the mean over windows is asked for, a batch has all windows of each sample in turn as its `sequence`
    (W, T, F) and `length` (W,), and `windows` (B,) int64 says how many each sample has.

    Args:
        spec: classes and preprocessing.
        modalities: those that are read; the others are told as absent.
        training: windows are drawn for each epoch.
        edge: pixels of an edge that images of different sizes are brought to, or all, if it exceeds config.image_size.
        cache: where their files come from.
    """

    def __init__(
        self,
        table: Table,
        rows: list[Row],
        config: ManifestConfig,
        spec: DataSpec,
        modalities: Sequence[str],
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        seed: int,
        training: bool,
        edge: int,
        cache: Cache,
    ):
        self.table, self.rows, self.config, self.spec, self.modalities = table, rows, config, spec, modalities
        self.training, self.edge, self.cache = training, edge, cache
        self.read_ahead = cache.read_ahead()
        label_of = {name: label for label, name in enumerate(spec.class_names)}
        self.labels = torch.tensor([label_of.get(row.label, -1) for row in rows], dtype=torch.int64)  # -1: none
        there = [[self._reads(row, name) for name in MODALITIES] for row in rows]
        self.present = torch.tensor(there, dtype=torch.bool).reshape(len(rows), len(MODALITIES))
        self.max_length = config.max_length
        self.mean = torch.tensor(spec.normalisation["mean"])
        self.window_draws = Draws("windows", seed, num_samples=len(rows), width=1)
        self.prepare = Preparation(
            image_size=config.image_size,
            image_mean=image_mean,
            image_std=image_std,
            feature_mean=spec.normalisation["mean"],
            feature_std=spec.normalisation["std"],
            deltas=config.sequence.deltas,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def cells(self, index: int) -> dict[str, str]:
        """The row as it stands in the table, by column."""
        return self.table.cells(self.rows[index])

    def recording(self, index: int) -> tuple[np.ndarray, int] | None:
        row = self.rows[index]
        if not self._reads(row, "sequence") or Path(row.sequence).suffix.lower() not in AUDIO:
            return None
        try:
            return read_recording(resolve(row.sequence, self.table.root))
        except (BadFile, OSError):  # it was right when checked; whoever needs it says what is wrong
            return None

    def gather(self, epoch: int, indices: torch.Tensor) -> Batch:
        rows = [self.rows[i] for i in indices.tolist()]
        draws = self.window_draws(epoch, indices)[:, 0].tolist() if self.training else [0.0] * len(rows)
        windows = [self._windows(row, draw) for row, draw in zip(rows, draws, strict=True)]
        parts = [part for of_row in windows for part in of_row]
        batch = {
            "image": self._images(rows),
            "sequence": pad_sequence(parts, batch_first=True),  # (W, T, F)
            "length": torch.tensor([len(part) for part in parts]),
            "present": self.present[indices],
            "label": self.labels[indices],
            "index": indices,
        }
        if len(parts) > len(rows):
            batch["windows"] = torch.tensor([len(of_row) for of_row in windows])
        return batch

    def _reads(self, row: Row, modality: str) -> bool:
        return modality in self.modalities and getattr(row, modality) is not None

    def _images(self, rows: list[Row]) -> torch.Tensor:
        """(B, 1 or 3, h, w): uint8 as they are stored or, where sizes or depths differ, float32 with black 0 and
        white 1; zeros where there is none. Crops are of one size, so that none depends on the sizes beside it."""
        images = {i: self._stored(row, "image") for i, row in enumerate(rows) if self._reads(row, "image")}
        sizes, kinds = {image.shape[1:] for image in images.values()}, {image.dtype.name for image in images.values()}
        edge = self.edge
        to_crop = edge > self.config.image_size and sizes - {(edge, edge)}
        if len(sizes) > 1 or kinds - {"uint8"} or to_crop:
            units = ((i, torch.from_numpy(to_unit(image, self.spec.image_range))) for i, image in images.items())
            sizes, kinds = {(edge, edge)}, {"float32"}
            tensors = {i: resize_images(image[None], edge)[0] for i, image in units}
        else:
            tensors = {i: torch.from_numpy(image) for i, image in images.items()}
        size, kind = next(iter(sizes), (1, 1)), torch.float32 if "float32" in kinds else torch.uint8
        channels = max((len(image) for image in tensors.values()), default=1)
        batch = torch.zeros(len(rows), channels, *size, dtype=kind)
        for i, image in tensors.items():
            batch[i] = image  # a grey one is the same in all channels
        return batch

    def _stored(self, row: Row, modality: str) -> np.ndarray:
        """An image (1 or 3, S, S) in its depth, a sequence (T, F) as its file has it."""
        cell = getattr(row, modality)
        try:
            stored = self.cache.read(modality, cell)
            self._raise_if_unsuitable(modality, stored)
            return stored
        except (BadFile, OSError) as error:
            finding = Finding(row.number, self.table.columns[modality], cell, f"{error} (it was right when checked)")
            raise OSError(self.table.line(finding)) from None

    def _raise_if_unsuitable(self, modality: str, stored: np.ndarray) -> None:
        """Raises BadFile for a file that was changed since it was checked, as far as no batch can hold it now."""
        if modality == "image":
            if stored.dtype != np.uint8 and self.spec.image_range is None:
                raise BadFile(f"has values of type {stored.dtype.name}, the training images have uint8")
        elif stored.shape[1] != len(self.mean):
            raise BadFile(f"has {stored.shape[1]} features, the others have {len(self.mean)}")
        elif self.config.too_long == "error" and len(stored) > (self.config.max_length or len(stored)):
            raise BadFile(f"has {len(stored)} frames, data.max_length is {self.config.max_length}")

    def _windows(self, row: Row, draw: float) -> list[torch.Tensor]:
        """Each (T, F); one frame of means, which becomes zeros, where there is no sequence. draw: in [0, 1)."""
        if not self._reads(row, "sequence"):
            return [self.mean[None]]
        frames = torch.from_numpy(self._stored(row, "sequence")).float()
        limit = self.config.max_length or len(frames)
        last = len(frames) - limit  # the start of the last window
        if last <= 0:
            return [frames]
        starts = [0]
        if self.config.too_long == "window" and self.training:
            starts = [int(draw * (last + 1))]
        elif self.config.too_long == "window" and self.config.windows == "mean":
            starts = [*range(0, last, limit), last]
        return [frames[start : start + limit] for start in starts]
