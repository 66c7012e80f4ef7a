"""The file that a cell of the manifest names. It is looked at, never opened."""

import os
import re
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path

_URL = re.compile(r"[a-z][a-z0-9+.-]+://|(file|data|mailto):", re.IGNORECASE)


class BadFile(ValueError):
    """What is wrong with a file and what to do about it, as the end of a line that already names the file."""


def resolve(cell: str, root: Path) -> Path:
    """The regular file that `cell` names, relative to `root` or absolute, free of links: open this path, not the cell.

    Folders are resolved once in a process. Raises BadFile for what is not there, is no regular file, or lies outside
    `root` (links are followed).
    """
    if _URL.match(cell):
        raise BadFile("is a URL; download the file, and name it by its path")
    try:
        folder, name = os.path.split(os.path.join(root, cell))
        path = os.path.join(_real_folder(folder), name)
        if os.path.islink(path):
            path = os.path.realpath(path, strict=True)
        is_inside = path.startswith(os.path.join(_real_folder(str(root)), ""))
        mode = os.lstat(path).st_mode if is_inside else None
    except (FileNotFoundError, NotADirectoryError):
        raise BadFile(_why_missing(cell, root)) from None
    except OSError as error:
        raise BadFile(f"cannot be reached: {error.strerror}; correct the cell, or what is there") from None
    except ValueError:
        raise BadFile("has a character that no file name can have, such as NUL; correct the cell") from None
    if not is_inside:
        remedy = "move the file into that folder, or set data.root to one that holds both"
        raise BadFile(f"lies outside {root}, which neither '..' nor a symbolic link may leave; {remedy}")
    if not stat.S_ISREG(mode):
        raise BadFile(f"is {'a folder' if stat.S_ISDIR(mode) else 'a device, pipe or socket'}; name a regular file")
    return Path(path)


@lru_cache(maxsize=65536)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder, strict=True)


def _why_missing(cell: str, root: Path) -> str:
    with_slashes = cell.replace("\\", "/")
    if with_slashes != cell and os.path.exists(os.path.join(root, with_slashes)):
        return f"is not there, but {with_slashes!r} is; write the path with /"
    folder, name = str(root), ""
    for name in Path(cell).parts:
        if not os.path.exists(below := os.path.join(folder, name)):
            break
        folder = below
    if os.path.islink(os.path.join(folder, name)):
        return f"is not there: the symbolic link {os.path.join(folder, name)} leads to nothing; place the file there"
    if similar := _names_in(folder).get(_fold(name)):
        return f"is not there: {folder} has {similar!r} (letter case or Unicode normal form differ); correct the cell"
    return f"is not there: {folder} has no {name!r}; place it there, or correct the cell"


@lru_cache(maxsize=16)
def _names_in(folder: str) -> dict[str, str]:
    """By their folded form. Thousands of rows may miss their file in the same large folder."""
    try:
        return {_fold(name): name for name in sorted(os.listdir(folder))}
    except OSError:
        return {}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
