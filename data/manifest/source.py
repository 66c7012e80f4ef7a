"""A table of files as a data source: its rows in three splits, and rows to predict."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from app.messages import Findings
from app.randomness import Draws
from data.files.images import read_image, to_unit
from data.files.paths import BadFile, resolve
from data.files.sequences import read_sequence
from data.manifest.check import Checked, check
from data.manifest.config import ManifestConfig
from data.manifest.facts import Facts, File, SequenceFacts
from data.manifest.finding import Finding
from data.manifest.table import Row, Table
from data.spec import MODALITIES, SPLITS, DataSpec
from data.split import Batch, Split
from data.transforms import Preparation, resize_images

SHOWN = 20  # findings
# Of samples that are kept as the networks read them, so that each is decoded once; those beyond are decoded again.
KEPT_BYTES = 2 * 2**30


class Manifest:
    """The source `manifest` (see data/source.py for what a source gives).

    Raises FileNotFoundError; or Findings for all that is wrong, with data.on_error=skip only where more rows than
    data.skip_limit cannot be used, or too little is left.
    """

    Config: ClassVar = ManifestConfig

    def __init__(self, config: ManifestConfig, saved: DataSpec | None = None, modalities: Sequence[str] = MODALITIES):
        self.config, self.modalities = config, tuple(modalities)
        checked = check(config, self.modalities, saved)
        self.skipped, self.notes = skip_or_raise(checked, config), checked.notes
        self.table = checked.table
        self.rows = {split: checked.rows_of(split) for split in SPLITS}
        self.spec = describe(self.rows, checked, config, self.modalities, saved)
        self.lengths = lengths_of(self.rows["train"], checked.facts, config)

    def splits(
        self, *, seed: int, image_mean: Sequence[float], image_std: Sequence[float]
    ) -> dict[str, "ManifestRows"]:
        kept = Kept(KEPT_BYTES)
        splits = {
            split: ManifestRows(
                self.table,
                self.rows[split],
                self.config,
                self.spec,
                self.modalities,
                image_mean=image_mean,
                image_std=image_std,
                seed=seed,
                training=split == "train",
                kept=kept,
            )
            for split in SPLITS
        }
        if self.config.length_buckets and "sequence" in self.modalities:
            splits["train"].lengths = self.lengths
        return splits


def skip_or_raise(checked: Checked, config: ManifestConfig) -> list[dict[str, str]]:
    """The findings of the rows that are left out. Raises Findings where they must not be."""
    findings = checked.findings
    whole = any(finding.is_of_the_whole for finding in findings)
    files = {finding.value for finding in findings if finding.row is None and not finding.is_of_the_whole}
    bad, total = len(checked.bad_rows()) + len(files), len(checked.table.rows) + len(files)
    share = bad / max(1, total)
    if not findings:
        return []
    if config.on_error == "skip" and not whole and share <= config.skip_limit:
        return [{name: "" if v is None else str(v) for name, v in finding._asdict().items()} for finding in findings]
    lines = [checked.table.line(finding) for finding in findings[:SHOWN]]
    if len(findings) > SHOWN:
        lines.append(
            f"{len(findings)} findings in all, {SHOWN} are shown; "
            f"python -m app.commands.manifest check {config.manifest} shows all"
        )
    if config.on_error == "skip" and share > config.skip_limit:
        lines.append(
            f"data.skip_limit: {bad} of {total} rows ({share:.1%}) cannot be used, allowed are "
            f"{config.skip_limit:.1%}; mend them, or raise the limit"
        )
    raise Findings(lines)


def describe(
    rows: dict[str, list[Row]],
    checked: Checked,
    config: ManifestConfig,
    modalities: Sequence[str],
    saved: DataSpec | None,
) -> DataSpec:
    """saved: of a checkpoint, whose preprocessing counts; None: it is measured on the training rows."""
    facts, training = checked.facts, rows["train"]
    counts = {name: 0 for name in checked.class_names}
    for row in training:
        counts[row.label] += 1
    of_training = {name: [facts[name, cell] for row in training if (cell := getattr(row, name))] for name in modalities}
    spec = DataSpec(
        class_names=checked.class_names,
        num_features=0,
        normalisation={"mean": [], "std": []},
        class_counts=tuple(counts.values()),
        absent=tuple(sum(getattr(row, name) is None for row in training) for name in MODALITIES),
        rows={split: fingerprint(rows[split], facts, modalities) for split in SPLITS},
    )
    if saved:
        # Not that of the checkpoint: make_source holds it against that, as data.sequence.deltas may have changed.
        spec = replace(spec, num_features=len(saved.normalisation["mean"]) * (3 if config.sequence.deltas else 1))
        measured = ("normalisation", "feature_names", "image_range", "image_depth")
        return replace(spec, **{name: getattr(saved, name) for name in measured})
    if "sequence" in modalities:
        sequences = of_training["sequence"]
        num_features = len(sequences[0].mean)
        spec = replace(
            spec,
            num_features=num_features * (3 if config.sequence.deltas else 1),
            normalisation=measure(sequences) if config.sequence.normalise else unchanged(num_features),
            feature_names=next((fact.columns for fact in sequences if fact.columns), ()),
        )
    if config.image.value_range:
        return replace(spec, image_range=tuple(config.image.value_range))
    if images := of_training.get("image"):  # all of one depth, as checked
        spec = replace(spec, image_depth=images[0].depth)
        if spec.image_depth != "uint8":
            spec = replace(spec, image_range=(min(i.lowest for i in images), max(i.highest for i in images)))
    return spec


def lengths_of(rows: list[Row], facts: dict[File, Facts], config: ManifestConfig) -> torch.Tensor:
    """(N,) frames of each row's sequence as training reads it; 1 where there is none."""
    files = (facts.get(("sequence", row.sequence)) for row in rows)
    return torch.tensor([min(fact.length, config.max_length or fact.length) if fact else 1 for fact in files])


def measure(sequences: Sequence[SequenceFacts]) -> dict[str, list[float]]:
    """Mean and deviation of each feature over all frames; of a feature that never changes the deviation is 1."""
    lengths = np.array([fact.length for fact in sequences], dtype=np.float64)[:, None]
    means = np.stack([fact.mean for fact in sequences])
    mean = (lengths * means).sum(0) / lengths.sum()
    spread = sum(fact.spread for fact in sequences) + (lengths * np.square(means - mean)).sum(0)
    std = np.sqrt(spread / max(1.0, lengths.sum() - 1))
    constant = std <= 1e-6 * np.abs(mean)  # what float32 makes of a value that never changes
    return {"mean": mean.tolist(), "std": np.where(constant | (std == 0), 1.0, std).tolist()}


def unchanged(num_features: int) -> dict[str, list[float]]:
    return {"mean": [0.0] * num_features, "std": [1.0] * num_features}


def fingerprint(rows: list[Row], facts: dict[File, Facts], modalities: Sequence[str]) -> str:
    """What tells these rows, in this order, from others: labels, and contents of files; not their names."""
    digest = hashlib.sha256()
    for row in rows:
        files = (facts.get((name, getattr(row, name))) for name in modalities)
        contents = [fact.digest.hex() if fact else "" for fact in files]
        digest.update(repr((row.label, contents)).encode())
    return f"{len(rows)} rows, {digest.hexdigest()[:16]}"


def shrink(pixels: np.ndarray, edge: int) -> np.ndarray:
    """(C, h, w) of any depth -> the same depth, no edge longer than `edge` pixels; whole numbers are rounded."""
    size = tuple(min(length, edge) for length in pixels.shape[1:])
    if size == pixels.shape[1:]:
        return pixels
    resized = F.interpolate(torch.from_numpy(pixels.astype(np.float32))[None], size, mode="bilinear", antialias=True)
    return (resized if pixels.dtype == np.float32 else resized.round())[0].numpy().astype(pixels.dtype)


class Kept:
    """Samples as the networks read them, up to a number of bytes."""

    def __init__(self, limit: int):
        self.free = limit
        self.tensors: dict[File, np.ndarray] = {}

    def keep(self, file: File, tensor: np.ndarray) -> None:
        if (size := tensor.nbytes) <= self.free:
            self.free -= size
            self.tensors[file] = tensor


class ManifestRows(Split):
    """Some rows of a table.

    Where the mean over windows is asked for, a batch has all windows of each sample in turn as its `sequence`
    (W, T, F) and `length` (W,), and `windows` (B,) int64 says how many each sample has.

    Args:
        spec: classes and preprocessing.
        modalities: those that are read; the others are told as absent.
        training: windows are drawn for each epoch.
        kept: shared by the splits.
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
        kept: Kept,
    ):
        self.table, self.rows, self.config, self.spec, self.modalities = table, rows, config, spec, modalities
        self.training, self.kept = training, kept
        label_of = {name: label for label, name in enumerate(spec.class_names)}
        self.labels = torch.tensor([label_of.get(row.label, -1) for row in rows], dtype=torch.int64)  # -1: none
        self.mean = torch.tensor(spec.normalisation["mean"])
        self.window_draws = Draws("windows", seed, num_samples=len(rows), width=1)
        self.finish = Preparation(
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

    def gather(self, epoch: int, indices: torch.Tensor) -> Batch:
        rows = [self.rows[i] for i in indices.tolist()]
        present = torch.tensor([[self._reads(row, name) for name in MODALITIES] for row in rows])
        draws = self.window_draws(epoch, indices)[:, 0].tolist() if self.training else [0.0] * len(rows)
        windows = [self._windows(row, draw) for row, draw in zip(rows, draws, strict=True)]
        parts = [part for of_row in windows for part in of_row]
        batch = {
            "image": self._images(rows),
            "sequence": pad_sequence(parts, batch_first=True),  # (W, T, F)
            "length": torch.tensor([len(part) for part in parts]),
            "present": present,
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
        white 1; zeros where there is none."""
        images = {i: self._stored(row, "image") for i, row in enumerate(rows) if self._reads(row, "image")}
        sizes, kinds = {image.shape[1:] for image in images.values()}, {image.dtype.name for image in images.values()}
        if len(sizes) > 1 or kinds - {"uint8"}:
            units = ((i, torch.from_numpy(to_unit(image, self.spec.image_range))) for i, image in images.items())
            sizes, kinds = {(self.config.image_size,) * 2}, {"float32"}
            tensors = {i: resize_images(image[None], self.config.image_size)[0] for i, image in units}
        else:
            tensors = {i: torch.from_numpy(image) for i, image in images.items()}
        size, kind = next(iter(sizes), (1, 1)), torch.float32 if "float32" in kinds else torch.uint8
        channels = max((len(image) for image in tensors.values()), default=1)
        batch = torch.zeros(len(rows), channels, *size, dtype=kind)
        for i, image in tensors.items():
            batch[i] = image  # a grey one is the same in all channels
        return batch

    def _stored(self, row: Row, modality: str) -> np.ndarray:
        """An image (1 or 3, S, S) in its depth, a sequence (T, F) float32 as its file has it."""
        cell = getattr(row, modality)
        if (modality, cell) in self.kept.tensors:
            return self.kept.tensors[modality, cell]
        try:
            path = resolve(cell, self.table.root)
            if modality == "image":
                pixels = read_image(path, self.config.image.max_pixels)
                stored = shrink(pixels, self.config.image_size)
            else:
                stored = read_sequence(path, self.config.sequence, self.config.audio).frames
        except (BadFile, OSError) as error:
            finding = Finding(row.number, self.table.columns[modality], cell, f"{error} (it was right when checked)")
            raise OSError(self.table.line(finding)) from None
        self.kept.keep((modality, cell), stored)
        return stored

    def _windows(self, row: Row, draw: float) -> list[torch.Tensor]:
        """Each (T, F); one frame of means, which becomes zeros, where there is no sequence. draw: in [0, 1)."""
        if not self._reads(row, "sequence"):
            return [self.mean[None]]
        frames = torch.from_numpy(self._stored(row, "sequence"))
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
