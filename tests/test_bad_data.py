"""Every kind of bad data: train.py ends with exit code 2, one line a finding, before a run's folder is made."""

import hashlib
import os
import socket
import struct
import wave
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from tests.conftest import ROOT
from tests.data.manifest.tables import good_rows, write_rows

DEVICE = Path("/dev/null")


def text(content, encoding="utf-8"):
    return lambda folder, rows: (folder / "table.csv").write_bytes(content.encode(encoding))


def cell(column, value, row=0):
    """Another value in one cell of the good table."""
    return lambda folder, rows: rows[row].__setitem__(column, value)


def column(old, new):
    def rename(folder, rows):
        for row in rows:
            row[new] = row.pop(old)

    return rename


def file(name, write, column="image"):
    """Row 2 names a file with bad content."""

    def make(folder, rows):
        write(folder / name)
        rows[0][column] = name

    return make


def png_claiming(width, height):
    """A PNG that says it is that large, and holds next to nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def wav(path, samples=8000, cut=0):
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 16000, samples, "NONE", ""))
        out.writeframes(np.random.default_rng(0).integers(-9999, 9999, samples, dtype=np.int16).tobytes())
    os.truncate(path, path.stat().st_size - cut)


def cut_image(path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.truncate(path, path.stat().st_size // 2)


def array(values):
    return lambda path: np.save(path, values, allow_pickle=True)


def link(target):
    return lambda folder, rows: ((folder / "link.png").symlink_to(target), rows[0].__setitem__("image", "link.png"))


def outside(folder, rows):
    (folder.parent / "secret.png").write_bytes((folder / "0.png").read_bytes())
    rows[0]["image"] = str(folder.parent / "secret.png")


def fifo(folder, rows):
    os.mkfifo(folder / "pipe.png")
    rows[0]["image"] = "pipe.png"


def a_socket(folder, rows):
    here = os.getcwd()
    os.chdir(folder)  # its path would be too long
    try:
        socket.socket(socket.AF_UNIX).bind("s.png")
    finally:
        os.chdir(here)
    rows[0]["image"] = "s.png"


def same_group(folder, rows):
    for i, row in enumerate(rows):
        row["speaker"] = "anna" if i in (0, 9) else f"s{i}"


def same_bytes(folder, rows):
    (folder / "9.npy").write_bytes((folder / "0.npy").read_bytes())


def without(*wanted):
    def remove(folder, rows):
        rows[:] = [row for row in rows if not all(row[name] == value for name, value in wanted)]

    return remove


def wide(folder, rows):
    for i in range(10):
        np.save(folder / f"{i}.npy", np.random.default_rng(i).normal(size=(3, 50)))


def one_more_cell(folder, rows):
    path = write_rows(folder / "table.csv", rows)
    path.write_text(path.read_text() + "0.png,0.npy,cat,train,dog\n")


NAN, INFINITE = np.array([[1.0, np.nan]] * 5), np.array([[1.0, np.inf]] * 5)
# What is done to a good table or its folder, and what the lines say, in their order.
BAD = {
    "no such table": (lambda folder, rows: rows.clear(), ["table.csv: is not there"]),
    "empty table": (text(""), ["table.csv: is empty"]),
    "header only": (text("image,sequence,label,split\n"), ["has a header and no rows"]),
    "no header": (text("0.png,0.npy,cat\n1.png,1.npy,dog\n"), ["for the image", "for the sequence", "for the label"]),
    "misspelt header": (column("label", "lable"), ["is it 'lable'?"]),
    "no sequence column": (lambda f, rows: [r.pop("sequence") for r in rows], ["model.temporal_branch=null"]),
    "no image column": (lambda f, rows: [r.pop("image") for r in rows], ["model.image_branch=null"]),
    "two candidates": (lambda f, rows: [r.update(wav="x") for r in rows], ["'sequence', 'wav' can all be the"]),
    "semicolons": (text("image;sequence;label\n0.png;0.npy;cat\n"), ["';'"]),
    "not UTF-8": (text("image,sequence,label\n0.png,0.npy,cha\xeene\n", "latin-1"), ["UTF-8"]),
    "UTF-16": (text("image,sequence,label\n0.png,0.npy,cat\n", "utf-16"), ["UTF-8"]),
    "too many cells": (one_more_cell, ["row 12: has 5 cells, the header has 4"]),
    "missing file": (cell("image", "nope.png"), ["row 2, column image, 'nope.png': is not there"]),
    "a folder": (lambda f, rows: ((f / "d.png").mkdir(), rows[0].update(image="d.png")), ["'d.png'"]),
    "empty image": (file("e.png", Path.touch), ["row 2, column image, 'e.png': is empty"]),
    "corrupt image": (file("c.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\nnonsense")), ["'c.png'"]),
    "truncated image": (file("t.png", cut_image), ["row 2, column image, 't.png': "]),
    "truncated JPEG": (file("t.jpg", cut_image), ["row 2, column image, 't.jpg': "]),
    "another format": (file("g.gif", lambda path: Image.new("L", (8, 8)).save(path)), ["JPEG, PNG, WebP, BMP"]),
    "decompression bomb": (file("b.png", lambda p: p.write_bytes(png_claiming(60000, 60000))), ["60000 x 60000"]),
    "empty sequence": (file("e.npy", array(np.zeros((0, 3))), "sequence"), ["row 2, column sequence, 'e.npy': "]),
    "one frame": (file("o.npy", array(np.ones((1, 3))), "sequence"), ["one frame"]),
    "empty array file": (file("z.npy", Path.touch, "sequence"), ["'z.npy': is empty"]),
    "pickle": (file("p.npy", array(np.array([{"a": 1}] * 3)), "sequence"), ["row 2, column sequence, 'p.npy': "]),
    "NaN": (file("n.npy", array(NAN), "sequence"), ["data.sequence.fill"]),
    "infinite": (file("i.npy", array(INFINITE), "sequence"), ["is not finite"]),
    "other features": (file("f.npy", array(np.ones((5, 4))), "sequence"), ["has 4 features, most files have 3"]),
    "truncated audio": (file("a.wav", lambda path: wav(path, cut=999), "sequence"), ["'a.wav'"]),
    "audio without samples": (file("a.wav", lambda path: wav(path, 0), "sequence"), ["'a.wav'"]),
    "corrupt audio": (file("a.flac", lambda path: path.write_bytes(b"fLaC" + b"x" * 99), "sequence"), ["'a.flac'"]),
    "another suffix": (file("s.txt", lambda path: path.write_text("1"), "sequence"), [".wav"]),
    "FT layout": (wide, ["Set data.sequence.layout=FT"]),
    "label empty": (cell("label", ""), ["row 2, column label: is empty"]),
    "unknown label": (cell("label", "bird", 9), ["column label: 1 of 3 classes have no training rows: 'bird'"]),
    "one class": (lambda f, rows: [r.update(label="cat") for r in rows], ["every row is of the class 'cat'"]),
    "no validation rows": (without(("split", "val")), ["has no validation rows"]),
    "no test rows": (without(("split", "test")), ["has no test rows"]),
    "no training rows": (without(("split", "train")), ["has no training rows"]),
    "class without training rows": (without(("split", "train"), ("label", "dog")), ["have no training rows: 'dog'"]),
    "unknown split": (cell("split", "holdout"), ["row 2, column split, 'holdout': is not a split; allowed: train, "]),
    "both missing": (lambda f, rows: rows[0].update(image="", sequence="NA"), ["row 2, column image and sequence: "]),
    "duplicate row": (lambda f, rows: rows.append(dict(rows[0])), ["row 12, column image, '0.png': row 2 has"]),
    "one file in two splits": (cell("image", "0.png", 9), ["row 11, column image, '0.png': is in train too (row 2)"]),
    "same bytes in two splits": (same_bytes, ["row 11, column sequence, '9.npy': has the same content as '0.npy'"]),
    "one group in two splits": (same_group, ["row 11, column speaker, 'anna': is in test here and in train in row 2"]),
    "dots": (cell("image", "../0.png"), ["lies outside"]),
    "absolute": (outside, ["secret.png'"]),
    "link": (link("/etc/hostname"), ["row 2, column image, 'link.png': "]),
    "URL": (cell("image", "https://example.org/a.png"), ["row 2, column image, 'https://example.org/a.png': "]),
    "device": (link(DEVICE), ["row 2, column image, 'link.png': "]),
    "FIFO": (fifo, ["row 2, column image, 'pipe.png': "]),
    "socket": (a_socket, ["row 2, column image, 's.png': "]),
    "two at once": (
        lambda f, rows: (rows[3].update(image="x.png", sequence="y.npy"), rows[5].update(label="")),
        ["row 5, column image, 'x.png'", "row 5, column sequence, 'y.npy'", "row 7, column label: is empty"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("make_bad", BAD)
def test_bad_data_is_told_before_anything_is_written(make_bad, tmp_path, capsys):
    folder, change = tmp_path / "data", BAD[make_bad][0]
    folder.mkdir()
    rows = good_rows(folder)
    if (change(folder, rows), rows)[1] and not (folder / "table.csv").exists():
        write_rows(folder / "table.csv", rows)
    before = contents(tmp_path)
    table = f"data.manifest={folder / 'table.csv'}"
    small = ["data.image_size=32", "run.device=cpu", f"run.folder={tmp_path / 'runs'}"]
    code = train.main(["--config", str(ROOT / "configs" / "manifest.yaml"), table, *small])
    printed = capsys.readouterr()
    assert code == 2, printed
    lines = [line for line in printed.err.splitlines() if not line.startswith("\r") or "error: " in line]
    errors = [line[line.index("error: ") :] for line in lines if "error: " in line]
    expected = BAD[make_bad][1]
    assert len(errors) == len(expected), errors
    for line, words in zip(errors, expected, strict=True):
        assert words in line and str(folder / "table.csv") in line
    assert "Traceback" not in printed.err and printed.out == ""
    assert contents(tmp_path) == before


def contents(folder):
    """What lies there, with the contents of plain files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if not path.is_symlink()
    }
