"""What tells some rows of a table from others."""

import hashlib
from collections.abc import Sequence

from data.manifest.facts import Facts, File
from data.manifest.table import Row


def fingerprint(rows: list[Row], facts: dict[File, Facts], modalities: Sequence[str]) -> str:
    """What tells these rows, in this order, from others: labels, and contents of files; not their names."""
    digest = hashlib.sha256()
    for row in rows:
        files = (facts.get((name, getattr(row, name))) for name in modalities)
        contents = [fact.digest.hex() if fact else "" for fact in files]
        digest.update(repr((row.label, contents)).encode())
    return f"{len(rows)} rows, {digest.hexdigest()[:16]}"


def fingerprints(rows: list[Row], facts: dict[File, Facts], modalities: Sequence[str]) -> dict[str | None, str]:
    """For each modality alone, and for none (None): of labels only."""
    return {None: fingerprint(rows, facts, ())} | {name: fingerprint(rows, facts, (name,)) for name in modalities}
