"""The files of a table: what each holds, and a folder that keeps what was decoded, for later runs too."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from app.messages import in_words, progress_bar
from data.assets import cache_folder
from data.files.decoding import read_bytes
from data.files.images import read_image
from data.files.paths import BadFile, resolve
from data.files.sequences import Sequence, read_sequence
from data.loaders import end_with_parent, possible_workers
from data.manifest.config import ManifestConfig
from data.transforms import one_thread

_FORMAT = 2  # of the entries and of stored_form: entries of another are not found
_DECODERS = ("numpy", "pillow", "soundfile", "torch", "torchaudio")  # another version may decode otherwise
_FILES_AT_ONCE = 128  # that a process looks at between two answers
_WORTH_PROCESSES = 512  # files; fewer are read sooner than processes start

File = tuple[str, str]  # a modality, and a cell of its column


class ImageFacts(NamedTuple):
    digest: str  # of the file's content
    width: int
    height: int
    depth: str  # numpy's name for the type of the values
    lowest: float
    highest: float


class SequenceFacts(NamedTuple):
    digest: str
    is_array: bool  # of a file whose rows may be frames or features
    length: int  # frames
    columns: tuple[str, ...] | None  # their names, where the file gives them
    mean: tuple[float, ...]  # of each feature, over the frames
    spread: tuple[float, ...]  # of each feature: the squared differences from the mean, summed


Facts = ImageFacts | SequenceFacts


class CacheError(OSError):
    """Of the cache itself, not of a file of the table."""


class Look(NamedTuple):
    """At one file.

    Fields:
        found: its facts; what is wrong with it; or an error that concerns all files.
        key, size: of its entry in the folder, in bytes.
        decoded: whether it was decoded; else its entry was there.
    """

    found: Facts | str | CacheError
    key: str = ""
    size: int = 0
    decoded: bool = True


class Cache:
    """Gives the stored form of files, which batches are made of: from a folder, from memory, or by decoding them.

    An entry of the folder is a file whose name is a hash of the content and of all that decides how it is decoded, so
    it never changes, and any number of runs can use it. It has one line of text: a checksum of the line, a checksum of
    the values, their type, their shape, the facts as JSON; then the values as they are in memory. It is written whole
    or not at all. One that is damaged counts as if it were not there: the file is decoded.

    Args:
        root: the folder that paths start from.
        folder: None: nothing is kept there.
    """

    def __init__(self, root: Path, config: ManifestConfig, folder: Path | None = None):
        self.root, self.config, self.folder = root, config, folder
        self.how = {name: _how(name, config) for name in ("image", "sequence")}
        self.keys: dict[File, str] = {}
        self.memory: dict[File, np.ndarray] | None = {} if config.cache == "memory" else None
        self.size = self.num_decoded = 0

    def look_at(self, files: Iterable[File]) -> tuple[dict[File, Facts], dict[File, str]]:
        """The facts of the files that can be read, and what is wrong with the others: each is read once, on all
        cores. With a folder, an entry is made of each that has none. Raises CacheError."""
        files, facts, problems = list(files), {}, {}
        chunks = [files[i : i + _FILES_AT_ONCE] for i in range(0, len(files), _FILES_AT_ONCE)]
        workers = min(possible_workers(), len(chunks)) if len(files) >= _WORTH_PROCESSES else 0
        processes = {"num_workers": workers, "worker_init_fn": end_with_parent}
        loader = DataLoader(_Looks(self), sampler=chunks, batch_size=None, collate_fn=list, **processes)
        with one_thread(), progress_bar(loader, "reading", "file", _FILES_AT_ONCE) as looks:
            for chunk, of_chunk in zip(chunks, looks, strict=True):
                for file, look in zip(chunk, of_chunk, strict=True):
                    if isinstance(look.found, CacheError):
                        raise look.found
                    if isinstance(look.found, str):
                        problems[file] = look.found
                        continue
                    facts[file], self.keys[file] = look.found, look.key
                    self.size += look.size
                    self.num_decoded += look.decoded
        return facts, problems

    def read(self, modality: str, cell: str) -> np.ndarray:
        """The stored form. Raises BadFile or OSError for what cannot be read any more."""
        if self.folder is not None:
            if (stored := self._kept_values(self.keys[modality, cell])) is not None:
                return stored
            with suppress(OSError):  # damaged: the next start makes it again
                self._path(self.keys[modality, cell]).unlink()
        if self.memory is not None and (modality, cell) in self.memory:
            return self.memory[modality, cell].copy()
        with one_thread():
            stored = stored_form(decode(modality, resolve(cell, self.root), self.config), self.config)
        if self.memory is not None:
            self.memory[modality, cell] = stored.copy()
        return stored

    def read_ahead(self) -> bool:
        """Whether reading takes so long that other processes should do it meanwhile: files are decoded each time, or
        do not fit into half of the machine's memory."""
        if self.folder is None or not hasattr(os, "sysconf"):
            return self.folder is None and self.memory is None
        return self.size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

    def note(self) -> str:
        size = in_words(self.size)
        return f"cache: {len(self.keys):,} files, {self.num_decoded:,} decoded now; {size} in {self.folder}"

    def look(self, modality: str, cell: str) -> Look:
        try:
            path = resolve(cell, self.root)
            digest = digest_of(path)
            key = self._key(modality, path, digest)
            if self.folder is not None and (kept := self._kept_facts(key, modality)):
                return Look(kept[0], key, kept[1], decoded=False)
            decoded = decode(modality, path, self.config)
            if digest_of(path) != digest:
                return Look("was changed while it was read; run again when it is at rest")
        except BadFile as error:
            return Look(str(error))
        except OSError as error:  # it went away, or changed its rights, since it was found
            return Look(f"cannot be read ({error.strerror or error})")
        facts = measure(decoded, path, digest)
        try:
            return Look(facts, key, self._keep(key, facts, stored_form(decoded, self.config)) if self.folder else 0)
        except OSError as error:
            why = error.strerror or error
            text = f"data.cache: {self.folder} cannot be written ({why}); make room, name another folder "
            return Look(CacheError(f"{text}(data.cache_folder), or set data.cache=none"))

    def _key(self, modality: str, path: Path, digest: str) -> str:
        suffix = path.suffix.lower() if modality == "sequence" else ""  # images are told apart by content
        return hashlib.blake2b(f"{self.how[modality]} {suffix} {digest}".encode(), digest_size=16).hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _keep(self, key: str, facts: Facts, stored: np.ndarray) -> int:
        """Returns the bytes of the entry."""
        values = stored.tobytes()
        shape = "x".join(map(str, stored.shape))
        line = f"{zlib.crc32(values):08x} {stored.dtype.str} {shape} {json.dumps(facts._asdict())}".encode()
        content = b"%08x %s\n%s" % (zlib.crc32(line), line, values)
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{key}-{os.getpid()}")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return len(content)

    def _kept_facts(self, key: str, modality: str) -> tuple[Facts, int] | None:
        """The facts, and the bytes of the entry; None where it is not there or damaged."""
        with suppress(OSError, ValueError), open(self._path(key), "rb") as file:
            fields = json.loads(_checked_line(file)[3])
            size = os.fstat(file.fileno()).st_size
            if modality == "image":
                return ImageFacts(**fields), size
            lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
            return SequenceFacts(**fields | lists), size

    def _kept_values(self, key: str) -> np.ndarray | None:
        """None where the entry is not there or damaged."""
        with suppress(OSError, ValueError), open(self._path(key), "rb") as file:
            checksum, kind, shape, _ = _checked_line(file)
            values = file.read()
            if zlib.crc32(values) == int(checksum, 16):
                return np.frombuffer(values, kind.decode()).reshape([*map(int, shape.split(b"x"))]).copy()


def _checked_line(file: BinaryIO) -> list[bytes]:
    """The first line of an entry, without its own checksum. Raises ValueError where it is damaged."""
    checksum, line = file.readline().removesuffix(b"\n").split(b" ", 1)
    if zlib.crc32(line) != int(checksum, 16):
        raise ValueError("damaged")
    return line.split(b" ", 3)


class _Looks(Dataset):
    """Indexed by lists of files, which reach a process one by one: it shares no list with the others."""

    def __init__(self, cache: Cache):
        self.cache = cache

    def __getitem__(self, files: list[File]) -> list[Look]:
        return [self.cache.look(*file) for file in files]


def folder_of(config: ManifestConfig) -> Path | None:
    """One for all tables; None where the config keeps decoded files elsewhere, or not."""
    if config.cache != "folder":
        return None
    top = Path(config.cache_folder).expanduser() if config.cache_folder else cache_folder()
    return top.absolute() / "decoded"


def _how(modality: str, config: ManifestConfig) -> str:
    """All that decides, beside a file's content, what its facts and its stored form are."""
    keys = {"size": config.stored_image_size, "max_pixels": config.image.max_pixels}
    if modality == "sequence":
        sequence = config.sequence.model_dump(exclude={"deltas", "normalise"})  # of batches
        keys = {"sequence": sequence, "audio": config.audio.model_dump()}
    versions = [metadata.version(name) for name in _DECODERS]
    return json.dumps([_FORMAT, modality, versions, keys], sort_keys=True)


def digest_of(path: Path) -> str:
    """Of the content. Raises BadFile."""
    return hashlib.blake2b(read_bytes(path), digest_size=16).hexdigest()


def decode(modality: str, path: Path, config: ManifestConfig) -> np.ndarray | Sequence:
    """The pixels of an image, or a sequence, as the file holds them. Raises BadFile."""
    if modality == "image":
        return read_image(path, config.image.max_pixels)
    return read_sequence(path, config.sequence, config.audio)


def stored_form(decoded: np.ndarray | Sequence, config: ManifestConfig) -> np.ndarray:
    """Of an image (C, h, w) in its depth, C 1 or 3: edges longer than config.stored_image_size are shrunk to it, and
    then whole numbers rounded, halves to the even one. Of a sequence (T, F) in its type, not normalised."""
    if isinstance(decoded, Sequence):
        return decoded.frames
    size = tuple(min(edge, config.stored_image_size) for edge in decoded.shape[1:])
    if size == decoded.shape[1:]:
        return decoded
    shrunk = interpolate(torch.from_numpy(decoded.astype(np.float32))[None], size, mode="bilinear", antialias=True)[0]
    return (shrunk if decoded.dtype == np.float32 else shrunk.round()).numpy().astype(decoded.dtype)


def measure(decoded: np.ndarray | Sequence, path: Path, digest: str) -> Facts:
    if isinstance(decoded, Sequence):
        frames = decoded.frames.astype(np.float64)
        mean = frames.mean(0)
        spread = np.square(frames - mean).sum(0)
        is_array = path.suffix.lower() in (".npy", ".npz")
        return SequenceFacts(
            digest, is_array, len(frames), decoded.columns, tuple(mean.tolist()), tuple(spread.tolist())
        )
    _, height, width = decoded.shape
    return ImageFacts(digest, width, height, decoded.dtype.name, float(decoded.min()), float(decoded.max()))
