"""A folder as a manifest: <split>/<class>/<name>."""

import errno
import os
from pathlib import Path

import pytest

from app.messages import Findings
from data.manifest.splits import split_of_rows
from data.manifest.table import Row, read_table

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


@pytest.fixture
def tree(tmp_path):
    """Makes empty files below tmp_path / "set", which it returns; a name that ends with / is a folder."""

    def make(*names):
        for name in names:
            path = tmp_path / "set" / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()
        return tmp_path / "set"

    return make


def lines_of(path, **how):
    with pytest.raises(Findings) as error:
        read_table(path, **how)
    return [line.removeprefix(str(path)) for line in str(error.value).splitlines()]


def findings_of(path, **how):
    table = read_table(path, **how)
    return [table.line(finding).replace(str(path), "set") for finding in table.findings]


def test_files_of_one_stem_are_a_sample(tree):
    path = tree(
        "Train/dog/b.v2.PNG",
        "Train/dog/b.v2.wav",
        "Train/cat/z.jpg",
        "Train/cat/a.npy",
        "Train/cat/day 1/a.tiff",
        "Train/cat/day 1/a.Csv",
        "dev/cat/a.webp",
        "evaluation/NA/a.flac",
        "Train/.DS_Store",
        "Train/cat/Thumbs.db",
        "Train/cat/._z.jpg",
        ".git/config",
        "desktop.ini",
    )
    table = read_table(path)
    assert (table.root, table.findings, table.extra_columns) == (path, [], ())
    assert table.columns == {role: role for role in ("image", "sequence", "label", "split")}
    assert table.rows == [
        Row(1, None, "Train/cat/a.npy", "cat", "Train", None, None, ()),
        Row(2, "Train/cat/day 1/a.tiff", "Train/cat/day 1/a.Csv", "cat", "Train", None, None, ()),
        Row(3, "Train/cat/z.jpg", None, "cat", "Train", None, None, ()),
        Row(4, "Train/dog/b.v2.PNG", "Train/dog/b.v2.wav", "dog", "Train", None, None, ()),
        Row(5, "dev/cat/a.webp", None, "cat", "dev", None, None, ()),
        Row(6, None, "evaluation/NA/a.flac", "NA", "evaluation", None, None, ()),
    ]
    assert split_of_rows(table, FRACTIONS) == (["train"] * 4 + ["val", "test"], [])


def test_cells_are_relative_to_the_root(tree, tmp_path):
    path = tree("train/cat/a.png", "train/cat/a.wav")
    (row,) = read_table(path, root=tmp_path).rows
    assert (row.image, row.sequence) == ("set/train/cat/a.png", "set/train/cat/a.wav")
    (line,) = lines_of(path, root=path / "train")
    assert line.startswith(f": does not lie in data.root, {path / 'train'}; ")


def test_files_of_which_no_row_can_be_made(tree):
    path = tree(
        "train/cat/a.png",
        "train/cat/a.wav",
        "train/cat/b.jpg",
        "train/cat/b.png",
        "train/cat/b.wav",
        "train/cat/c.wav",
        "train/cat/c.npy",
        "train/cat/notes.txt",
        "train/cat/noname",
        "train/empty/",
        "train/stray.png",
        "val/",
        "README.md",
    )
    (path / "train" / "cat" / "more").symlink_to(path / "val")
    table = read_table(path)
    assert [row.image for row in table.rows] == ["train/cat/a.png"]
    assert all(finding.row is None for finding in table.findings)
    assert sorted(line.split(";")[0].split(" (")[0] for line in findings_of(path)) == [
        "set, 'README.md': does not lie in the folder of a class",
        "set, 'train/cat/b.png': has the stem of 'b.jpg'",
        "set, 'train/cat/c.wav': has the stem of 'c.npy'",
        "set, 'train/cat/more': is a link to a folder",
        "set, 'train/cat/noname': is neither an image nor a sequence",
        "set, 'train/cat/notes.txt': is neither an image nor a sequence",
        "set, 'train/empty': is a class without a sample",
        "set, 'train/stray.png': does not lie in the folder of a class",
    ]


def test_a_folder_that_cannot_be_looked_into_is_told(tree, monkeypatch):
    path, scandir = tree("train/cat/a.png", "train/dog/a.png"), os.scandir

    def refuse(folder):
        if str(folder).endswith("dog"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="Permission denied: '.*dog'"):
        read_table(path)


def test_a_name_that_is_not_utf_8(tree):
    path = tree("train/cat/a.png", "train/cat/a.wav")
    try:
        Path(os.fsdecode(bytes(path / "train" / "cat") + b"/\xe9.png")).touch()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (line,) = findings_of(path)
    assert line == "set, 'train/cat/\\udce9.png': its name is not UTF-8; rename it"


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (["train/"], [": has no samples; files lie as <split>/<class>/<name>"]),
        (["train/a.png"], [", 'train/a.png': does not lie in the folder of a class;"]),
        (["cat/a.png", "dog/a.png"], [", 'cat': is not called like a split; files lie", ", 'dog': is not called like"]),
        (["a.png", "my.csv"], [", 'a.png': does not lie in the folder of a class;", ", 'my.csv': does not lie"]),
        (["train/cat/a.png", "tarin/cat/b.png"], [", 'tarin': is not called like a split; "]),
    ],
)
def test_another_layout(tree, names, lines):
    found = lines_of(tree(*names))
    assert [line.startswith(start) for line, start in zip(found, lines, strict=True)] == [True] * len(lines), found


def test_a_split_that_is_a_link_is_told(tree, tmp_path):
    tree("../elsewhere/cat/a.png", "val/cat/b.png")
    (tmp_path / "set" / "train").symlink_to(tmp_path / "elsewhere")
    assert findings_of(tmp_path / "set") == ["set, 'train': is a link to a folder; move the folder itself here"]


def test_a_modality_without_files(tree):
    path = tree("train/cat/a.png", "train/cat/b.png")
    assert "sequence" in read_table(path).columns  # a check tells that no training row has one
    table = read_table(path, modalities=("image",))
    assert table.columns == {"image": "image", "label": "label", "split": "split"} and table.extra_columns == ()


def test_files_of_a_modality_that_is_not_read(tree):
    path = tree("train/cat/a.png", "train/cat/a.wav", "train/cat/b.wav")
    table = read_table(path, modalities=("image",))
    assert table.extra_columns == ("sequence",)
    assert [(row.image, row.sequence, row.extra) for row in table.rows] == [
        ("train/cat/a.png", None, ("train/cat/a.wav",)),
    ]
    assert findings_of(path, modalities=("image",)) == [
        "set, 'train/cat/b.wav': has no image beside it, and the model reads nothing else; add one, or move it away"
    ]
