"""Which row belongs to which split, and what the classes are."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from data.manifest.cells import SPLIT_OF_WORD, SPLIT_WORDS
from data.manifest.finding import Finding, listed, of_table
from data.manifest.table import Row, Table

_TITLES = {"train": "training", "val": "validation", "test": "test"}
_INTEGER = re.compile("[+-]?[0-9]{1,18}")


def split_of_rows(table: Table, fractions: Mapping[str, float]) -> tuple[list[str | None], list[Finding]]:
    """The split of each row, "train", "val" or "test", and what is wrong with the words that say so.

    Without a split column a hash of the row's group decides, else of its id, else of its paths: so it is the same on
    every machine, and rows that are added or removed move no others.

    Args:
        fractions: split -> fraction of the rows, for a table without a split column.

    None: the split column has no such word.
    """
    if "split" not in table.columns:
        return [_drawn(row, fractions) for row in table.rows], []
    splits = [SPLIT_OF_WORD.get((row.split or "").casefold()) for row in table.rows]
    return splits, [*_wrong_words(table, splits), *_groups_in_two(table, splits)]


def _drawn(row: Row, fractions: Mapping[str, float]) -> str:
    if row.group is not None:
        key = ("group", row.group)
    else:
        key = ("id", row.id) if row.id is not None else ("files", row.image or "", row.sequence or "")
    # repr() would not do: what it escapes depends on the version of Python.
    digest = hashlib.blake2b("\0".join(key).encode(errors="replace"), digest_size=8).digest()
    position, end = int.from_bytes(digest, "big") / 2**64, 0.0
    for split in ("train", "val"):
        end += fractions[split]
        if position < end:
            return split
    return "test"


def _wrong_words(table: Table, splits: list[str | None]) -> Iterator[Finding]:
    malformed = {finding.row for finding in table.findings if finding.column is None}
    for row, split in zip(table.rows, splits, strict=True):
        if split is None and row.number not in malformed:
            problem = f"is not a split; allowed: {', '.join(SPLIT_OF_WORD)}, or no split column at all"
            yield Finding(row.number, table.columns["split"], row.split or "", problem)


def _groups_in_two(table: Table, splits: list[str | None]) -> Iterator[Finding]:
    """The rows of a group outside of training, or, where none is in it, outside of the split of its first row."""
    home: dict[str, tuple[str, int]] = {}
    for row, split in zip(table.rows, splits, strict=True):
        if row.group is not None and split is not None:
            known = home.setdefault(row.group, (split, row.number))
            if split == "train" != known[0]:
                home[row.group] = (split, row.number)
    for row, split in zip(table.rows, splits, strict=True):
        if row.group is None or split is None or split == home[row.group][0]:
            continue
        other, number = home[row.group]
        problem = f"is in {split} here and in {other} in row {number}; a group belongs to one split"
        yield Finding(row.number, table.columns["group"], row.group, problem)


def split_findings(rows: Sequence[Row], splits: Sequence[str], columns: Mapping[str, str]) -> list[Finding]:
    """What keeps these rows, as a whole, from being trained on.

    Args:
        rows, splits: those without a finding.
        columns: see Table. Where none says the split, each class must be in each; where one does, a rare class may be
            left out of validation or test by choice.
    """
    count = Counter((row.label, split) for row, split in zip(rows, splits, strict=True))
    classes = class_names_of(label for label, _ in count)
    if not classes:
        return [of_table("no row is left with which to train")]
    findings = []
    if len(classes) == 1:
        problem = f"every row is of the class {listed(classes)}; a classifier needs two or more"
        findings.append(of_table(problem, columns["label"]))
    column = columns.get("split")
    for split, title in _TITLES.items():
        remedy = f"add rows, raise data.fractions.{split}, or add a split column"
        if column is not None:
            remedy = f"write {SPLIT_WORDS[split][0]} in the column {column} of some rows"
        lacking = [name for name in classes if not count[name, split]]
        if len(lacking) == len(classes):
            findings.append(of_table(f"has no {title} rows; {remedy}", column))
        elif lacking and (split == "train" or column is None):
            problem = f"{len(lacking):,} of {len(classes):,} classes have no {title} rows: {listed(lacking)}; {remedy}"
            findings.append(of_table(problem, columns["label"]))
    return findings


def class_names_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Each label once: as numbers if all are integers, else by code point. "1" and "01" are two, "01" first."""
    names = sorted(set(labels))
    return tuple(sorted(names, key=int) if all(_INTEGER.fullmatch(name) for name in names) else names)


def labels_alike(labels: Iterable[str]) -> Iterator[str]:
    """A line for labels that are probably meant to be one class: told apart by case, by spaces, by how an accent is
    stored, or by how an integer is written."""
    alike: dict[str, list[str]] = {}
    for name in class_names_of(labels):
        folded = " ".join(unicodedata.normalize("NFC", name).casefold().split())
        alike.setdefault(str(int(folded)) if _INTEGER.fullmatch(folded) else folded, []).append(name)
    for names in alike.values():
        if len(names) > 1:
            yield f"{listed(names)} are {len(names)} classes; if they are meant to be one, write them alike"
