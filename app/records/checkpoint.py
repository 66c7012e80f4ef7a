"""What a checkpoint holds, how it reaches the disk whole, what is checked when it is read.

The only user of torch.save and torch.load. A checkpoint is plain tensors, numbers, strings, lists and dicts:
torch.load(path, weights_only=True) reads it. Optimizer moments are kept by parameter name, never by position.
The file is a ZIP archive whose comment is the digest of all bytes before it.
"""

import hashlib
import math
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from app.messages import writing
from app.param_groups.freezing import group_around
from app.param_groups.groups import Group

FORMAT = "duet checkpoint"
VERSION = 2
# What train.py puts in and cannot do without: each part, with its type.
PARTS = {
    "epoch": int,
    "step": int,
    "best_loss": float,
    "saved_at": float,
    "val": dict,
    "config": dict,
    "class_names": list,
    "normalisation": dict,
    "image_weights": dict,
    "groups": list,
    "model": dict,
    "optimizer": dict,
    "learning_rates": dict,
    "best_weights": dict,
    "gradients": dict,
}
_REMEDY = "give a file that train.py wrote, such as runs/fusion/checkpoints/best.pt"
# A ZIP archive ends in this record, the last of its 22 bytes being the length of the comment after it.
_END_RECORD, _END_LENGTH = b"PK\x05\x06", 22
_SEAL, _SEAL_LENGTH = b"sha256:", 71
_PIECE = 2**20  # bytes


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


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content, on the CPU. Raises FileNotFoundError, or ValueError if it is damaged or something else."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"checkpoint {path} is a folder, not a file; {_REMEDY}")
    if path.exists() and not path.is_file():
        raise ValueError(f"checkpoint {path} is not a file; {_REMEDY}")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; {_REMEDY}")
    damaged = ValueError(f"checkpoint {path} is damaged, or was cut short; {_REMEDY}")
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise ValueError(f"checkpoint {path} is empty; {_REMEDY}")
            sealed = _is_sealed(file)
            if sealed is False or (sealed is None and _is_damaged_archive(file)):
                raise damaged
            content = _load(file, path)
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read ({error.strerror or error}); {_REMEDY}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} holds something else than a checkpoint of Duet; {_REMEDY}")
    if content.get("version") != VERSION:
        found = content.get("version")
        raise ValueError(f"checkpoint {path} has version {found}, this program reads {VERSION}; {_REMEDY}")
    if not sealed:
        raise damaged
    wrong = [name for name, kind in PARTS.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise ValueError(f"checkpoint {path} lacks {', '.join(wrong)}, or holds it in another form; {_REMEDY}")
    return content


def raise_if_not_finite(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: list[Group],
    losses: dict[str, float],
    *,
    epoch: int,
    step: int,
) -> None:
    """Call before saving: a checkpoint that is not finite is lost, and would take the place of one that is not.

    Args:
        losses: "training loss" and "validation loss" of the epoch.
        epoch, step: both finished.

    Raises FloatingPointError that names the groups and tensors (weights, buffers, moments), or the losses.
    """
    found: list[tuple[str, str, torch.Tensor]] = []  # group, name, tensor
    for group in groups:
        for name, parameter in group.parameters.items():
            found.append((group.name, name, parameter.detach()))
            found += [
                (group.name, f"{key} of {name}", value) for key, value in optimizer.state.get(parameter, {}).items()
            ]
    found += [(group_around(name, groups) or "no group", name, buffer) for name, buffer in model.named_buffers()]
    found = [(*names, tensor) for *names, tensor in found if isinstance(tensor, torch.Tensor)]
    finite = torch.stack([torch.isfinite(tensor).all() for *_, tensor in found]).tolist()
    bad = [(group, name) for (group, name, _), is_finite in zip(found, finite, strict=True) if not is_finite]
    bad_losses = [f"the {name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
    if not bad and not bad_losses:
        return
    names = list(dict.fromkeys(group for group, _ in bad))
    what = [f"{len(bad)} tensors of {' and '.join(names)} are not finite (first {bad[0][1]})"] if bad else []
    kept = f"the checkpoint of epoch {epoch - 1} stays" if epoch > 1 else "there is no checkpoint yet"
    whose = f"of {' and '.join(names)}" if bad else "of the groups"
    raise FloatingPointError(
        f"after epoch {epoch}, step {step}: {', '.join(what + bad_losses)}. Nothing was saved, {kept}. The same config "
        f"will fail at the same step again: lower the lr {whose}, or set clip_norm"
    )


def _load(file: BinaryIO, path: Path) -> Any:
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of archives that are not torch's own; the error says it
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is not one of its own
        raise ValueError(f"{path} is not a checkpoint; {_REMEDY}") from error


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


def _is_damaged_archive(file: BinaryIO) -> bool:
    """Whether this begins as a ZIP archive, and is not a whole one."""
    file.seek(0)
    if file.read(2) != b"PK":
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is not None
    except Exception:  # zipfile raises many kinds for what is damaged
        return True


def _digest(file: BinaryIO, length: int) -> bytes:
    """Of the first `length` bytes, in hexadecimal figures."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (piece := file.read(min(_PIECE, length))):
        digest.update(piece)
        length -= len(piece)
    return digest.hexdigest().encode()


def load_model_state(model: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Raises ValueError, before anything changes, unless names and shapes are exactly the model's."""
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not in the model" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"checkpoint {path} does not fit the model of this config: {'; '.join(problems[:3])}{more}; "
            "give the `model` section that it was trained with"
        )
    model.load_state_dict(state)


def optimizer_state(optimizer: torch.optim.Optimizer, groups: list[Group]) -> dict[str, dict[str, Any]]:
    """Parameter name -> its moments (exp_avg, ...). Settings are left out: they come from the config."""
    return {
        name: dict(optimizer.state[parameter])
        for group in groups
        for name, parameter in group.parameters.items()
        if parameter in optimizer.state
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, groups: list[Group], state: dict[str, dict[str, Any]], path: str | Path
) -> list[str]:
    """Gives each parameter the moments that were saved under its name.

    Returns the parameters whose saved moments are of no use: this optimizer keeps others, and starts afresh.
    Raises ValueError, before anything changes, if a moment is of another shape or not finite.
    """
    taken, afresh = {}, []
    for group in groups:
        wanted = _fresh_state(optimizer, group)
        for name, parameter in group.parameters.items():
            saved = state.get(name, {})
            if saved.keys() != wanted[name].keys():
                afresh += [name] if saved else []  # a group that was frozen so far has none
                continue
            taken[parameter] = {}
            for key, like in wanted[name].items():
                value = saved[key]
                if isinstance(like, torch.Tensor):
                    if not isinstance(value, torch.Tensor) or value.shape != like.shape:
                        raise ValueError(
                            f"checkpoint {path}: {key} of {name} has shape {tuple(getattr(value, 'shape', ()))}, "
                            f"this optimizer's has {tuple(like.shape)}; start without --resume"
                        )
                    if not torch.isfinite(value).all():
                        raise ValueError(
                            f"checkpoint {path}: {key} of {name} is not finite; resume from an earlier checkpoint"
                        )
                    value = value.to(device=like.device, dtype=like.dtype, copy=True)
                taken[parameter][key] = value
    optimizer.state.update(taken)
    return afresh


def _fresh_state(optimizer: torch.optim.Optimizer, group: Group) -> dict[str, dict[str, Any]]:
    """What the optimizer keeps for each parameter of a group: read off a first step on stand-ins."""
    names = {parameter: name for name, parameter in group.parameters.items()}
    fresh = {}
    for entry in group.param_groups:
        stand_ins = [torch.zeros_like(parameter).requires_grad_() for parameter in entry["params"]]
        for stand_in in stand_ins:
            stand_in.grad = torch.zeros_like(stand_in)
        trial = type(optimizer)([{**entry, "params": stand_ins}], lr=entry["lr"])
        trial.step()
        for parameter, stand_in in zip(entry["params"], stand_ins, strict=True):
            fresh[names[parameter]] = dict(trial.state[stand_in])
    return fresh
