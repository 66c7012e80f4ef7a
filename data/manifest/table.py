"""A manifest as rows: a .csv, .tsv or .jsonl with one sample a row, or a folder without one (see folder.py).

What can be told from the table alone is told here; the files that it names are not looked at.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.messages import closest, name_beside
from data.manifest.cells import SUFFIXES, Cells, read_cells
from data.manifest.columns import BRANCH_OF, MAY_BE_MISSING, MISSING, ROLES, roles_of_columns
from data.manifest.finding import Finding, of_table, refuse, shown
from data.manifest.folder import read_folder


@dataclass(frozen=True, slots=True)
class Row:
    """One sample; None: the cell is empty, or its column is not there.

    Fields:
        number: as in Finding.row; of a folder, the position of the sample from 1.
        image, sequence, group: as they are written; None also for the words of MISSING.
        extra: the cells of Table.extra_columns, "" where empty.
    """

    number: int
    image: str | None
    sequence: str | None
    label: str | None
    split: str | None
    group: str | None
    id: str | None
    extra: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Fields:
    path: as it was given.
    root: the folder that paths are relative to.
    columns: role -> the column's name in the file.
    extra_columns: those without a role, and those of a modality that the model does not read.
    rows: all of them, in the order of the file, whatever is wrong with them.
    findings: what is wrong with single rows. Of a folder: with single files; no rows were made of those.
    """

    path: Path
    root: Path
    columns: dict[str, str]
    extra_columns: tuple[str, ...]
    rows: list[Row]
    findings: list[Finding]

    def cells(self, row: Row) -> dict[str, str]:
        """The row's number, as "row", and its cells, by column; "" where there is none. A column called "row" gets
        another name."""
        roles = {column: getattr(row, role) or "" for role, column in self.columns.items()}
        cells = roles | dict(zip(self.extra_columns, row.extra, strict=True))
        return {"row": str(row.number)} | {name_beside(["row"], name, cells): cell for name, cell in cells.items()}

    def line(self, finding: Finding) -> str:
        """The rows of a folder are none to its owner."""
        is_table = self.path.suffix.lower() in SUFFIXES
        return (finding if is_table else finding._replace(row=None, column=None)).line(self.path)


def read_table(
    path: Path,
    *,
    root: Path | None = None,
    columns: Mapping[str, str] | None = None,
    modalities: Sequence[str] = ("image", "sequence"),
    needs_label: bool = True,
) -> Table:
    """The rows of a file or a folder.

    Args:
        root: see Table; by default the folder of the file, or the folder itself.
        columns: role -> name of its column, which wins over the names in ROLES (data.columns).
        modalities: those that the model reads. The column of another is no role and travels as an extra one.
        needs_label: for training: a label must be there, and the same sample or id twice is a finding. False: for
            prediction, where labels may be absent and each row stands for itself.

    Raises FileNotFoundError, or Findings with what makes the table as a whole unreadable.
    """
    columns, findings = columns or {}, []
    mode = _stat(path).st_mode
    is_folder = stat.S_ISDIR(mode)
    if root is not None and not root.is_dir():
        findings.append(of_table(f"data.root: {shown(str(root), 1000)} is no folder"))
    if is_folder and columns and needs_label:  # else they are those of the training
        findings.append(of_table("data.columns: a folder has no columns to choose from; leave it out"))
    refuse(path, findings if is_folder else findings + _unreadable(path, mode))
    if is_folder:
        cells, of_files = read_folder(path, root=root or path, modalities=modalities)
        place = {name: i for i, name in enumerate(cells.columns) if name in modalities or name not in BRANCH_OF}
    else:
        cells, of_files = read_cells(path), []
        place, findings = roles_of_columns(cells.columns, columns, modalities, needs_label)
        if not cells.rows:
            findings.append(of_table("has a header and no rows; add a row for each sample"))
        refuse(path, findings)
    extra = [i for i in range(len(cells.columns)) if i not in place.values()]
    names = {role: cells.columns[i] for role, i in place.items()}
    rows = _rows(cells, place, extra)
    if needs_label:
        refuse(path, [*_nowhere([row for row in rows if row.number not in cells.malformed], names, modalities)])
    if is_folder:
        of_rows = _findings_of_samples(rows, modalities)
    else:
        of_rows = _findings_of_rows(rows, cells, place, modalities, needs_label)
    root = root or (path if is_folder else path.parent)
    return Table(path, root, names, tuple(cells.columns[i] for i in extra), rows, [*of_files, *of_rows])


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(f"{shown(str(path), 1000)}: is a link to a file that is not there") from None
        raise FileNotFoundError(f"{shown(str(path), 1000)}: is not there{_hint(path)}") from None
    except (OSError, ValueError) as error:
        refuse(path, [of_table(f"cannot be read: {getattr(error, 'strerror', None) or error}")])


def _hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor is the folder {shown(str(path.parent), 1000)}"
    beside = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in SUFFIXES or p.is_dir())
    near = closest(path.name, beside)
    return f"; did you mean '{shown(near)}'?" if near else ""


def _unreadable(path: Path, mode: int) -> list[Finding]:
    if not stat.S_ISREG(mode):
        return [of_table("is a device, a pipe or a socket, and was not opened; give a file or a folder")]
    if path.suffix.lower() in SUFFIXES:
        return []
    remedies = {
        ".json": "write one object a line and name it .jsonl",
        ".xlsx": "save it from the spreadsheet as 'CSV UTF-8'",
        ".gz": "unpack it first",
    }
    remedies |= {".xls": remedies[".xlsx"], ".ods": remedies[".xlsx"], ".zip": remedies[".gz"]}
    remedy = remedies.get(path.suffix.lower(), "rename it if it is one of these")
    return [of_table(f"is no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, and no folder; {remedy}")]


def _rows(cells: Cells, place: Mapping[str, int], extra: list[int]) -> list[Row]:
    at = [(place.get(role), role in MAY_BE_MISSING) for role in ROLES]
    rows = []
    for number, row in zip(cells.numbers, cells.rows, strict=True):
        of_roles = [None if i is None else row[i] or None for i, _ in at]
        of_roles = [
            None if cell is not None and missing and cell.casefold() in MISSING else cell
            for cell, (_, missing) in zip(of_roles, at, strict=True)
        ]
        rows.append(Row(number, *of_roles, tuple([row[i] or "" for i in extra])))
    return rows


def _nowhere(rows: list[Row], names: Mapping[str, str], modalities: Sequence[str]) -> Iterator[Finding]:
    """A modality that the model reads and no row has."""
    for modality in modalities:
        if rows and all(getattr(row, modality) is None for row in rows):
            remedy = f", or {BRANCH_OF[modality]}=null for a one-branch model" if len(modalities) > 1 else ""
            article = "an" if modality == "image" else "a"
            yield of_table(f"no row has {article} {modality}; name files{remedy}", names[modality])


def _findings_of_samples(rows: list[Row], modalities: Sequence[str]) -> Iterator[Finding]:
    """Of a folder: a sample without a file that the model reads, which then has one that it does not read."""
    for row in rows:
        if row.image is None and row.sequence is None:
            problem = f"has no {modalities[0]} beside it, and the model reads nothing else; add one, or move it away"
            yield Finding(row.number, None, row.extra[0], problem)


def _findings_of_rows(
    rows: list[Row], cells: Cells, place: Mapping[str, int], modalities: Sequence[str], needs_label: bool
) -> Iterator[Finding]:
    first_of: dict[tuple[str | None, ...], Row] = {}
    column = {role: cells.columns[i] for role, i in place.items()}
    for row in rows:
        if row.number in cells.malformed:
            yield cells.malformed[row.number]
            continue
        if not any([row.image, row.sequence, row.label, row.split, row.group, row.id, *row.extra]):
            yield Finding(row.number, None, None, "is empty; fill it in or delete it")
            continue
        for role, i in place.items():
            if (row.number, i) in cells.nested:
                problem = "is a list or an object; a cell is one text, and a row has one class"
                yield Finding(row.number, column[role], getattr(row, role), problem)
        if row.image is None and row.sequence is None:
            first, *second = [column[modality] for modality in modalities]
            also = f", and so is column {shown(second[0])}" if second else ", and the model reads nothing else"
            yield Finding(row.number, first, None, f"is empty{also}; name a file, or delete the row")
        if needs_label:
            yield from _findings_for_training(row, column, first_of)


def _findings_for_training(
    row: Row, column: dict[str, str], first_of: dict[tuple[str | None, ...], Row]
) -> Iterator[Finding]:
    """
    Args:
        first_of: the first row with these files, or this id; written here.
    """
    if row.label is None:
        yield Finding(row.number, column["label"], None, "is empty; name the class, or delete the row")
    elif row.image is not None or row.sequence is not None:
        first = first_of.setdefault(("files", row.image, row.sequence), row)
        role = "image" if row.image is not None else "sequence"
        if first is not row and row.label == first.label:
            problem = f"row {first.number} has the same files and label; delete one of them"
            yield Finding(row.number, column[role], getattr(row, role), problem)
        elif first is not row:
            problem = f"two labels for the same files: row {first.number} has '{shown(first.label)}'; keep one"
            yield Finding(row.number, column["label"], row.label, problem)
    if row.id is not None and (first := first_of.setdefault(("id", row.id), row)) is not row:
        problem = f"row {first.number} has this id too; give each row its own"
        yield Finding(row.number, column["id"], row.id, problem)
