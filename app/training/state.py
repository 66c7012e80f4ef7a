"""Everything that a run must not lose when it is stopped: one list of parts, saved and loaded alike."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from app.learning_rates.rules import Improvement
from app.param_groups.freezing import group_around
from app.param_groups.groups import Group

# In the order in which they are loaded.
STATE = ("position", "model", "optimizer", "train_step", "learning_rates", "best_weights")


class Part(Protocol):
    """Saved as plain tensors, numbers, strings, lists and dicts. Loading may return lines: what starts afresh."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> list[str] | None: ...


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 0  # finished
    step: int = 0  # finished
    best: Improvement = field(default_factory=lambda: Improvement("val/loss"))  # of the validation that best.pt is of

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, "monitor": self.best.monitor, "best": self.best.best}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        self.epoch, self.step = state["epoch"], state["step"]
        if state["monitor"] != self.best.monitor:
            return [f"best.pt (checkpoint.best.monitor: {state['monitor']} -> {self.best.monitor})"]
        self.best.best = state["best"]
        return []


class State:
    """The parts of STATE, each by its name."""

    def __init__(self, **parts: Part):
        if tuple(parts) != STATE:
            raise TypeError(f"expected the parts {', '.join(STATE)}, found {', '.join(parts)}")
        self.parts = parts

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, saved: dict[str, Any], path: str | Path) -> list[str]:
        """Returns what starts afresh because the config has changed. Raises ValueError that names `path`."""
        afresh = []
        for name, part in self.parts.items():
            try:
                afresh += part.load_state_dict(saved[name]) or []
            except ValueError as error:
                raise ValueError(f"checkpoint {path}: {error}") from None
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"checkpoint {path}: its part {name} has another form ({error!r})") from error
        return afresh


class ModelState:
    """Of a model as it is: names and shapes must be its own."""

    def __init__(self, model: nn.Module):
        self.model = model

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Raises ValueError, before anything changes, unless names and shapes are exactly the model's."""
        own = self.model.state_dict()
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
                f"does not fit the model of this config: {'; '.join(problems[:3])}{more}; "
                "give the `model` section that it was trained with"
            )
        self.model.load_state_dict(state)


class OptimizerState:
    """The moments (exp_avg, ...) by parameter name, never by position. Settings are left out: the config has them."""

    def __init__(self, optimizer: torch.optim.Optimizer, groups: list[Group]):
        self.optimizer = optimizer
        self.groups = groups

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {
            name: dict(self.optimizer.state[parameter])
            for group in self.groups
            for name, parameter in group.parameters.items()
            if parameter in self.optimizer.state
        }

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> list[str]:
        """Gives each parameter the moments that were saved under its name.

        Returns a line on the parameters whose saved moments are of no use: this optimizer keeps others.
        Raises ValueError, before anything changes, if a moment is of another shape or not finite.
        """
        taken, afresh = {}, []
        for group in self.groups:
            wanted = _fresh_state(self.optimizer, group)
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
                                f"{key} of {name} has shape {tuple(getattr(value, 'shape', ()))}, "
                                f"this optimizer's has {tuple(like.shape)}; start without --resume"
                            )
                        if not torch.isfinite(value).all():
                            raise ValueError(f"{key} of {name} is not finite; resume from an earlier checkpoint")
                        value = value.to(device=like.device, dtype=like.dtype, copy=True)
                    taken[parameter][key] = value
        self.optimizer.state.update(taken)
        if not afresh:
            return []
        return [f"{type(self.optimizer).__name__} for {len(afresh)} parameters, e.g. {afresh[0]}"]


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


def raise_if_not_finite(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: list[Group],
    losses: dict[str, float],
    position: Position,
) -> None:
    """Call before saving: a checkpoint that is not finite is lost, and would take the place of one that is not.

    Args:
        losses: "training loss" and "validation loss" of the epoch.
        position: after the epoch.

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
    flags: dict[torch.device, list[tuple[str, str, torch.Tensor]]] = {}  # an optimizer may keep `step` on the CPU
    for group, name, tensor in found:
        if isinstance(tensor, torch.Tensor):
            flags.setdefault(tensor.device, []).append((group, name, torch.isfinite(tensor).all()))
    bad = []
    for on_device in flags.values():  # one read-back for each device
        finite = torch.stack([flag for *_, flag in on_device]).tolist()
        bad += [(group, name) for (group, name, _), is_finite in zip(on_device, finite, strict=True) if not is_finite]
    bad_losses = [f"the {name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
    if not bad and not bad_losses:
        return
    names = list(dict.fromkeys(group for group, _ in bad))
    what = [f"{len(bad)} tensors of {' and '.join(names)} are not finite (first {bad[0][1]})"] if bad else []
    epoch, step = position.epoch, position.step
    kept = f"last.pt stays that of epoch {epoch - 1}" if epoch > 1 else "there is no checkpoint yet"
    whose = f"of {' and '.join(names)}" if bad else "of the groups"
    raise FloatingPointError(
        f"after epoch {epoch}, step {step}: {', '.join(what + bad_losses)}. This was not saved, {kept}. The same "
        f"config will fail at the same step again: lower the lr {whose}, or set clip_norm"
    )
