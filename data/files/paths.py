"""The file that a cell of the manifest names. It is looked at, never opened."""

import errno
import os
import re
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path

_NO_FILES = {
    stat.S_IFDIR: "is a folder; name a file in it",
    stat.S_IFIFO: "is a named pipe (FIFO); name a regular file",
    stat.S_IFSOCK: "is a socket; name a regular file",
    stat.S_IFCHR: "is a device; name a regular file",
    stat.S_IFBLK: "is a device; name a regular file",
}
_URL = re.compile(r"[a-z][a-z0-9+.-]+://|(file|data|mailto):", re.IGNORECASE)


class BadFile(ValueError):
    """What is wrong with a file and what to do about it, as the end of a line that already names the file."""


def resolve(cell: str, root: Path) -> Path:
    """The regular file that `cell` names, relative to `root` or absolute, free of links: open this path, not the cell.

    Folders are resolved once in a process. Raises BadFile for what is not there, is no regular file, lies outside
    `root` (links are followed), or may not be read.
    """
    try:
        folder, name = os.path.split(os.path.join(root, cell))
        if name in ("", os.curdir, os.pardir):
            path = _real_folder(os.path.join(folder, name), str(root))
        else:
            path = os.path.join(_real_folder(folder, str(root)), name)
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            path = _real_inside(path, str(root))
            status = os.lstat(path)
    except (OSError, ValueError) as error:
        raise BadFile(_why_unreachable(cell, root, error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadFile(_NO_FILES.get(stat.S_IFMT(status.st_mode), "is no regular file"))
    if not os.access(path, os.R_OK):
        raise BadFile("may not be read (permission denied); change its permissions")
    return Path(path)


class _Outside(ValueError):
    pass


def _real_inside(path: str, root: str) -> str:
    real, top = os.path.realpath(path, strict=True), os.path.realpath(root, strict=True)
    if not _is_inside(real, top):
        raise _Outside
    return real


_real_folder = lru_cache(maxsize=65536)(_real_inside)


def _is_inside(path: str, top: str) -> bool:
    return path == top or path.startswith(os.path.join(top, ""))


def _why_unreachable(cell: str, root: Path, error: Exception) -> str:
    if _URL.match(cell):
        return "is a URL; download the file, and name it by its path"
    outside = isinstance(error, _Outside)
    if isinstance(error, ValueError) and not outside:
        return "has a character that no file name can have, such as NUL; correct the cell"
    whole = os.path.join(root, cell)
    if outside or not _is_inside(os.path.realpath(whole), os.path.realpath(root)):
        if _is_inside(os.path.normpath(os.path.abspath(whole)), os.path.abspath(root)):
            way = "leads out of {} through a symbolic link"
        else:
            way = "is an absolute path outside {}" if os.path.isabs(cell) else "leads out of {} by '..'"
        return way.format(root) + "; move the file into that folder, or set data.root to one that holds both"
    if error.errno == errno.ENAMETOOLONG:
        return "is a longer name than this system allows; correct the cell"
    if error.errno == errno.ELOOP:
        return "is a symbolic link that leads in a circle; place the file there"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "lies in a folder that may not be entered (permission denied); change the folder's permissions"
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return f"cannot be reached: {error.strerror}"
    return _why_missing(cell, root)


def _why_missing(cell: str, root: Path) -> str:
    with_slashes = cell.replace("\\", "/")
    if with_slashes != cell and os.path.exists(os.path.join(root, with_slashes)):
        return f"is not there, but {with_slashes!r} is; write the path with /"
    folder = root
    for name in Path(cell).parts:
        below = os.path.join(folder, name)
        if os.path.islink(below) and not os.path.exists(below):
            return f"is not there: the symbolic link {below} leads to nothing; place the file there"
        if os.path.isfile(below) and below != os.path.join(root, cell):
            return f"is not there: {below} is a file, no folder; correct the cell"
        if not os.path.exists(below):
            break
        folder = below
    else:  # it appeared meanwhile
        return "is not there"
    if similar := _similar_name(str(folder), name):
        return f"is not there: {folder} has {similar!r} (letter case or Unicode normal form differ); correct the cell"
    return f"is not there: {folder} has no {name!r}; place it there, or correct the cell"


def _similar_name(folder: str, name: str) -> str | None:
    try:
        return _names_in(folder, os.stat(folder).st_mtime_ns).get(_fold(name))
    except OSError:
        return None


@lru_cache(maxsize=16)
def _names_in(folder: str, changed_at: int) -> dict[str, str]:
    """By their folded form. Thousands of rows may miss their file in the same large folder."""
    return {_fold(name): name for name in sorted(os.listdir(folder))}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
