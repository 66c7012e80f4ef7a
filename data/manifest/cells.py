"""Reads .csv, .tsv and .jsonl as cells of text. What a column means is no matter here."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from data.manifest.finding import Finding, of_table, refuse, shown

SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".jsonl")
MOST_COLUMNS = 1000
_NAMES = {",": "commas", ";": "';'", "\t": "tabs", "|": "'|'"}
_UTF_16_AND_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # byte order marks
_EMPTY = of_table("is empty; a table names its columns in the first row, a .jsonl has one object a line")
_SAVE_AS_UTF_8 = "save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"


class Cells(NamedTuple):
    """A table of N rows and C columns.

    Fields:
        columns: C names, stripped; a column without a name is called unnamed_ and its position from 1.
        numbers: N; the row as a spreadsheet counts, or the line of a .jsonl. Blank lines count and are no rows.
        rows: N lists of C cells, stripped; None: the .jsonl has no such key there, or null.
        malformed: row number -> finding, for rows whose cells belong to no certain column. Their cells are None.
        nested: (row number, column) of the lists and objects in a .jsonl. Their cells are JSON.
    """

    columns: list[str]
    numbers: list[int]
    rows: list[list[str | None]]
    malformed: dict[int, Finding]
    nested: set[tuple[int, int]]


def read_cells(path: Path) -> Cells:
    """The cells of a regular file with one of SUFFIXES, UTF-8 with or without a byte order mark.

    Raises Findings for what makes the whole file unreadable.
    """
    data = path.read_bytes()
    separator = SEPARATORS.get(path.suffix.lower())
    refuse(path, _wrong_encoding(data, separator))
    if not data.decode("utf-8-sig").strip():
        refuse(path, [_EMPTY])
    cells = _read_objects(path, data) if separator is None else _read_separated(path, data, separator)
    if len(cells.columns) > MOST_COLUMNS:
        problem = f"has {len(cells.columns):,} columns, at most {MOST_COLUMNS:,} are read; a sample is a row"
        refuse(path, [of_table(problem)])
    for row in cells.rows:  # rows of a .jsonl end at the last key known when they were read
        row += [None] * (len(cells.columns) - len(row))
    return cells


def _text(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", errors="replace", newline="")


def _wrong_encoding(data: bytes, separator: str | None) -> list[Finding]:
    """What keeps `data` from being text in UTF-8 without NUL."""
    nul = data.find(b"\0")
    if data.startswith(_UTF_16_AND_32) or (nul >= 0 and data.count(b"\0", 0, 1000) > len(data[:1000]) / 4):
        return [of_table(f"is not UTF-8 but UTF-16 or UTF-32; {_SAVE_AS_UTF_8}")]
    if nul >= 0:
        problem = f"byte {nul + 1:,} of the file is NUL, which no text holds; the file is damaged: save it anew"
        return [Finding(_row_at(data, nul, separator), None, None, problem)]
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        near = data[max(at - 20, 0) : at + 20].decode("latin-1")
        problem = f"byte {at + 1:,} of the file (0x{data[at]:02x}) is not UTF-8; {_SAVE_AS_UTF_8}"
        return [Finding(_row_at(data, at, separator), None, near, problem)]
    return []


def _row_at(data: bytes, position: int, separator: str | None) -> int:
    """The number of the row that this byte lies in."""
    text = _text(data[:position] + b"x")
    if separator is None:
        return sum(1 for _ in text)
    row = 0
    try:
        for _ in csv.reader(text, delimiter=separator):
            row += 1
    except csv.Error:  # what is wrong with the quotes is told once the encoding is right
        row += 1
    return row


def _read_separated(path: Path, data: bytes, separator: str) -> Cells:
    refuse(path, _wrong_separator(data, separator))
    numbers, rows, malformed, header, number = [], [], {}, None, 0
    try:
        for number, cells in enumerate(csv.reader(_text(data), delimiter=separator, strict=True), start=1):
            cells = [cell.strip() for cell in cells]
            if not "".join(cells) and len(cells) < 2:
                continue
            if header is None:
                header = cells
                continue
            if len(cells) != len(header):
                problem = f"has {len(cells)} cells, the header has {len(header)}; put a cell with {_NAMES[separator]} "
                malformed[number] = Finding(number, None, None, problem + "in it in double quotes, or add what lacks")
                cells = [None] * len(header)
            numbers.append(number)
            rows.append(cells)
    except csv.Error as error:
        refuse(path, [Finding(number + 1, None, None, _quotes(str(error)))])
    if header is None:
        refuse(path, [_EMPTY])
    return Cells(_named(header), numbers, rows, malformed, set())


def _quotes(error: str) -> str:
    """What the csv module complains of, in words for the user; strict, it has three complaints."""
    if "field limit" in error:
        most = f"{csv.field_size_limit():,}"
        return f"a cell has more than {most} characters; shorten it, or close the double quote that opens in this row"
    if "unexpected end" in error:
        return 'a double quote opens in this row and is never closed; close it, or write one that is meant as ""'
    return 'after a closing double quote comes more text; a double quote inside a quoted cell is written as ""'


def _wrong_separator(data: bytes, separator: str) -> list[Finding]:
    """Told from the header: it is one cell with another separator in it, or has more of those."""
    line = next(line for line in _text(data) if line.strip())
    try:
        cells = next(csv.reader([line], delimiter=separator))
    except csv.Error:
        cells = []
    unquoted = "".join(line.split('"')[::2])
    for other in _NAMES:
        one_cell = len(cells) == 1 and other in cells[0]
        if other != separator and (one_cell or unquoted.count(other) > unquoted.count(separator)):
            suffix = next((s for s, own in SEPARATORS.items() if own == other), None)
            remedy = f"rename it to {suffix}" if suffix else f"save it with {_NAMES[separator]}"
            problem = f"its columns are separated by {_NAMES[other]}, not by {_NAMES[separator]}; {remedy}"
            return [of_table(problem)]
    return []


def _named(columns: Iterable[str]) -> list[str]:
    """pandas writes its index without a name, and a spreadsheet empty columns at the end."""
    return [name or f"unnamed_{position}" for position, name in enumerate(columns, start=1)]


def _read_objects(path: Path, data: bytes) -> Cells:
    if data.decode("utf-8-sig").lstrip().startswith("["):
        refuse(path, [of_table("is one JSON array; write one object a line, without brackets and commas around it")])
    place: dict[str, int] = {}  # of each key among the columns
    numbers, rows, nested, findings = [], [], set(), []
    for number, line in enumerate(_text(data), start=1):
        if not line.strip():
            continue
        try:
            pairs, inner = _flat(line)
        except (ValueError, RecursionError) as error:
            problem = f"is not one flat JSON object a line: {shown(_complaint(error))}"
            findings.append(Finding(number, None, line.strip(), problem))
            continue
        row: list[str | None] = [None] * len(place)
        for key, cell in pairs:
            column = place.setdefault(key, len(place))
            row += [None] * (column + 1 - len(row))
            row[column] = cell
        nested |= {(number, place[key]) for key in inner}
        numbers.append(number)
        rows.append(row)
    refuse(path, findings)
    return Cells(_named(key.strip() for key in place), numbers, rows, {}, nested)


# Numbers stay as they are written: 1.10 is not 1.1 where it is the name of a class.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_int=str, parse_float=str, parse_constant=str)


def _flat(line: str) -> tuple[list[tuple[str, str | None]], list[str]]:
    """The keys of one object with their values as text, and the keys whose values are lists or objects.

    Raises ValueError or RecursionError where it is none.
    """
    pairs = _DECODER.decode(line)
    if not isinstance(pairs, tuple):
        raise ValueError('write {"image": "a.png", ...} in each line')
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError("it has one key twice")
    inner = [key for key, value in pairs if isinstance(value, list | tuple)]
    whole = json.loads(line) if inner else {}
    cells = [(key, json.dumps(whole[key], ensure_ascii=False) if key in inner else _cell(v)) for key, v in pairs]
    if "\\u" in line and "\0" in "".join(text.encode().decode() for cell in cells for text in cell if text):
        raise ValueError("it has a NUL")  # encode() has complained of half characters
    return cells, inner


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else value.strip()


def _complaint(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeError):
        return "it has half a character (\\ud800 to \\udfff)"
    return f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
