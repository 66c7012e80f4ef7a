"""What the files of a table hold: each read once, on all cores; and the form in which it is stored."""

import gc
import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from app.messages import progress_bar
from data.files.decoding import read_bytes
from data.files.images import read_image
from data.files.paths import BadFile, resolve
from data.files.sequences import Sequence, read_sequence
from data.manifest.config import ManifestConfig

_FILES_AT_ONCE = 128  # that a process reads between two answers
_WORTH_PROCESSES = 512  # files; fewer are read sooner than processes start


class ImageFacts(NamedTuple):
    digest: bytes
    width: int
    height: int
    depth: str  # numpy's name for the type of the values
    lowest: float
    highest: float


class SequenceFacts(NamedTuple):
    digest: bytes
    is_array: bool  # of a file whose rows may be frames or features
    length: int  # frames
    columns: tuple[str, ...] | None  # their names, where the file gives them
    mean: np.ndarray  # (F,) float64, over the frames
    spread: np.ndarray  # (F,) float64: the squared differences from the mean, summed


File = tuple[str, str]  # a modality, and a cell of its column
Facts = ImageFacts | SequenceFacts


def decode(modality: str, path: Path, config: ManifestConfig) -> np.ndarray | Sequence:
    """The pixels of an image, or a sequence, as the file holds them. Raises BadFile."""
    if modality == "image":
        return read_image(path, config.image.max_pixels)
    return read_sequence(path, config.sequence, config.audio)


def stored_form(decoded: np.ndarray | Sequence, config: ManifestConfig) -> np.ndarray:
    """What batches are made of, whether it was in a cache or not.

    Of an image (C, h, w) in its depth, C 1 or 3: edges longer than config.stored_image_size are shrunk to it, and then
    whole numbers rounded, halves to the even one. Of a sequence (T, F) float32, not normalised.
    """
    if isinstance(decoded, Sequence):
        return decoded.frames
    size = tuple(min(edge, config.stored_image_size) for edge in decoded.shape[1:])
    if size == decoded.shape[1:]:
        return decoded
    shrunk = interpolate(torch.from_numpy(decoded.astype(np.float32))[None], size, mode="bilinear", antialias=True)[0]
    return (shrunk if decoded.dtype == np.float32 else shrunk.round()).numpy().astype(decoded.dtype)


@contextmanager
def one_thread() -> Iterator[None]:
    """For what must not depend on the number of threads, as sums of torch do: features of a recording differed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_facts(files: Iterable[File], root: Path, config: ManifestConfig) -> tuple[dict[File, Facts], dict[File, str]]:
    """The facts of the files that can be read, and what is wrong with the others."""
    files = list(files)
    chunks = [files[i : i + _FILES_AT_ONCE] for i in range(0, len(files), _FILES_AT_ONCE)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores, len(chunks)) if len(files) >= _WORTH_PROCESSES and _has_semaphores() else 0
    loader = DataLoader(
        _Facts(root, config), sampler=chunks, batch_size=None, num_workers=workers, collate_fn=_as_they_are
    )
    facts, problems = {}, {}
    gc.freeze()  # Python's garbage collection writes to all objects, and would give each process a copy of them
    try:
        with progress_bar(loader, "checking", "file", _FILES_AT_ONCE) as answers:
            for chunk, answer in zip(chunks, answers, strict=True):
                for file, found in zip(chunk, answer, strict=True):
                    (problems if isinstance(found, str) else facts)[file] = found
    finally:
        gc.unfreeze()
    return facts, problems


def _has_semaphores() -> bool:
    """Without them, as where /dev/shm is full or missing, no processes can be led."""
    try:
        multiprocessing.Semaphore()
    except (ImportError, OSError):
        return False
    return True


def _as_they_are(answer: list[Facts | str]) -> list[Facts | str]:
    return answer


class _Facts(Dataset):
    """Indexed by lists of files, which reach a process one by one: it shares no list with the others."""

    def __init__(self, root: Path, config: ManifestConfig):
        self.root, self.config = root, config

    def __getitem__(self, chunk: list[File]) -> list[Facts | str]:
        return [_read(modality, cell, self.root, self.config) for modality, cell in chunk]


def _read(modality: str, cell: str, root: Path, config: ManifestConfig) -> Facts | str:
    try:
        path = resolve(cell, root)
        return _measure(decode(modality, path, config), path, _digest(path))
    except BadFile as error:
        return str(error)
    except OSError as error:  # it went away, or changed its rights, since it was found
        return f"cannot be read ({error.strerror or error})"


def _measure(decoded: np.ndarray | Sequence, path: Path, digest: bytes) -> Facts:
    if isinstance(decoded, Sequence):
        frames = decoded.frames.astype(np.float64)
        mean = frames.mean(0)
        spread = np.square(frames - mean).sum(0)
        is_array = path.suffix.lower() in (".npy", ".npz")
        return SequenceFacts(digest, is_array, len(frames), decoded.columns, mean, spread)
    _, height, width = decoded.shape
    return ImageFacts(digest, width, height, decoded.dtype.name, float(decoded.min()), float(decoded.max()))


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(read_bytes(path), digest_size=16).digest()
