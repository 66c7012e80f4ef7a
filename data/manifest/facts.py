"""What the files of a table hold: each read once, on all cores."""

import gc
import hashlib
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from app.messages import progress_bar
from data.files.images import read_image
from data.files.paths import BadFile, resolve
from data.files.sequences import read_sequence
from data.manifest.config import ManifestConfig

_FILES_AT_ONCE = 128  # that a process reads between two answers
_PIECE = 2**20  # bytes
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
        if modality == "image":
            pixels = read_image(path, config.image.max_pixels)
            _, height, width = pixels.shape
            lowest, highest = float(pixels.min()), float(pixels.max())
            return ImageFacts(_digest(path), width, height, pixels.dtype.name, lowest, highest)
        sequence = read_sequence(path, config.sequence, config.audio)
        frames = sequence.frames.astype(np.float64)
        mean = frames.mean(0)
        spread = np.square(frames - mean).sum(0)
        is_array = path.suffix.lower() in (".npy", ".npz")
        return SequenceFacts(_digest(path), is_array, len(frames), sequence.columns, mean, spread)
    except BadFile as error:
        return str(error)
    except OSError as error:  # it went away, or changed its rights, since it was found
        return f"cannot be read ({error.strerror or error})"


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.digest()
