"""Named parameter groups: which parameters, with which values, and the optimizer that holds them.

A group is what the user named in `optimizer.groups`. Everything else in Duet (learning rates, statistics,
checkpoints, tables) speaks of groups by these names, never by position, also where a group needs several
torch `param_groups` (parameters without weight decay, layers with an lr of their own).
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from app.config_schema import GroupConfig, OptimizerConfig, nearest
from app.messages import format_table
from app.param_groups.layers import biases_and_norms, layers_in_order

# How a step is carried out, not what it does: chosen here, not in a config.
_IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
_OWN_KEYS = ("lr", "weight_decay", "betas", "eps")
# LBFGS needs a closure and takes no groups; SparseAdam takes sparse gradients only.
_UNSUITABLE = {"Optimizer", "LBFGS", "SparseAdam"}


@dataclass(frozen=True)
class Group:
    """A named group, and the torch `param_groups` that carry it out.

    Each entry of `param_groups` is the optimizer's own, live, and has the keys `name` (the group's) and
    `lr_scale` (1, or less in the lower layers of a group with layer_decay).
    """

    name: str
    config: GroupConfig
    parameters: dict[str, nn.Parameter]  # by full name in the model
    param_groups: list[dict[str, Any]]

    @property
    def num_values(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())


def known_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """The classes of torch.optim that take param groups and need no closure."""
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


def patterns_of(name: str, group: GroupConfig) -> list[str]:
    """The globs that claim a group's parameters: its own, or all below the module of its name."""
    return group.params if group.params is not None else [f"{name}.*"]


def assign_parameters(model: nn.Module, groups: dict[str, GroupConfig]) -> dict[str, dict[str, nn.Parameter]]:
    """Group name -> full parameter name -> parameter, each trainable parameter exactly once."""
    # A tied parameter goes by several names, and is one parameter: identity decides.
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names_of.setdefault(parameter, []).append(name)
    all_names = [name for names in names_of.values() for name in names]

    for group_name, group in groups.items():
        if not patterns_of(group_name, group):
            raise ValueError(f"optimizer.groups.{group_name}.params: empty; give a pattern, or leave `params` out")
        for pattern in patterns_of(group_name, group):
            if not any(fnmatchcase(name, pattern) for name in all_names):
                raise ValueError(_nothing_matches(model, group_name, group, pattern))

    claimed: dict[str, dict[str, nn.Parameter]] = {name: {} for name in groups}
    unclaimed, contested = [], []
    for parameter, names in names_of.items():
        owners = [
            group_name
            for group_name, group in groups.items()
            if any(fnmatchcase(name, pattern) for name in names for pattern in patterns_of(group_name, group))
        ]
        if len(owners) == 1:
            claimed[owners[0]][names[0]] = parameter
        elif owners:
            contested.append(f"{' = '.join(names)} (in {' and '.join(owners)})")
        else:
            unclaimed.append(names[0])
    if contested:
        raise ValueError(
            f"optimizer.groups: {_listed(contested, 'parameters')} belong to more than one group; "
            "narrow the `params` patterns until each belongs to one"
        )
    if unclaimed:
        raise ValueError(
            f"optimizer.groups: {_listed(unclaimed, 'trainable parameters')} belong to no group; "
            "add a group, or a `params` pattern that matches them"
        )
    return claimed


def hyperparameters(groups: list[Group]) -> dict[str, dict[str, float]]:
    """{group: {"lr", "effective_lr", "weight_decay", "beta1", "beta2"}} as the optimizer has them now.

    lr is that of the group's output side where layers differ; effective_lr is 0 while the group is frozen.
    """
    readings = {}
    for group in groups:
        lr = max(entry["lr"] for entry in group.param_groups)
        frozen = not any(parameter.requires_grad for parameter in group.parameters.values())
        readings[group.name] = {"lr": lr, "effective_lr": 0.0 if frozen else lr}
        entry = group.param_groups[0]
        if "weight_decay" in entry:
            readings[group.name]["weight_decay"] = max(entry["weight_decay"] for entry in group.param_groups)
        readings[group.name] |= {f"beta{i}": beta for i, beta in enumerate(entry.get("betas", ()), start=1)}
    return readings


def describe_groups(groups: list[Group]) -> list[dict[str, Any]]:
    """The group table as plain values, for checkpoints."""
    values = hyperparameters(groups)
    return [
        {
            "name": group.name,
            "patterns": patterns_of(group.name, group.config),
            "parameters": list(group.parameters),
            "num_values": group.num_values,
            **values[group.name],
        }
        for group in groups
    ]


def group_table(groups: list[Group]) -> str:
    """The groups with their values, one a line."""
    rows = []
    for group in groups:
        entry = group.param_groups[0]
        spared = sum(len(e["params"]) for e in group.param_groups if group.config.no_decay and not e["weight_decay"])
        row = {
            "group": group.name,
            "parameters": " ".join(patterns_of(group.name, group.config)),
            "tensors": str(len(group.parameters)),
            "values": f"{group.num_values:,}",
            "frozen": f"{group.config.freeze_until} epochs" if group.config.freeze_until else "no",
            "lr": _range([e["lr"] for e in group.param_groups]),
            "weight decay": _range([e["weight_decay"] for e in group.param_groups if "weight_decay" in e], last=True),
            "no decay": f"{spared} tensors" if spared else "-",
            "betas": ", ".join(f"{beta:g}" for beta in entry["betas"]) if "betas" in entry else "-",
            "eps": _eps(entry.get("eps", "-")),
        }
        row["options"] = ", ".join(f"{key}={value}" for key, value in group.config.options.items()) or "-"
        rows.append(row)
    return format_table([tuple(rows[0]), *(tuple(row.values()) for row in rows)], left=(0, 1))


def parameter_table(groups: list[Group]) -> str:
    """Each parameter on a line, with its group and its values."""
    rows = [("parameter", "group", "shape", "lr", "weight decay")]
    for group in groups:
        for name, parameter in group.parameters.items():
            entry = next(e for e in group.param_groups if any(p is parameter for p in e["params"]))
            decay = f"{entry['weight_decay']:g}" if "weight_decay" in entry else "-"
            shape = " x ".join(map(str, parameter.shape)) or "scalar"
            rows.append((name, group.name, shape, f"{entry['lr']:.4g}", decay))
    return format_table(rows, left=(0, 1))


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
    for name, value in group.options.items():
        if name in _OWN_KEYS:
            raise ValueError(f"{key}.options.{name}: belongs one level up, as {key}.{name}")
        if name not in known:
            further = [n for n in known if n not in _OWN_KEYS]
            raise ValueError(
                f"{key}.options.{name}: {optimizer_class.__name__} has no such argument; {nearest(name, further)}"
            )
        values[name] = tuple(value) if isinstance(value, list) else value
    if group.no_decay and "weight_decay" not in known:
        raise ValueError(f"{key}.no_decay: {optimizer_class.__name__} has no weight decay to spare anything from")
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
    spared = biases_and_norms(model) if group.no_decay else set()
    scales = _layer_scales(model, name, group, parameters) if group.layer_decay is not None else {}
    parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in parameters.values():
        parts.setdefault((scales.get(parameter, 1.0), parameter in spared), []).append(parameter)
    entries = []
    for (scale, is_spared), members in sorted(parts.items(), key=lambda part: part[0]):
        entry = {"params": members, "name": name, "lr_scale": scale, **values, "lr": values["lr"] * scale}
        entries.append(entry | ({"weight_decay": 0.0} if is_spared else {}))
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
    try:
        return optimizer_class(entries, **({"fused": True} if fused else {}))
    except ValueError as error:  # e.g. Muon, which takes matrices only
        raise ValueError(f"optimizer.name: {optimizer_class.__name__} refuses these groups: {error}") from None


def _nothing_matches(model: nn.Module, group_name: str, group: GroupConfig, pattern: str) -> str:
    key = f"optimizer.groups.{group_name}"
    names = [name for name, _ in model.named_parameters()]
    frozen = [name for name in names if fnmatchcase(name, pattern)]
    if frozen:
        return (
            f"{key}: everything that '{pattern}' matches is frozen already: {_listed(frozen, 'parameters')}; "
            "let them require gradients, or drop the group"
        )
    if group.params is not None:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
        hint = f"; the nearest parameter is {near[0]}" if near else ""
        return f"{key}.params: '{pattern}' matches no trainable parameter (patterns match whole names){hint}"
    modules = ", ".join(name for name, _ in model.named_children())
    return (
        f"{key}: the model has no trainable parameter below a module '{group_name}'; "
        f"name the group after one of {modules}, or give it `params` patterns"
    )


def _range(values: list[float], last: bool = False) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{high:g}" if last or low == high else f"{low:.2g} to {high:g}"


def _eps(eps: Any) -> str:
    values = eps if isinstance(eps, tuple) else [eps]  # Adafactor has two
    return ", ".join(f"{value:g}" if isinstance(value, float | int) else str(value) for value in values)


def _listed(names: list[str], what: str) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what} ({', '.join(names[:10])}{more})"
