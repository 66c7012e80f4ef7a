"""One sequence file -> frames of features: a recording, an array or a table."""

import csv
import io
import math
import re
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from app.section import Section
from data.files.audio import AudioConfig, read_audio
from data.files.decoding import MAX_BYTES, decoding, read_bytes
from data.files.paths import BadFile

AUDIO = (".wav", ".flac", ".ogg", ".mp3")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*AUDIO, ".npy", ".npz", *_SEPARATORS)
_GAPS = ("", "na", "nan", "null", "none")
_TIMES = ("time", "timestamp")
_FORM = "commas, or in a .tsv tabs, between cells; decimals with a point"


class SequenceConfig(Section):
    layout: Literal["TF", "FT"] = Field(
        "TF", description="of .npy and .npz arrays; TF: a row is a frame, FT: a column is a frame"
    )
    fill: Literal["error", "interpolate", "zero"] = Field(
        "error",
        description="gaps (NaN, and cells that are empty, NA, null or None) are an error; interpolate: a straight line "
        "over time, the nearest value at the ends; zero: 0, in the unit of the file",
    )
    deltas: bool = Field(
        False, description="true: the deltas of the features and the deltas of those are added; 3F in all"
    )
    normalise: bool = Field(True, description="features less their mean, over their deviation, of the training split")


class Sequence(NamedTuple):
    """frames (T, F), T >= 2, finite also as float32; float64 of text and where float32 does not hold the type.
    columns: the names of the features, where a table has a header; seconds: how long a recording lasts."""

    frames: np.ndarray
    columns: tuple[str, ...] | None = None
    seconds: float | None = None


def read_sequence(path: Path, config: SequenceConfig, audio: AudioConfig) -> Sequence:
    """By suffix, whatever its case: .wav .flac .ogg .mp3 (see data/files/audio.py), .npy and .npz (T, F) or (T,) of
    any real type, .csv and .tsv (UTF-8; rows are frames; columns `time` and `timestamp` are left out).

    Raises BadFile for what cannot be read, is damaged, has fewer than two frames or no features, or is not finite.
    """
    suffix = path.suffix.lower()
    if suffix in AUDIO:
        frames, seconds = read_audio(path, audio)
        return Sequence(_checked(frames, config.fill), seconds=seconds)
    if suffix not in _SUFFIXES:
        raise BadFile(f"has the suffix {suffix!r}, of no kind of sequence; allowed: {' '.join(_SUFFIXES)}")
    content = read_bytes(path)
    with decoding(f"a {suffix} of numbers"):
        if suffix in _SEPARATORS:
            values, columns = _parse_table(content, _SEPARATORS[suffix])
            return Sequence(_checked(values, config.fill, columns), columns)
        array = _parse_npy(content if suffix == ".npy" else _only_member(content))
        return Sequence(_checked(_in_rows(array, config.layout), config.fill))


def _only_member(content: bytes) -> bytes:
    """The .npy file in an .npz."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename.removesuffix(".npy") for member in members[:10])
            raise BadFile(f"holds {len(members)} arrays ({names}); save the one that is meant in a file of its own")
        if members[0].file_size > MAX_BYTES:
            raise BadFile(f"holds an array of {members[0].file_size} bytes, more than {MAX_BYTES}; split it")
        with archive.open(members[0]) as member:
            return member.read(members[0].file_size + 1)  # a size makes zipfile unpack no more than that


def _parse_npy(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.kind not in "biuf":
        raise BadFile(f"holds values of the type {array.dtype}; save real numbers")
    if file.read(1):
        raise BadFile(f"holds more than one array, or is corrupt, after shape {array.shape}; save one array a file")
    return array


def _in_rows(array: np.ndarray, layout: str) -> np.ndarray:
    """(T, F)."""
    if array.ndim not in (1, 2):
        raise BadFile(f"has {array.ndim} dimensions (shape {array.shape}); a sequence has (T, F) or (T,)")
    if array.ndim == 1:
        return array[:, None]
    if layout == "TF" and array.shape[0] == 1 < array.shape[1]:
        raise BadFile(
            f"has one frame of {array.shape[1]} features; a sequence needs two; did you mean data.sequence.layout=FT?"
        )
    return array if layout == "TF" else array.T


def _parse_table(content: bytes, separator: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """(T, F) float64, gaps NaN; the names of the columns, where there is a header."""
    try:
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadFile(f"is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows = [(f"line {reader.line_num}", row) for row in reader]
    if not rows:
        raise BadFile("has no frames; write one a row")
    names = _header([row for _, row in rows])
    if names:
        rows = rows[1:]
    if not rows:
        raise BadFile("has a header and no frames")
    width = len(names or rows[0][1])
    kept = [i for i in range(width) if names is None or names[i].casefold() not in _TIMES]
    values = np.empty((len(rows), len(kept)))
    for frame, (line, row) in enumerate(rows):
        if len(row) != width:
            raise BadFile(f"has {len(row)} cells in {line}, {width} in its first; make all rows equal ({_FORM})")
        for column, i in enumerate(kept):
            value = _number(row[i])
            if value is None:
                where = f"{line}, column {names[i] if names else i + 1!r}"
                raise BadFile(f"has {row[i][:40]!r} in {where}: no number; correct it ({_FORM})")
            values[frame, column] = value
    return values, None if names is None else tuple(names[i] for i in kept)


def _header(rows: list[list[str]]) -> tuple[str, ...] | None:
    """The first row, where it has names alone; None where it has numbers and gaps alone.

    Raises BadFile for a mixture, for a column without a name, and for the numbers that pandas writes over columns
    without names.
    """
    cells = [cell.strip() for cell in rows[0]]
    numbers = [_number(cell) for cell in cells]
    if None in numbers:
        is_wrong = any(number is not None and not math.isnan(number) for number in numbers)
        is_wrong = is_wrong or any(not name or name.startswith("Unnamed: ") for name in cells)
    elif len(cells) > 1:
        counted = [str(i) for i in range(len(cells))]
        is_wrong = cells in (counted, ["", *counted[:-1]])
    else:
        below = [row[0] for row in rows[1:] if row]
        is_wrong = cells == ["0"] and bool(below) and not any(re.fullmatch(r"\s*[+-]?\d+\s*", cell) for cell in below)
    if is_wrong:
        raise BadFile(
            f"has {','.join(rows[0])[:40]!r} in line 1, which is neither a row of numbers nor a name that is no number "
            f"for each column; correct it (from pandas: save with index=False, and with names or header=False)"
        )
    return tuple(cells) if None in numbers else None


def _number(cell: str) -> float | None:
    """NaN for a gap; None for what is no number."""
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return math.nan if cell.strip().casefold() in _GAPS else None


def _checked(values: np.ndarray, fill: str, columns: tuple[str, ...] | None = None) -> np.ndarray:
    """A copy of real values (T, F), with gaps filled as `fill` says; see Sequence."""
    num_frames, num_features = values.shape
    if num_features == 0:
        raise BadFile("has no features" if columns is None else "has no columns beside time; add the features")
    if num_frames < 2:
        raise BadFile(f"has {'one frame' if num_frames else 'no frames'}; a sequence needs two")
    frames = values.astype(np.float32 if np.can_cast(values.dtype, np.float32) else np.float64, order="C")
    finite = np.isfinite(frames.astype(np.float32, copy=False))
    return frames if finite.all() else _filled(values, frames, fill, columns)


def _filled(values: np.ndarray, frames: np.ndarray, fill: str, columns: tuple[str, ...] | None) -> np.ndarray:
    def place(bad: np.ndarray) -> str:
        frame, feature = np.argwhere(bad)[0]
        name = f"{feature + 1} of {bad.shape[1]}" if columns is None else repr(columns[feature])
        return f"frame {frame + 1} of {bad.shape[0]}, feature {name}"

    infinite, gaps = np.isinf(frames.astype(np.float32, copy=False)), np.isnan(frames)
    if infinite.any():
        value = values[infinite][0]
        why = "is not finite; correct it" if np.isinf(value) else "is too large for float32; scale it"
        raise BadFile(f"has {value} at {place(infinite)}, which {why}")
    if fill == "error":
        remedy = "correct it, or set data.sequence.fill to interpolate or zero"
        raise BadFile(f"has {gaps.sum()} gaps (NaN or empty cells), the first at {place(gaps)}; {remedy}")
    if fill == "zero":
        frames[gaps] = 0
        return frames
    if (empty := gaps.all(axis=0)).any():
        raise BadFile(f"has nothing but gaps from {place(gaps & empty)}, on: nothing to interpolate; leave it out")
    time = np.arange(len(frames))
    for feature in np.flatnonzero(gaps.any(axis=0)):
        known = ~gaps[:, feature]
        frames[:, feature] = np.interp(time, time[known], values[known, feature])
    return frames
