import os
import socket
import stat
import tempfile
import unicodedata
from pathlib import Path

import pytest

from data.files import paths
from data.files.decoding import read_bytes
from data.files.paths import BadFile, resolve

posix = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX file system")


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with sub/a.png in it, and beside it a folder that is not in it."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "a.png").write_bytes(b"inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.png").write_bytes(b"outside")
    return tmp_path / "root"


def complaint(cell: str, root: Path) -> str:
    with pytest.raises(BadFile) as caught:
        resolve(cell, root)
    (line,) = str(caught.value).splitlines()
    return line


def test_relative_and_absolute_paths_inside_the_root(root):
    inside = root / "sub" / "a.png"
    for cell in ("sub/a.png", "./sub//a.png", "sub/../sub/a.png", str(inside)):
        assert resolve(cell, root) == inside.resolve()


@posix
def test_links_that_stay_inside_lead_to_the_file_itself(root, tmp_path):
    (root / "link.png").symlink_to("sub/a.png")
    (root / "folder").symlink_to(root / "sub")
    (tmp_path / "way").symlink_to(root)
    for cell, top in [("link.png", root), ("folder/a.png", root), ("sub/a.png", tmp_path / "way")]:
        assert resolve(cell, top) == (root / "sub" / "a.png").resolve()
    assert resolve(str(root / "sub" / "a.png"), tmp_path / "way") == (root / "sub" / "a.png").resolve()


@posix
def test_what_leaves_the_root_is_refused(root, tmp_path):
    (root / "link.png").symlink_to(tmp_path / "outside" / "a.png")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "up").symlink_to("..")
    cells = ["link.png", "folder/a.png", "up/outside/a.png", "../outside/a.png", "sub/../../outside/a.png"]
    cells += ["folder/not_there.png", "../not_there.png"]
    for cell in (*cells, str(tmp_path / "outside" / "a.png"), "/etc/passwd", "/dev/null", "/"):
        assert f"lies outside {root}, which neither '..' nor a symbolic link may leave" in complaint(cell, root)
    assert "lies outside" in complaint("folder/..", root)
    assert "is a folder" in complaint("..", root)
    # A folder whose name begins as the root's does is not inside it.
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "a.png").write_bytes(b"")
    assert "lies outside" in complaint("../root2/a.png", root)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("sub", "is a folder; name a regular file"),
        ("", "is a folder"),
        (".", "is a folder"),
        ("sub/", "is a folder"),
        ("http://example.org/a.png", "is a URL; download the file"),
        ("s3://bucket/a.png", "is a URL"),
        ("HTTPS://example.org/../../../a.png", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("sub/a\0.png", "has a character that no file name can have"),
        ("sub/\ud800.png", "has a character that no file name can have"),
        ("x" * 300 + ".png", "cannot be reached: File name too long"),
        ("sub/b.png", "sub has no 'b.png'; place it there, or correct the cell"),
        ("nowhere/deep/b.png", "root has no 'nowhere'; place it there"),
        ("sub/a.png/b.png", "sub/a.png has no 'b.png'"),
        ("sub\\a.png", "is not there, but 'sub/a.png' is; write the path with /"),
        ("sub/A.PNG", "sub has 'a.png' (letter case or Unicode normal form differ)"),
        ("Sub/a.png", "root has 'sub' (letter case"),
    ],
    ids=lambda text: text[:20].encode("ascii", "backslashreplace").decode(),
)
@posix
def test_each_bad_cell_has_words_of_its_own(cell, words, root):
    assert words in complaint(cell, root)


@posix
def test_another_unicode_normal_form_is_told(root):
    composed, decomposed = (unicodedata.normalize(form, "Übung.wav") for form in ("NFC", "NFD"))
    (root / decomposed).write_bytes(b"")
    if (root / composed).exists():
        pytest.skip("this file system takes both forms for one")
    assert f"has {decomposed!r} (letter case or Unicode normal form differ)" in complaint(composed, root)


@posix
def test_what_is_no_regular_file_is_refused_without_opening_it(root):
    os.mkfifo(root / "pipe.wav")  # to open it would wait for ever
    assert "is a device, pipe or socket; name a regular file" in complaint("pipe.wav", root)
    (root / "to_pipe").symlink_to("pipe.wav")
    assert "is a device, pipe or socket; name a regular file" in complaint("to_pipe", root)
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(root)  # the name of a socket may not be long
    try:
        server.bind("socket.wav")
    finally:
        os.chdir(here)
        server.close()
    assert "is a device, pipe or socket" in complaint("socket.wav", root)
    assert "is a device, pipe or socket" in complaint("null", Path("/dev"))


@posix
def test_links_to_nothing_and_in_a_circle(root):
    (root / "lost.png").symlink_to("sub/not_there.png")
    (root / "lost").symlink_to("nothing")
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    assert f"the symbolic link {root / 'lost.png'} leads to nothing" in complaint("lost.png", root)
    assert f"the symbolic link {root / 'lost'} leads to nothing" in complaint("lost/a.png", root)
    assert "cannot be reached: Too many levels of symbolic links" in complaint("a", root)
    assert "cannot be reached: Too many levels of symbolic links" in complaint("a/x.png", root)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can become another user for a moment")
def test_what_may_not_be_read_is_told_as_root_sees_another_user():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        (root / "closed").mkdir()
        for name in ("a.png", "closed/a.png"):
            (root / name).write_bytes(b"")
        (root / "a.png").chmod(stat.S_IWUSR)
        (root / "closed").chmod(0)
        os.setresuid(65534, 65534, 0)
        try:
            with pytest.raises(BadFile, match="cannot be read: Permission denied"):
                read_bytes(resolve("a.png", root))
            assert "cannot be reached: Permission denied" in complaint("closed/a.png", root)
        finally:
            os.setresuid(0, 0, 0)


def test_folders_are_resolved_once(root, monkeypatch):
    for i in range(20):
        (root / "sub" / f"{i}.png").write_bytes(b"")
    resolved = []
    monkeypatch.setattr(paths.os.path, "realpath", lambda path, **_: resolved.append(path) or str(path))
    for i in range(20):
        resolve(f"sub/{i}.png", root)
    assert len(resolved) == 2  # the folder and the root


def test_thousands_of_rows_that_miss_their_file_list_the_folder_once(root, monkeypatch):
    lists, list_folder = [], os.listdir
    monkeypatch.setattr(paths.os, "listdir", lambda folder: lists.append(folder) or list_folder(folder))
    for i in range(50):
        assert "has no" in complaint(f"sub/{i}.png", root)
    assert len(lists) == 1
