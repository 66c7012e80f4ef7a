"""What a checkpoint holds, how it reaches the disk whole, what is checked when it is read.

The only user of torch.save and torch.load. A checkpoint is plain tensors, numbers, strings, lists and dicts:
torch.load(path, weights_only=True) reads it. Optimizer moments are kept by parameter name, never by position.
"""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.freezing import group_around
from app.param_groups import Group

FORMAT = "duet checkpoint"
VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` so that `path` holds either what it held before or all of it, also if the machine dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.name}-{os.getpid()}"
    try:
        with open(name, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
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
    remedy = "give a file that train.py wrote, such as runs/fusion/checkpoints/best.pt"
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; {remedy}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load itself accepts a flipped bit
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a checkpoint, or was cut short ({error}); {remedy}") from None
    if damaged:
        raise ValueError(f"checkpoint {path} is damaged (checksum of {damaged}); {remedy}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for an archive that is not one of its own
        raise ValueError(f"{path} is not a checkpoint ({str(error).splitlines()[0]}); {remedy}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} holds something else than a checkpoint of Duet; {remedy}")
    if content["version"] != VERSION:
        raise ValueError(f"checkpoint {path} has version {content['version']}, this program reads {VERSION}; {remedy}")
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
