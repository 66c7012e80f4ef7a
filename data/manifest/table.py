"""A manifest as rows: a .csv, .tsv or .jsonl with one sample a row, or a folder of files.

What is wrong with the table alone is found here; the files that it names are not looked at.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.messages import closest, name_beside, nearest
from data.manifest.cells import SUFFIXES, Cells, read_cells, read_folder
from data.manifest.finding import Finding, listed, of_table, refuse, shown

# Role -> the names of columns that say so, whatever their case.
ROLES = {
    "image": ("image", "image_file_name", "image_path"),
    "sequence": ("sequence", "sequence_file_name", "audio", "audio_file_name", "audio_path", "audio_filepath", "wav"),
    "label": ("label", "class", "target"),
    "split": ("split", "subset"),
    "group": ("group", "speaker", "speaker_id", "subject"),
    "id": ("id",),
}
BRANCH_OF = {"image": "model.image_branch", "sequence": "model.temporal_branch"}
# For what is missing, whatever their case, in the columns of these roles. In others they are text like any.
MISSING = ("", "na", "nan", "null", "none")
MAY_BE_MISSING = ("image", "sequence", "group")


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
        modalities: those that the model reads. The column of another travels as an extra one.
        needs_label: for training: a label must be there, and the same sample or id twice is a finding. False: for
            prediction, where labels may be absent and each row stands for itself.

    Raises FileNotFoundError, or Findings with what makes the table as a whole unreadable.
    """
    if root is not None and not root.is_dir():
        refuse(path, [of_table(f"data.root: {root} is not a folder")])
    if path.is_dir():
        root = root or path
        cells = read_folder(path, root, modalities)
    elif not path.is_file():  # nor a device or a pipe
        raise FileNotFoundError(f"{path}: is not there, or neither a file nor a folder")
    elif path.suffix.lower() not in SUFFIXES:
        remedy = "save a spreadsheet as 'CSV UTF-8', unpack an archive"
        refuse(path, [of_table(f"is neither a {', '.join(SUFFIXES)} file nor a folder; {remedy}")])
    else:
        cells = read_cells(path)
    names, findings = _columns_of_roles(cells.columns, columns or {}, modalities, needs_label)
    if not cells.rows:
        findings.append(of_table("has a header and no rows; add a row for each sample"))
    refuse(path, findings)
    extra = tuple(column for column in cells.columns if column not in names.values())
    rows = [_row(number, row, names, extra) for number, row in cells.rows.items()]
    findings = [*cells.findings, *_findings_of_rows(rows, cells, names, modalities, needs_label)]
    return Table(path, root or path.parent, names, extra, rows, findings)


def _columns_of_roles(
    columns: list[str], chosen: Mapping[str, str], modalities: Sequence[str], needs_label: bool
) -> tuple[dict[str, str], list[Finding]]:
    """Role -> its column, and what is wrong with the header and with data.columns (`chosen`).

    For a prediction (not needs_label) split, group and id are no roles, and `chosen` is that of the training.
    """
    problems = [f"data.columns.{role}: unknown role; {nearest(role, [*ROLES])}" for role in chosen if role not in ROLES]
    taken = {name.strip().casefold() for role, name in chosen.items() if role in ROLES}
    roles = {}
    for role in ROLES if needs_label else (*modalities, "label"):
        if role in BRANCH_OF and role not in modalities:
            continue
        if role in chosen:
            wanted = f"called '{shown(chosen[role])}' (data.columns.{role})"
            found = [column for column in columns if column.casefold() == chosen[role].strip().casefold()]
        else:
            wanted = f"for the {role} ({', '.join(ROLES[role])})"
            found = [column for column in columns if column.casefold() in ROLES[role]]
            found = [column for column in found if column.casefold() not in taken]
        needed = role in modalities or (needs_label and (role == "label" or role in chosen))
        if len(found) == 1:
            roles[role] = found[0]
        elif found:
            choice = f", or say which it is: data.columns={{{role}: {shown(found[-1])}}}" if needs_label else ""
            problems.append(f"columns {listed(found)} can all be the {role}; rename all but one{choice}")
        elif needed:
            free = [column for column in columns if column not in roles.values()]
            near = next((name for known in ROLES[role] if (name := closest(known, free))), None)
            hint = f" (is it '{shown(near)}'?)" if near else ""
            remedy = "rename one" + (f", or data.columns={{{role}: ITS_NAME}}" if needs_label else "")
            if role in BRANCH_OF and len(modalities) > 1:
                one_branch = f"{BRANCH_OF[role]}=null for a one-branch model"
                remedy += f", or {one_branch if needs_label else 'add an empty one: no row then has one'}"
            problems.append(f"no column {wanted}; the file has {listed(columns)}{hint}; {remedy}")
    return roles, [of_table(problem) for problem in problems]


def _row(number: int, values: Mapping[str, Any], names: Mapping[str, str], extra: Sequence[str]) -> Row:
    cells = {role: _text(values.get(names.get(role))) for role in ROLES}
    for role in MAY_BE_MISSING:
        if cells[role].casefold() in MISSING:
            cells[role] = ""
    return Row(number, *(cell or None for cell in cells.values()), tuple([_text(values.get(name)) for name in extra]))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _findings_of_rows(
    rows: list[Row], cells: Cells, names: Mapping[str, str], modalities: Sequence[str], needs_label: bool
) -> Iterator[Finding]:
    first_of: dict[tuple[str | None, ...], Row] = {}
    malformed = {finding.row for finding in cells.findings}
    for row in rows:
        if row.number in malformed:
            continue
        for role, name in names.items():
            if isinstance(cells.rows[row.number].get(name), list | dict):
                problem = "is a list or an object; a cell is one text, and a row has one class"
                yield Finding(row.number, name, getattr(row, role), problem)
        if row.image is None and row.sequence is None:
            where = " and ".join(names[modality] for modality in modalities)
            yield Finding(row.number, where, None, "is empty; name a file, or delete the row")
        if needs_label:
            yield from _findings_for_training(row, names, first_of)


def _findings_for_training(
    row: Row, names: Mapping[str, str], first_of: dict[tuple[str | None, ...], Row]
) -> Iterator[Finding]:
    """
    Args:
        first_of: the first row with these files, or this id; written here.
    """
    if row.label is None:
        yield Finding(row.number, names["label"], None, "is empty; name the class, or delete the row")
    elif row.image is not None or row.sequence is not None:
        first = first_of.setdefault(("files", row.image, row.sequence), row)
        role = "image" if row.image is not None else "sequence"
        if first is not row and row.label == first.label:
            problem = f"row {first.number} has the same files and label; delete one of them"
            yield Finding(row.number, names[role], getattr(row, role), problem)
        elif first is not row:
            problem = f"two labels for the same files: row {first.number} has '{shown(first.label)}'; keep one"
            yield Finding(row.number, names["label"], row.label, problem)
    if row.id is not None and (first := first_of.setdefault(("id", row.id), row)) is not row:
        problem = f"row {first.number} has this id too; give each row its own"
        yield Finding(row.number, names["id"], row.id, problem)
