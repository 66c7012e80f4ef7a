"""The optimizer that the named groups describe: its class, each group's checked values, its torch `param_groups`."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import nn

from app.messages import nearest
from app.param_groups.groups import Group, GroupConfig, assign_parameters
from app.param_groups.layers import biases_and_norms, layers_in_order
from app.section import Section

# How a step is carried out, not what it does: chosen here, not in a config.
_IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
_OWN_KEYS = ("lr", "weight_decay", "betas", "eps")
# LBFGS needs a closure and takes no groups; SparseAdam takes sparse gradients only; Rprop, for whole data sets a step,
# reads lr at its first step alone.
_UNSUITABLE = {"Optimizer", "LBFGS", "SparseAdam", "Rprop"}


class OptimizerConfig(Section):
    name: str = Field(description="a class of torch.optim that takes groups and needs no closure, fused where possible")
    clip_norm: float | None = Field(
        None, gt=0, description="largest gradient norm, over all groups without a clip_norm of their own"
    )
    groups: dict[str, GroupConfig] = Field(
        description="by name: every trainable parameter belongs to exactly one group"
    )


def known_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """The classes of torch.optim that take param groups, need no closure and follow a changed lr."""
    classes = {name: getattr(torch.optim, name) for name in dir(torch.optim) if name not in _UNSUITABLE}
    return {n: c for n, c in classes.items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)}


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> tuple[torch.optim.Optimizer, list[Group]]:
    """The optimizer over all trainable parameters of `model`, and its groups in the order of the config.

    Raises ValueError unless every trainable parameter belongs to exactly one group, every group and pattern
    matches something, and every value is one that the optimizer class knows and accepts.
    """
    classes = known_optimizers()
    if config.name not in classes:
        raise ValueError(f"optimizer.name: unknown optimizer '{config.name}'; {nearest(config.name, list(classes))}")
    optimizer_class = classes[config.name]
    claimed = assign_parameters(model, config.groups)
    entries = []
    for name, group in config.groups.items():
        values = _values_for(optimizer_class, group, f"optimizer.groups.{name}")
        entries += _split(model, name, group, claimed[name], values)
    optimizer = _construct(optimizer_class, entries)
    groups = [
        Group(name, group, claimed[name], [entry for entry in optimizer.param_groups if entry["name"] == name])
        for name, group in config.groups.items()
    ]
    return optimizer, groups


def _values_for(optimizer_class: type, group: GroupConfig, key: str) -> dict[str, Any]:
    """The group's values as arguments of the optimizer class, proved to be known to it and in its ranges."""
    known = [name for name in inspect.signature(optimizer_class).parameters if name not in {"params", *_IMPLEMENTATION}]
    values = {name: getattr(group, name) for name in _OWN_KEYS if getattr(group, name) is not None}
    for name in ("betas", "eps"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    for name in values:
        if name not in known:
            raise ValueError(f"{key}.{name}: {optimizer_class.__name__} has no {name}; it has {', '.join(known)}")
    if "eps" in values:
        pair = isinstance(inspect.signature(optimizer_class).parameters["eps"].default, tuple)
        if isinstance(values["eps"], tuple) != pair:
            wanted = "two numbers, e.g. [null, 1.0e-3]" if pair else "one number"
            raise ValueError(f"{key}.eps: found {group.eps}, {optimizer_class.__name__} takes {wanted}")
    for name, value in group.options.items():
        if name in _OWN_KEYS:
            raise ValueError(f"{key}.options.{name}: belongs one level up, as {key}.{name}")
        if name not in known:
            further = [n for n in known if n not in _OWN_KEYS]
            raise ValueError(
                f"{key}.options.{name}: {optimizer_class.__name__} has no such argument; {nearest(name, further)}"
            )
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        # torch checks ranges of its constructor's arguments, not those of groups: so each group is one, once.
        optimizer_class([nn.Parameter(torch.zeros(1, 1))], **values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key}: {optimizer_class.__name__} refuses it: {error}") from None
    return values


def _split(
    model: nn.Module, name: str, group: GroupConfig, parameters: dict[str, nn.Parameter], values: dict[str, Any]
) -> list[dict[str, Any]]:
    """The torch param_groups of one named group: by weight decay and by layer where it asks for that."""
    undecayed = biases_and_norms(model) if group.no_decay else set()
    scales = _layer_scales(model, name, group, parameters) if group.layer_decay is not None else {}
    parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in parameters.values():
        parts.setdefault((scales.get(parameter, 1.0), parameter in undecayed), []).append(parameter)
    entries = []
    for (scale, is_undecayed), members in sorted(parts.items(), key=lambda part: part[0]):
        entry = {"params": members, "name": name, "lr_scale": scale, **values, "lr": values["lr"] * scale}
        entries.append(entry | ({"weight_decay": 0.0} if is_undecayed else {}))
    return entries


def _layer_scales(
    model: nn.Module, name: str, group: GroupConfig, parameters: dict[str, nn.Parameter]
) -> dict[nn.Parameter, float]:
    """Parameter -> layer_decay ** (layers between it and the group's output)."""
    top = {full_name.split(".")[0] for full_name in parameters}
    if len(top) != 1:
        raise ValueError(
            f"optimizer.groups.{name}.layer_decay: the group spans several modules ({', '.join(sorted(top))}), "
            "which have no common order of layers; make one group of each"
        )
    module = top.pop()
    try:
        layers = layers_in_order(model.get_submodule(module))
    except ValueError as error:
        raise ValueError(
            f"optimizer.groups.{name}.layer_decay: {module} is no sequence: {error}; leave layer_decay out"
        ) from None
    own = set(parameters.values())
    layers = [kept for layer in layers if (kept := [parameter for parameter in layer if parameter in own])]
    return {
        parameter: group.layer_decay ** (len(layers) - 1 - depth)
        for depth, layer in enumerate(layers)
        for parameter in layer
    }


def _construct(optimizer_class: Callable, entries: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """fused where class and device have it: one kernel per step, where the CPU default loops over the tensors."""
    device = entries[0]["params"][0].device.type
    fused = "fused" in inspect.signature(optimizer_class).parameters
    fused &= device == "cpu" or (device == "cuda" and optimizer_class is not torch.optim.Adagrad)
    fused &= not any(entry.get("dampening") for entry in entries)  # see _begin_momentum
    try:
        optimizer = optimizer_class(entries, **({"fused": True} if fused else {}))
    except ValueError as error:  # e.g. Muon, which takes matrices only
        raise ValueError(f"optimizer.name: {optimizer_class.__name__} refuses these groups: {error}") from None
    if fused and optimizer_class is torch.optim.SGD:
        optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: torch.optim.Optimizer, *_) -> None:
    """Fused SGD fails where some parameters of an entry have a momentum and others get their first gradient: a branch
    whose input the first batches lacked. These begin at 0, which without dampening is what torch does elsewhere."""
    for entry in optimizer.param_groups:
        moving = [parameter for parameter in entry["params"] if parameter.grad is not None]
        new = [parameter for parameter in moving if "momentum_buffer" not in optimizer.state.get(parameter, {})]
        if entry["momentum"] and len(new) < len(moving):
            for parameter in new:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
