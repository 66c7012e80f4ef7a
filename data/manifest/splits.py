"""Which row belongs to which split, and what the classes are."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import Field, model_validator

from app.section import Section
from data.manifest.columns import SPLIT_OF_WORD, SPLIT_WORDS
from data.manifest.finding import MOST_LINES, Finding, of_table, shown
from data.manifest.table import Row, Table

_TITLES = {"train": "training", "val": "validation", "test": "test"}
_INTEGER = re.compile("[+-]?[0-9]{1,18}")


class FractionsConfig(Section):
    train: float = Field(0.7, gt=0, description="of the rows (of their groups, where there are) that train")
    val: float = Field(0.15, gt=0, description="of those that validate")
    test: float = Field(0.15, gt=0, description="of those that are kept for the test")

    @model_validator(mode="after")
    def _whole(self) -> "FractionsConfig":
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train {self.train:g} + val {self.val:g} + test {self.test:g} is {total:g}, must be 1")
        return self


def split_of_rows(table: Table, fractions: Mapping[str, float]) -> tuple[list[str | None], list[Finding]]:
    """The split of each row, "train", "val" or "test", and what is wrong with the words that say so.

    Without a split column a hash of the row's group decides, else of its id, else of its paths: so it is the same on
    every machine, and rows that are added or removed move no others.

    Args:
        fractions: split -> fraction of the rows, for a table without a split column.

    None: the split column has no such word (a finding), or the row is malformed (a finding of the table).
    """
    if "split" not in table.columns:
        malformed = {finding.row for finding in table.findings if finding.column is None} - {None}
        return [None if row.number in malformed else _drawn(row, fractions) for row in table.rows], []
    splits = [SPLIT_OF_WORD.get((row.split or "").casefold()) for row in table.rows]
    return splits, [*_wrong_words(table, splits), *_groups_in_two(table, splits)]


def _drawn(row: Row, fractions: Mapping[str, float]) -> str:
    if row.group is not None:
        key = ("group", row.group)
    else:
        key = ("id", row.id) if row.id is not None else ("files", row.image or "", row.sequence or "")
    # No cell has a NUL. repr() would not do: what it escapes depends on the version of Python.
    digest = hashlib.blake2b("\0".join(key).encode(), digest_size=8).digest()
    position, end = int.from_bytes(digest, "big") / 2**64, 0.0
    for split in ("train", "val"):
        end += fractions[split]
        if position < end:
            return split
    return "test"


def _wrong_words(table: Table, splits: list[str | None]) -> Iterator[Finding]:
    column, allowed = table.columns["split"], ", ".join(SPLIT_OF_WORD)
    told = {(finding.row, finding.column) for finding in table.findings}
    for row, split in zip(table.rows, splits, strict=True):
        if split is None and not told & {(row.number, None), (row.number, column)}:
            problem = "is empty" if row.split is None else "is no split"
            yield Finding(row.number, column, row.split, f"{problem}; allowed: {allowed}, or no split column at all")


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


def split_findings(
    rows: Sequence[Row], splits: Sequence[str | None], *, split_column: str | None, label_column: str
) -> list[Finding]:
    """What keeps these rows, as a whole, from being trained on.

    Args:
        rows, splits: those that are left. A row without a label or a split counts nowhere.
        split_column: None: the splits are drawn (see split_of_rows).
    """
    count = Counter((row.label, split) for row, split in zip(rows, splits, strict=True))
    classes = class_names_of({label for label, split in count if label is not None and split is not None})
    if not classes:
        return [of_table("no row is left with which to train")]
    findings = []
    if len(classes) == 1:
        problem = f"every row is of the class '{shown(classes[0])}'; a classifier needs two or more"
        findings.append(of_table(problem, label_column))
    empty = [split for split in SPLIT_WORDS if not any(count[label, split] for label in classes)]
    for split in empty:
        findings.append(of_table(f"has no {_TITLES[split]} rows; {_remedy(split, split_column, '')}", split_column))
    needed = SPLIT_WORDS if split_column is None else ("train",)  # a rare class may be left out of a test by choice
    lacking = {
        label: tuple(split for split in needed if split not in empty and not count[label, split]) for label in classes
    }
    alike = Counter(missing for missing in lacking.values() if missing)
    for label, missing in lacking.items():
        if not missing or alike[missing] > MOST_LINES:
            continue
        has = ", ".join(f"{count[label, split]} {_TITLES[split]}" for split in SPLIT_WORDS if count[label, split])
        problem = f"the class has no {_rows(missing)}, but {has}; {_remedy(missing[0], split_column, 'of it ')}"
        findings.append(Finding(None, label_column, label, problem))
    for missing, number in alike.items():
        if number > MOST_LINES:  # as where a column of names or numbers is taken for that of the label
            some = next(label for label in classes if lacking[label] == missing)
            problem = f"{number:,} of {len(classes):,} classes have no {_rows(missing)}, such as '{shown(some)}'; "
            problem += f"is this the column of the classes? If it is, {_remedy(missing[0], split_column, 'of them ')}"
            findings.append(of_table(problem, label_column))
    return findings


def _rows(splits: Sequence[str]) -> str:
    return f"{' or '.join(_TITLES[split] for split in splits)} rows"


def _remedy(split: str, split_column: str | None, of_it: str) -> str:
    if split_column is not None:
        return f"write {SPLIT_WORDS[split][0]} in the column {shown(split_column)} of some rows {of_it}".strip()
    return f"add rows {of_it}(the split is drawn), raise data.fractions.{split}, or add a split column"


def class_names_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Each label once: as numbers if all are integers, else by code point. "1" and "01" are two, "01" first."""
    names = sorted(set(labels))
    return tuple(sorted(names, key=int) if all(_INTEGER.fullmatch(name) for name in names) else names)


def label_findings(labels: Iterable[str], *, label_column: str) -> list[Finding]:
    """Labels that are probably meant to be one class: told apart by case, by spaces, by how an accent is stored, or
    by how an integer is written."""
    alike: dict[str, list[str]] = {}
    for name in class_names_of(labels):
        folded = " ".join(unicodedata.normalize("NFC", name).casefold().split())
        alike.setdefault(str(int(folded)) if _INTEGER.fullmatch(folded) else folded, []).append(name)
    findings = []
    for names in alike.values():
        if len(names) > 1:
            listed = " and ".join(f"'{shown(name)}'" for name in names)
            problem = f"{listed} are {len(names)} classes; if they are meant to be one, write them alike"
            findings.append(of_table(problem, label_column))
    return findings
