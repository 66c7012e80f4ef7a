"""What all readers share: a file's bytes, and libraries that raise and print what they like."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.files.paths import BadFile

MAX_BYTES = 2**31  # of a file, and of an array in it
_NO_DATA = {
    b"version https://git-lfs": "is a Git LFS pointer; run: git lfs pull",
    b"<": "is HTML, SVG or XML; download the file itself, or convert it",
}


def read_bytes(path: Path) -> bytes:
    """Raises BadFile for an empty file, one above MAX_BYTES, one that the system cannot read, and a failed download."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise BadFile(f"is larger than {MAX_BYTES >> 30} GiB; split it")
            content = file.read()
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}") from error
    if not content:
        raise BadFile("is empty (0 bytes); place the whole file there")
    for start, problem in _NO_DATA.items():
        if content.startswith(start):
            raise BadFile(problem)
    return content


@contextmanager
def without_warnings() -> Iterator[None]:
    """Not catch_warnings, which makes Python forget, in the whole process, what it has warned of once."""
    show, warnings.showwarning = warnings.showwarning, lambda *_, **__: None
    try:
        yield
    finally:
        warnings.showwarning = show


@contextmanager
def decoding(kind: str) -> Iterator[None]:
    """Whatever a library raises in there becomes BadFile; its warnings are not shown.

    Args:
        kind: of file, with its article: "a PNG".
    """
    try:
        with without_warnings():
            yield
    except (BadFile, ImportError):
        raise
    except Exception as error:
        text = getattr(error, "error_string", str(error))  # of libsndfile's, which names a stream otherwise
        reason = " ".join(text.split())[:200] or type(error).__name__
        raise BadFile(f"is corrupt, cut off, or not {kind} after all ({reason}); place the whole file there") from error


@contextmanager
def printed_by_c() -> Iterator[list[str]]:
    """The lines that C code prints to standard error in there, known afterwards; none of them is shown.

    libtiff and mpg123 tell of damage in no other way.
    """
    lines: list[str] = []
    if sys.stderr is not None:
        sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
