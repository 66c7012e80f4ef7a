"""Where batches get the stored form of a file (see data/manifest/facts.py) from: a folder, memory, or the file itself.

A folder is an LMDB environment. The key of an item is a hash of a file's content and of all that decides how it is
decoded, its value the facts and the stored form (see data/manifest/items.py). So an item never changes.
"""

import errno
import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Protocol

import lmdb
import numpy as np

from app.messages import in_words
from data.assets import cache_folder
from data.files.paths import resolve
from data.manifest.config import ManifestConfig
from data.manifest.facts import Facts, File, decode, stored_form
from data.manifest.items import Damaged, facts_in, stored_in
from data.transforms import one_thread

_FORMAT = 1  # of the items and of stored_form: items of another are not found
_DECODERS = ("numpy", "pillow", "soundfile", "torch", "torchaudio")  # another version may decode otherwise
_MOST_READERS = 1024  # at one moment, in all processes
_MOST_BYTES = 2**44
_LOCKS = 2**20  # bytes, and more than lock.mdb has
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # EIO: LMDB's word for a write that ends early
_DAMAGE = (Damaged, struct.error, lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError)


class CacheError(OSError):
    """Of the cache itself, not of a file of the table."""


class Answer(NamedTuple):
    """Of one file: its facts, or what is wrong with it; where a cache has it.

    Fields:
        item: of a file that was decoded; None: of one that was in the cache, or has got there since.
        added: bytes that the cache takes for it; 0: it was there.
    """

    found: Facts | str
    key: bytes = b""
    item: bytes | None = None
    added: int = 0


class Samples(Protocol):
    def read_ahead(self) -> bool:
        """Whether reading takes so long that other processes should do it meanwhile."""

    def read(self, modality: str, cell: str) -> np.ndarray:
        """The stored form; a copy. Raises BadFile or OSError for what cannot be read any more."""


class Uncached:
    """Each file is decoded whenever it is asked for."""

    def __init__(self, root: Path, config: ManifestConfig):
        self.root, self.config = root, config

    def read_ahead(self) -> bool:
        return True

    def read(self, modality: str, cell: str) -> np.ndarray:
        with one_thread():
            return stored_form(decode(modality, resolve(cell, self.root), self.config), self.config)


class Keys:
    """file -> 16 bytes. In arrays: of a dict, forked processes would come to have copies, object by object."""

    def __init__(self, keys: dict[File, bytes]):
        hashes = np.array([_hash_of(file) for file in keys], dtype=np.uint64)
        order = np.argsort(hashes)
        self.hashes = hashes[order]
        self.keys = np.frombuffer(b"".join(keys.values()), dtype=np.uint8).reshape(-1, 16)[order]
        assert (self.hashes[1:] != self.hashes[:-1]).all()

    def __getitem__(self, file: File) -> bytes:
        wanted = _hash_of(file)
        place = self.hashes.searchsorted(wanted)
        if place == len(self.hashes) or self.hashes[place] != wanted:
            raise KeyError(file)
        return self.keys[place].tobytes()


def _hash_of(file: File) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b("\0".join(file).encode(), digest_size=8).digest(), "little"))


class FolderCache:
    """In a folder that later runs find again, and that several may build and read at once.

    Built by read_facts, which calls `key`, `find`, `size_of` and `put` in many processes, and the rest in one. Then it
    can be read, also by processes that are forked or spawned. Raises CacheError.
    """

    files_at_once = 128

    def __init__(self, config: ManifestConfig):
        self.folder = folder_of(config)
        self.how = {name: _how(name, config) for name in ("image", "sequence")}
        self.keys, self.num_found = Keys({}), 0

    def open(self) -> None:
        """Before it is built."""
        with _telling(self.folder):
            if self.folder in _OPEN:  # it may have been deleted since
                _OPEN.pop(self.folder).close()
            _environment(self.folder).reader_check()  # for processes that were killed
            needed = self._size()
            if os.path.getsize(self.folder / "data.mdb") < needed:
                raise Damaged("data.mdb is cut off")

    def key(self, modality: str, path: Path, digest: bytes) -> bytes:
        suffix = path.suffix.lower() if modality == "sequence" else ""  # images are told apart by content
        parts = self.how[modality], os.fsencode(suffix), digest
        return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()

    def find(self, key: bytes) -> Facts | None:
        with _telling(self.folder), _environment(self.folder).begin(buffers=True) as transaction:
            item = transaction.get(key)
            return None if item is None else facts_in(item)

    def size_of(self, item: bytes) -> int:
        page = _environment(self.folder).stat()["psize"]
        small = len(item) < page // 2  # shares a page with others, which is two thirds full on average
        return len(item) * 3 // 2 if small else -(-(len(item) + 16) // page) * page

    def put(self, answers: list[Answer]) -> list[Answer]:
        """In one transaction, which waits for those of other processes. Returns them without the items."""
        with _telling(self.folder), _environment(self.folder).begin(write=True) as transaction:
            for answer in answers:
                if answer.item is not None:
                    transaction.put(answer.key, answer.item, overwrite=False)
        return [answer._replace(item=None) for answer in answers]

    def keep(self, answers: list[Answer]) -> list[Answer]:
        return answers

    def check_room(self, expected: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if expected > free:
            raise CacheError(
                f"data.cache: about {in_words(expected)} are needed, and {in_words(free)} are free on the disk of "
                f"{self.folder}; name a folder of another disk (data.cache_folder), or set data.cache=none"
            )

    def finish(self, keys: dict[File, bytes], num_found: int) -> None:
        self.keys, self.num_found = Keys(keys), num_found

    def read_ahead(self) -> bool:
        """The system keeps what it has read in memory that nobody needs: half of it is counted on."""
        return self._size() > _available_memory() // 2

    def read(self, modality: str, cell: str) -> np.ndarray:
        with _telling(self.folder), _environment(self.folder).begin(buffers=True) as transaction:
            item = transaction.get(self.keys[modality, cell])
            if item is None:
                raise Damaged("it was built, and is gone")
            return stored_in(item)

    def note(self) -> str:
        size = in_words(self._size())
        return f"cache: {len(self.keys.keys):,} files, {self.num_found:,} were there; {size} in {self.folder}"

    def _size(self) -> int:
        with _telling(self.folder):
            environment = _environment(self.folder)
            return (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]


class MemoryCache:
    """In the memory of this process. See FolderCache."""

    files_at_once = 16  # each answer has all items of a piece

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.keys, self.num_found = Keys({}), 0

    def open(self) -> None:
        pass

    def key(self, modality: str, path: Path, digest: bytes) -> bytes:
        return b""

    def find(self, key: bytes) -> None:
        return None

    def size_of(self, item: bytes) -> int:
        return len(item)

    def put(self, answers: list[Answer]) -> list[Answer]:
        return answers

    def keep(self, answers: list[Answer]) -> list[Answer]:
        """Their keys are where the items are: number of the piece, and first byte."""
        kept, start = [], 0
        for answer in answers:
            kept.append(answer._replace(item=None, key=struct.pack("<QQ", len(self.pieces), start)))
            start += answer.added
        self.pieces.append(b"".join(answer.item for answer in answers if answer.item is not None))
        return kept

    def check_room(self, expected: int) -> None:
        free = _available_memory()
        if expected > free:
            raise CacheError(
                f"data.cache=memory: about {in_words(expected)} are needed, and {in_words(free)} of memory are free; "
                "set data.cache=folder or none"
            )

    def finish(self, keys: dict[File, bytes], num_found: int) -> None:
        self.keys, self.num_found = Keys(keys), num_found

    def read_ahead(self) -> bool:
        return False

    def read(self, modality: str, cell: str) -> np.ndarray:
        piece, start = struct.unpack("<QQ", self.keys[modality, cell])
        return stored_in(memoryview(self.pieces[piece])[start:])

    def note(self) -> str:
        size = in_words(sum(map(len, self.pieces)))
        return f"cache: {len(self.keys.keys):,} files, {size} in memory"


def make_cache(config: ManifestConfig) -> FolderCache | MemoryCache | None:
    if config.cache == "none":
        return None
    return FolderCache(config) if config.cache == "folder" else MemoryCache()


def folder_of(config: ManifestConfig) -> Path:
    """One for each table, by its place."""
    table = Path(config.manifest).resolve()
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in table.name)[:40]
    top = Path(os.path.expanduser(config.cache_folder)) if config.cache_folder else cache_folder()
    return top.absolute() / "samples" / f"{name}-{hashlib.blake2b(os.fsencode(table), digest_size=4).hexdigest()}"


def _how(modality: str, config: ManifestConfig) -> bytes:
    """All that decides, beside a file's content, what its facts and its stored form are."""
    keys = {"size": config.stored_image_size, "max_pixels": config.image.max_pixels}
    if modality == "sequence":
        sequence = config.sequence.model_dump(exclude={"deltas", "normalise"})  # of batches
        keys = {"sequence": sequence, "audio": config.audio.model_dump()}
    versions = [metadata.version(name) for name in _DECODERS]
    return json.dumps([_FORMAT, modality, versions, keys], sort_keys=True).encode()


def _available_memory() -> int:
    """Bytes that can be had without swapping; where the system does not say, those of the machine."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    with suppress(AttributeError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize


# By folder, open in this process. LMDB allows no second one, nor one that is open during a fork.
_OPEN: dict[Path, lmdb.Environment] = {}


def _close_all() -> None:
    while _OPEN:
        _OPEN.popitem()[1].close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_all)


def _environment(folder: Path) -> lmdb.Environment:
    if folder not in _OPEN:
        folder.mkdir(parents=True, exist_ok=True)
        total, _, free = shutil.disk_usage(folder)
        if free < _LOCKS and not (folder / "lock.mdb").exists():  # writing to a map of it would end the process
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # The largest that it can become. Without metasync a power cut may take the last items, and leaves the others.
        size = min(total, _MOST_BYTES) // 2**20 * 2**20
        _OPEN[folder] = lmdb.open(str(folder), map_size=size, metasync=False, max_readers=_MOST_READERS)
    return _OPEN[folder]


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    """What is wrong with the folder, in one line."""
    try:
        yield
    except (lmdb.Error, OSError, *_DAMAGE) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        if isinstance(error, lmdb.MapFullError) or {getattr(error, "code", 0), getattr(error, "errno", 0)} & _FULL:
            text = f"the disk of {folder} is full (or fails); make room, name another folder (data.cache_folder), "
        elif isinstance(error, _DAMAGE):
            raise CacheError(f"data.cache: {folder} is damaged ({why}); delete it and run again") from error
        else:
            text = f"{folder} cannot be used ({why}); name another folder (data.cache_folder), "
        raise CacheError(f"data.cache: {text}or set data.cache=memory or none") from error
