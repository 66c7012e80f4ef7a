"""Rows of cells, as a .csv, .tsv or .jsonl file or a folder holds them. What a column means does not matter here."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.manifest.finding import Finding, of_file, of_table, refuse, shown

# Whatever their case; the folders of splits are called so too.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".jsonl")
_SAVE_AS_UTF_8 = "save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"

FILE_SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    "sequence": (".wav", ".flac", ".ogg", ".mp3", ".npy", ".npz", ".csv", ".tsv"),
}
_MODALITY_OF = {suffix: modality for modality, suffixes in FILE_SUFFIXES.items() for suffix in suffixes}
_HIDDEN = ("thumbs.db", "desktop.ini")  # and every name that starts with a dot
_AS_WRITTEN = ("parse_int", "parse_float", "parse_constant")  # numbers are texts: 1.10 is not 1.1
_LAYOUT = "files lie as <split>/<class>/<name>"


class Cells(NamedTuple):
    """Fields:
    columns: their names, no two alike.
    rows: number (see Finding.row; of a folder, the position from 1) -> column -> cell: a text, of a .jsonl any value.
        A row that a finding calls malformed has no cells.
    findings: malformed rows; files of a folder that could not become a row.
    """

    columns: list[str]
    rows: dict[int, dict[str, Any]]
    findings: list[Finding]


def read_cells(path: Path) -> Cells:
    """The cells of a file with one of SUFFIXES, UTF-8 with or without a byte order mark; blank rows are left out.

    Raises Findings for what makes the whole file unreadable.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        place = f"byte 0x{content[error.start]:02x} in line {line}"
        refuse(path, [of_table(f"is not UTF-8 ({place}); {_SAVE_AS_UTF_8}")])
    if "\0" in text:
        refuse(path, [of_table(f"holds NUL, as UTF-16 does, or a damaged file; {_SAVE_AS_UTF_8}")])
    separator = SEPARATORS.get(path.suffix.lower())
    cells = _read_objects(path, text) if separator is None else _read_separated(path, text, separator)
    if not cells.columns:
        refuse(path, [of_table("is empty; a table names its columns in the first row, a .jsonl has one object a line")])
    return cells


def _read_separated(path: Path, text: str, separator: str) -> Cells:
    lines: list[list[str]] = []
    try:
        lines += csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    except csv.Error as error:
        problem = f"cannot be read ({error}); look at the double quotes from here on"
        refuse(path, [Finding(len(lines) + 1, None, None, problem)])
    filled = [(number, line) for number, line in enumerate(lines, start=1) if any(cell.strip() for cell in line)]
    if not filled:
        return Cells([], {}, [])
    # pandas writes its index without a name, and a spreadsheet empty columns at the end.
    columns = [name.strip() or f"unnamed_{i}" for i, name in enumerate(filled[0][1], start=1)]
    if len(columns) == 1 and (other := next((s for s in ",;\t|" if s in columns[0]), None)):
        wanted = "commas" if separator == "," else "tabs"
        refuse(path, [of_table(f"its columns are separated by {other!r}, not by {wanted}; save it with {wanted}")])
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        refuse(path, [of_table("is the name of several columns; rename all but one", name) for name in twice])
    rows, findings = {}, []
    for number, line in filled[1:]:
        rows[number] = dict(zip(columns, line, strict=False)) if len(line) == len(columns) else {}
        if not rows[number]:
            problem = f"has {len(line)} cells, the header has {len(columns)}; put a text with separators in double "
            findings.append(Finding(number, None, None, problem + "quotes, or add what is missing"))
    return Cells(columns, rows, findings)


def _read_objects(path: Path, text: str) -> Cells:
    rows, findings = {}, []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line, object_pairs_hook=_object, **dict.fromkeys(_AS_WRITTEN, str))
            json.dumps(rows[number], ensure_ascii=False).encode()  # half a character cannot be written
            why = None if isinstance(rows[number], dict) else "it is another value"
            why = "it has a NUL" if "\\u0000" in line else why
        except (ValueError, RecursionError) as error:
            why = str(error)
        if why:
            problem = f'is not a JSON object ({why}); write {{"image": "a.png", ...}} in each line'
            findings.append(Finding(number, None, line.strip(), problem))
    refuse(path, findings)
    return Cells(list(dict.fromkeys(name for row in rows.values() for name in row)), rows, [])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name.strip() for name, _ in pairs]
    if len(names) != len(set(names)):
        raise ValueError("it has one key twice")
    return dict(zip(names, (value for _, value in pairs), strict=True))


def read_folder(folder: Path, root: Path, modalities: Sequence[str]) -> Cells:
    """The columns image, sequence, label and split, of files that lie as <split>/<class>/<name>; sorted by path.

    Files of one stem are one sample; a class may have folders below it. A modality that the model does not read is a
    column only if there are files.

    Args:
        root: the folder, or one above it. Paths are relative to this.

    Raises Findings where the layout is another, or where there is no sample; OSError for what cannot be looked into.
    """
    if not folder.resolve().is_relative_to(root.resolve()):
        refuse(folder, [of_table(f"does not lie in data.root, {root}; leave data.root out")])
    prefix = folder.resolve().relative_to(root.resolve())
    classes, files, findings = set(), {}, []
    for top, folders, names in os.walk(folder, onerror=_raise):
        below = Path(top).relative_to(folder)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))  # that os.walk goes on with
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]  # not followed
        findings += [of_file(below / name, "is a link to a folder; move the folder itself here") for name in links]
        if not below.parts:
            wrong = [name for name in folders if name.casefold() not in SPLIT_OF_WORD]
            problem = f"is not called like a split; {_LAYOUT}, splits are {', '.join(SPLIT_OF_WORD)}"
            refuse(folder, [of_file(name, problem) for name in wrong])
        if len(below.parts) == 2:
            classes.add(below.parts)
        for path in sorted(below / name for name in names if not _is_hidden(name)):
            if problem := _why_no_sample(path):
                findings.append(of_file(path, problem))
            else:
                stem = (*path.parts[:2], path.with_suffix("").as_posix())
                modality = _MODALITY_OF[path.suffix.lower()]
                files.setdefault(stem, {}).setdefault(modality, []).append(path)
    empty = sorted(classes - {stem[:2] for stem in files})
    findings += [of_file("/".join(parts), "is a class without a sample; add files, or delete it") for parts in empty]
    rows: dict[int, dict[str, Any]] = {}
    for (split, label, _), of_stem in sorted(files.items()):
        if several := next((paths for paths in of_stem.values() if len(paths) > 1), None):
            problem = f"has the stem of '{shown(several[0].name)}'; a sample has one image and one sequence: rename one"
            findings.append(of_file(several[1], problem))
        elif not of_stem.keys() & set(modalities):
            problem = f"has no {modalities[0]} beside it, and the model reads nothing else; add one, or move it away"
            findings.append(of_file(next(iter(of_stem.values()))[0], problem))
        else:
            sample = {modality: (prefix / paths[0]).as_posix() for modality, paths in of_stem.items()}
            rows[len(rows) + 1] = sample | {"label": label, "split": split}
    if not rows:
        refuse(folder, findings or [of_table(f"has no samples; {_LAYOUT}")])
    there = {name for row in rows.values() for name in row}.union(modalities)
    return Cells([name for name in ("image", "sequence", "label", "split") if name in there], rows, findings)


def _why_no_sample(path: Path) -> str | None:
    if len(path.parts) < 3:
        return f"does not lie in the folder of a class; {_LAYOUT}"
    if path.suffix.lower() not in _MODALITY_OF:
        return f"is neither an image nor a sequence ({', '.join(_MODALITY_OF)}); move it away"
    if any("\udc80" <= character <= "\udcff" for character in str(path)):
        return "its name is not UTF-8; rename it"
    return None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _HIDDEN


def _raise(error: OSError) -> None:
    raise error
