"""What a checkpoint holds, how it reaches the disk whole, what is checked when it is read.

The only user of torch.save, and of torch.load but for weights files. A checkpoint is plain tensors, numbers, strings,
lists and dicts: torch.load(path, weights_only=True) reads it.
The file is a ZIP archive whose comment is the digest of all bytes before it.
"""

import hashlib
import os
import platform
import shutil
import struct
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import Field

from app.messages import writing
from app.section import Section
from app.training.state import STATE

FORMAT = "duet checkpoint"
VERSION = 6
# What a checkpoint cannot do without, with its type: what is known of the run, and the parts of its State.
_FACTS = {
    "saved_at": float,  # seconds since 1970
    "val": dict,
    "config": dict,
    "versions": dict,
    "data_spec": dict,
    "image_weights": dict,
    "groups": list,
}
PARTS = {**_FACTS, **dict.fromkeys(STATE, dict)}
_REMEDY = "give a file that train.py wrote, such as runs/fusion/checkpoints/best.pt"
# A ZIP archive ends in this record, the last of its 22 bytes being the length of the comment after it.
_END_RECORD, _END_LENGTH = b"PK\x05\x06", 22
_SEAL, _SEAL_LENGTH = b"sha256:", 71
_PIECE = 2**20  # bytes


class BestConfig(Section):
    monitor: str = Field(
        "val/loss", description="a validation metric, as for reductions: best.pt is of the validation where it was best"
    )


class CheckpointConfig(Section):
    best: BestConfig = Field(BestConfig(), description="which validation best.pt is of")


def versions() -> dict[str, str]:
    """By name, what the numbers of a run depend on."""
    packages = {name: metadata.version(name) for name in ("torch", "torchvision", "torchaudio")}
    return {"python": platform.python_version(), **packages, "machine": platform.machine()}


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` so that `path` holds either what it held before or all of it, also if the machine dies.

    Raises OSError that names `path`, where that fails.
    """
    temporary = path.parent / f".{path.name}-{os.getpid()}"
    with writing(path, "; what it held before is still there" if path.exists() else ""):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w+b") as file:
                torch.save({"format": FORMAT, "version": VERSION, **content}, file)
                _seal(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the new name itself must reach the disk
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def copy_checkpoint(source: Path, path: Path) -> None:
    """The whole file or none of it. Raises OSError that names `path`, where that fails."""
    temporary = path.parent / f".{path.name}-{os.getpid()}"
    with writing(path):
        try:
            shutil.copyfile(source, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content, on the CPU. Raises FileNotFoundError, or ValueError if it is damaged or something else."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist; {_REMEDY}")
    if not path.is_file():
        raise ValueError(f"checkpoint {path} is not a file; {_REMEDY}")
    damaged = ValueError(f"checkpoint {path} is damaged, cut short, or something else; {_REMEDY}")
    try:
        with open(path, "rb") as file:
            file.read(1)  # torch raises an OSError of its own for what is cut short
            sealed = _is_sealed(file)
            if sealed is False:
                raise damaged
            content = _load(file)
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read ({error.strerror or error}); {_REMEDY}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise damaged
    if content.get("version") != VERSION:
        found = content.get("version")
        raise ValueError(
            f"checkpoint {path} has version {found}, this program reads {VERSION}; use the release of Duet that wrote "
            "it, or train again"
        )
    if not sealed:
        raise damaged
    if wrong := [name for name, kind in PARTS.items() if not isinstance(content.get(name), kind)]:
        raise ValueError(f"checkpoint {path} lacks {', '.join(wrong)}, or holds it in another form; {_REMEDY}")
    return content


def _load(file: BinaryIO) -> Any:
    """None for what torch cannot read."""
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of archives that are not torch's own
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for what is not one of its own
        return None


def _seal(file: BinaryIO) -> None:
    """Appends the digest of the whole archive as its comment, which readers of ZIP archives pass over.

    The checksums inside an archive cover neither its structure nor, in torch.load, the tensors.
    """
    end = file.seek(-_END_LENGTH, os.SEEK_END)
    if not file.read(_END_LENGTH).startswith(_END_RECORD):
        raise RuntimeError("torch.save did not end its archive as a ZIP archive ends")
    file.seek(end + _END_LENGTH - 2)
    file.write(struct.pack("<H", _SEAL_LENGTH))
    seal = _SEAL + _digest(file, end + _END_LENGTH)
    file.seek(0, os.SEEK_END)
    file.write(seal)


def _is_sealed(file: BinaryIO) -> bool | None:
    """Whether the bytes are those that were saved; None where no digest says so."""
    length = file.seek(0, os.SEEK_END) - _SEAL_LENGTH
    if length < 0:
        return None
    file.seek(length)
    seal = file.read()
    return seal == _SEAL + _digest(file, length) if seal.startswith(_SEAL) else None


def _digest(file: BinaryIO, length: int) -> bytes:
    """Of the first `length` bytes, in hexadecimal figures."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (piece := file.read(min(_PIECE, length))):
        digest.update(piece)
        length -= len(piece)
    return digest.hexdigest().encode()
