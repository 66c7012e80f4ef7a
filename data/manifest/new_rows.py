"""Rows of another table, for a model that is trained already: its checkpoint says how they are read."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from data.manifest.cache import Uncached
from data.manifest.check import check_files, unknown_labels
from data.manifest.config import ManifestConfig
from data.manifest.finding import Finding, refuse
from data.manifest.fingerprint import fingerprints
from data.manifest.rows import ManifestRows
from data.manifest.table import read_table
from data.spec import DataSpec


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
        facts, of_files = check_files(self.table, config, modalities, saved)
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
        return {
            "new": ManifestRows(
                self.table,
                self.rows,
                self.config,
                self.spec,
                self.modalities,
                image_mean=image_mean,
                image_std=image_std,
                seed=seed,
                training=False,
                edge=self.config.image_size,
                samples=Uncached(self.table.root, self.config),  # each is read once
            )
        }


def _by_row(findings: list[Finding]) -> dict[int, str]:
    lines: dict[int, list[str]] = {}
    for finding in findings:
        where = ", ".join(text for text in (finding.column, finding.value) if text)
        lines.setdefault(finding.row, []).append(f"{where} {finding.problem}" if where else finding.problem)
    return {row: "; ".join(texts) for row, texts in lines.items()}
