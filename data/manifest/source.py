"""A table of files as a data source: its rows in three splits, and rows to predict."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from app.messages import Findings
from data.manifest.cache import Cache, Facts, File, SequenceFacts, folder_of
from data.manifest.check import Checked, check, check_files, unknown_labels
from data.manifest.config import ManifestConfig
from data.manifest.finding import Finding, first_lines, refuse
from data.manifest.rows import ManifestRows
from data.manifest.table import Row, read_table
from data.spec import MODALITIES, SPLITS, DataSpec


class Manifest:
    """The source `manifest` (see data/source.py for what a source gives).

    Raises FileNotFoundError or CacheError; or Findings for all that is wrong, with data.on_error=skip only where more
    rows than data.skip_limit cannot be used, or too little is left.
    """

    Config: ClassVar = ManifestConfig

    def __init__(self, config: ManifestConfig, saved: DataSpec | None = None, modalities: Sequence[str] = MODALITIES):
        self.config, self.modalities = config, tuple(modalities)
        checked = check(config, self.modalities, saved, folder_of(config))
        self.table, self.cache = checked.table, checked.cache
        self.skipped, self.notes = skip_or_raise(checked, config), checked.notes
        self.notes += [self.cache.note()] if self.cache.folder else []
        self.rows = {split: checked.rows_of(split) for split in SPLITS}
        self.spec = describe(self.rows, checked, config, self.modalities, saved)
        self.fingerprints = {split: fingerprints(rows, checked.facts, modalities) for split, rows in self.rows.items()}
        self.lengths = lengths_of(self.rows["train"], checked.facts, config)
        self.crop_edge = crop_edge(self.rows["train"], checked.facts, config)

    def fingerprint(self, split: str, modality: str | None) -> str:
        return self.fingerprints[split][modality]

    def splits(self, *, seed: int, image_mean: Sequence[float], image_std: Sequence[float]) -> dict[str, ManifestRows]:
        prepared = {"seed": seed, "image_mean": image_mean, "image_std": image_std}
        splits = {split: make_rows(self, self.rows[split], **prepared) for split in ("val", "test")}
        splits["train"] = make_rows(self, self.rows["train"], training=True, edge=self.crop_edge, **prepared)
        if self.config.length_buckets and "sequence" in self.modalities:
            splits["train"].lengths = self.lengths
        return splits


class NewRows:
    """A source (see data/source.py) with one split, "new": the rows that can be predicted, in the table's order.

    Args:
        config, saved: of the checkpoint.
        root: folder that the paths start from; None: that of the table.

    Attributes:
        unreadable: by row number, why that row cannot be predicted.
        not_rows: of a folder, a line for each file of which no row could be made.
        unlabelled: by row number, what is wrong with its label; it can be predicted.

    Raises FileNotFoundError, or Findings where the table as a whole cannot be read.
    """

    skipped: ClassVar[list[dict[str, str]]] = []
    notes: ClassVar[list[str]] = []

    def __init__(
        self,
        manifest: Path,
        config: ManifestConfig,
        saved: DataSpec,
        modalities: Sequence[str],
        root: Path | None = None,
    ):
        self.config, self.spec, self.modalities = config, saved, tuple(modalities)
        columns = {"columns": config.columns, "needs_label": False}
        self.table = read_table(manifest, root=root, modalities=self.modalities, **columns)
        self.cache = Cache(self.table.root, config)  # each file is read once more: nothing is kept
        facts, of_files = check_files(self.table, self.cache, modalities, saved)
        refuse(manifest, [finding for finding in of_files if finding.is_of_the_whole])
        findings = [*self.table.findings, *of_files]
        self.not_rows = [self.table.line(finding) for finding in findings if finding.row is None]
        self.unreadable = _by_row([finding for finding in findings if finding.row is not None])
        self.unlabelled = _by_row(unknown_labels(self.table, saved.class_names))
        self.rows = [row for row in self.table.rows if row.number not in self.unreadable]
        self.fingerprints = fingerprints(self.rows, facts, self.modalities)

    def fingerprint(self, split: str, modality: str | None) -> str:
        return self.fingerprints[modality]

    def complete(self, predictions: Iterable[dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
        """A row for each of the table's: `predictions` are those of "new", with the columns `names`, which are empty
        in the others. Each has its `error`, "" for none."""
        predicted, nothing = iter(predictions), dict.fromkeys(names, "")
        return [
            nothing | {"error": self.unreadable[row.number]}
            if row.number in self.unreadable
            else next(predicted) | {"error": self.unlabelled.get(row.number, "")}
            for row in self.table.rows
        ]

    def cells(self) -> list[dict[str, str]]:
        """Of each row of the table, by column."""
        return [self.table.cells(row) for row in self.table.rows]

    def splits(self, *, seed: int, image_mean: Sequence[float], image_std: Sequence[float]) -> dict[str, ManifestRows]:
        return {"new": make_rows(self, self.rows, seed=seed, image_mean=image_mean, image_std=image_std)}


def make_rows(
    source: Manifest | NewRows, rows: list[Row], *, training: bool = False, edge: int | None = None, **prepared: Any
) -> ManifestRows:
    """edge, prepared: see ManifestRows; None: data.image_size."""
    config = source.config
    shape = {"training": training, "edge": edge or config.image_size, "cache": source.cache}
    return ManifestRows(source.table, rows, config, source.spec, source.modalities, **shape, **prepared)


def _by_row(findings: list[Finding]) -> dict[int, str]:
    lines: dict[int, list[str]] = {}
    for finding in findings:
        where = ", ".join(text for text in (finding.column, finding.value) if text)
        lines.setdefault(finding.row, []).append(f"{where} {finding.problem}" if where else finding.problem)
    return {row: "; ".join(texts) for row, texts in lines.items()}


def skip_or_raise(checked: Checked, config: ManifestConfig) -> list[dict[str, str]]:
    """The findings of the rows that are left out. Raises Findings where they must not be."""
    findings = checked.findings
    if not findings:
        return []
    whole = any(finding.is_of_the_whole for finding in findings)
    files = {finding.value for finding in findings if finding.row is None and not finding.is_of_the_whole}
    bad, total = len(checked.bad_rows()) + len(files), len(checked.table.rows) + len(files)
    share = bad / max(1, total)
    if config.on_error == "skip" and not whole and share <= config.skip_limit:
        return [{name: "" if v is None else str(v) for name, v in finding._asdict().items()} for finding in findings]
    lines = first_lines([checked.table.line(finding) for finding in findings])
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


def crop_edge(rows: list[Row], facts: dict[File, Facts], config: ManifestConfig) -> int:
    """Pixels of an edge of all images that crops are taken of: those of the largest, as it is stored."""
    images = (facts.get(("image", row.image)) for row in rows)
    largest = max((max(fact.width, fact.height) for fact in images if fact), default=0)
    return max(config.image_size, min(largest, config.stored_image_size))


def measure(sequences: Sequence[SequenceFacts]) -> dict[str, list[float]]:
    """Mean and deviation of each feature over all frames; of a feature that never changes the deviation is 1."""
    lengths = np.array([fact.length for fact in sequences], dtype=np.float64)[:, None]
    means = np.stack([fact.mean for fact in sequences])
    mean = (lengths * means).sum(0) / lengths.sum()
    spread = sum(np.array(fact.spread) for fact in sequences) + (lengths * np.square(means - mean)).sum(0)
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
        contents = [fact.digest if fact else "" for fact in files]
        digest.update(repr((row.label, contents)).encode())
    return f"{len(rows)} rows, {digest.hexdigest()[:16]}"


def fingerprints(rows: list[Row], facts: dict[File, Facts], modalities: Sequence[str]) -> dict[str | None, str]:
    """For each modality alone, and for none (None): of labels only."""
    return {None: fingerprint(rows, facts, ())} | {name: fingerprint(rows, facts, (name,)) for name in modalities}
