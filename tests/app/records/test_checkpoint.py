import errno
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from app.records import checkpoint


def test_content_comes_back_and_is_readable_with_weights_only(tmp_path, checkpoint_content):
    path = tmp_path / "deep" / "x.pt"
    checkpoint.save_checkpoint(path, {**checkpoint_content, "saved_at": 4.0, "model": {"a": torch.arange(3)}})
    plain = torch.load(path, weights_only=True)
    content = checkpoint.load_checkpoint(path)
    assert plain["saved_at"] == content["saved_at"] == 4.0
    assert torch.equal(content["model"]["a"], torch.arange(3))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:") and len(archive.comment) == 71


def full_disk_as_the_system_says_it(file):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_as_torch_says_it(file):
    try:
        full_disk_as_the_system_says_it(file)
    except OSError:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662")  # noqa: B904


@pytest.mark.parametrize("fail", [full_disk_as_the_system_says_it, full_disk_as_torch_says_it])
def test_a_failed_save_keeps_the_old_file_says_why_and_leaves_nothing_behind(
    tmp_path, monkeypatch, checkpoint_content, fail
):
    path = tmp_path / "x.pt"
    checkpoint.save_checkpoint(path, checkpoint_content)

    def save(content, file):
        file.write(b"half")
        fail(file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError) as error:
        checkpoint.save_checkpoint(path, {**checkpoint_content, "saved_at": 2.0})
    assert str(error.value) == f"{path} could not be written: the disk is full; what it held before is still there"
    assert checkpoint.load_checkpoint(path)["saved_at"] == 1
    assert os.listdir(tmp_path) == ["x.pt"]


def test_an_error_of_torch_that_is_not_the_disks_stays_what_it_is(tmp_path, monkeypatch, checkpoint_content):
    def save(content, file):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="something else"):
        checkpoint.save_checkpoint(tmp_path / "x.pt", checkpoint_content)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def refused(tmp_path):
    """Whether load_checkpoint refuses the file of these bytes as it shall."""

    def check(content: bytes | None = None, path=tmp_path / "damaged.pt") -> str:
        if content is not None:
            path.write_bytes(content)
        try:
            checkpoint.load_checkpoint(path)
        except ValueError as error:
            text = str(error)
        remedy = "use the release of Duet that wrote it" if "has version" in text else checkpoint._REMEDY
        assert str(path) in text and "\n" not in text and remedy in text
        return text

    return check


@pytest.fixture
def saved(tmp_path, checkpoint_content):
    checkpoint.save_checkpoint(tmp_path / "saved.pt", checkpoint_content)
    return (tmp_path / "saved.pt").read_bytes()


def test_every_flipped_bit_is_noticed(tmp_path, saved, refused):
    """Of the archive's structure, its padding and its pickle; of tensors too, for they are small here."""
    path = tmp_path / "damaged.pt"
    path.write_bytes(saved)
    told = set()
    with open(path, "r+b", buffering=0) as file:
        for place, byte in enumerate(saved):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                told.add(refused(path=path))
            os.pwrite(file.fileno(), bytes([byte]), place)
    checkpoint.load_checkpoint(path)
    assert all("is damaged, cut short, or something else" in text for text in told), told


def test_every_truncation_is_noticed(tmp_path, saved, refused):
    path = tmp_path / "damaged.pt"
    path.write_bytes(saved)
    for length in reversed(range(len(saved))):
        os.truncate(path, length)
        assert "is damaged, cut short, or something else" in refused(path=path)


@pytest.mark.parametrize(
    "extra", [b"\0", b"\n", b"\0" * 22, b"\0" * 71, b"PK\5\6" + b"\0" * 18, bytes(range(256)) * 300]
)
def test_bytes_before_or_after_are_noticed(saved, refused, extra):
    refused(saved + extra)
    refused(extra + saved)
    assert "is damaged" in refused(saved + saved)
    assert "is damaged" in refused(saved + extra + saved[-71:])


def test_a_file_of_an_older_version_is_refused_by_its_version(tmp_path, checkpoint_content, refused):
    path = tmp_path / "damaged.pt"
    torch.save({"format": checkpoint.FORMAT, "version": 1, **checkpoint_content}, path)  # as version 1 wrote it
    assert "has version 1, this program reads 6" in refused(path=path)
    torch.save({"format": checkpoint.FORMAT, **checkpoint_content}, path)
    assert "has version None" in refused(path=path)
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, **checkpoint_content}, path)
    assert "is damaged" in refused(path=path)  # this version's own files end in a digest


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: os.mkfifo(path), "is not a file"),
        (lambda path: path.symlink_to(path), "does not exist"),
        (lambda path: path.write_text("hello"), "is damaged, cut short, or something else"),
        (lambda path: path.write_bytes(b""), "is damaged, cut short, or something else"),
        (lambda path: path.write_bytes(b"sha256:" + b"0" * 64), "is damaged"),
        (
            lambda path: path.write_bytes(pickle.dumps([1] * 100, protocol=2)),
            "is damaged, cut short, or something else",
        ),
        (lambda path: torch.save({"state": 1}, path), "is damaged, cut short, or something else"),
        (lambda path: torch.save([1], path), "is damaged, cut short, or something else"),
        (lambda path: torch.save(nn.Linear(1, 1), path), "is damaged, cut short, or something else"),
        (lambda path: checkpoint.save_checkpoint(path, {"version": 99}), "has version 99, this program reads 6"),
        (lambda path: checkpoint.save_checkpoint(path, {"format": 1}), "is damaged, cut short, or something else"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, write, message):
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        checkpoint.load_checkpoint(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that fails to be read")
def test_a_file_that_cannot_be_read_is_refused(refused):
    assert "cannot be read (Input/output error)" in refused(path=Path("/proc/self/mem"))


@pytest.mark.parametrize("part", checkpoint.PARTS)
def test_a_part_that_is_missing_or_of_another_form_is_named(tmp_path, checkpoint_content, refused, part):
    path = tmp_path / "x.pt"
    for wrong in ({}, {part: None}, {part: {1, 2}}):
        rest = {key: value for key, value in checkpoint_content.items() if key != part}
        checkpoint.save_checkpoint(path, {**rest, **wrong})
        assert f"lacks {part}, or holds it in another form" in refused(path=path)
