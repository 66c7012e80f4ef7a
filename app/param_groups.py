"""Named parameter groups: which parameters, with which values, and the optimizer that holds them.

A group is what the user named in `optimizer.groups`. Everything else in Duet (learning rates, statistics,
checkpoints, tables) speaks of groups by these names, never by position.
"""

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from app.config import GroupConfig, OptimizerConfig


@dataclass(frozen=True)
class Group:
    """A named group, and the torch `param_groups` entry that carries it out."""

    name: str
    patterns: list[str]
    parameters: dict[str, nn.Parameter]  # by full name in the model
    param_group: dict  # the optimizer's own, live

    @property
    def num_values(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> tuple[torch.optim.Optimizer, list[Group]]:
    """The optimizer over all trainable parameters of `model`, and its groups in the order of the config.

    Raises ValueError unless every trainable parameter belongs to exactly one group and every group and
    pattern matches something; the message gives the full names.
    """
    claimed = assign_parameters(model, config.groups)
    entries = [
        {
            "params": list(claimed[name].values()),
            "name": name,
            "lr": group.lr,
            "weight_decay": group.weight_decay,
            "betas": tuple(group.betas),
        }
        for name, group in config.groups.items()
    ]
    # fused: one kernel per group and step; on a CPU the default is a Python loop over the tensors (3.9x slower).
    optimizer = getattr(torch.optim, config.name)(entries, fused=True)
    groups = [
        Group(name, patterns_of(name, group), claimed[name], param_group)
        for (name, group), param_group in zip(config.groups.items(), optimizer.param_groups, strict=True)
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


def group_table(groups: list[Group]) -> str:
    """The groups, one a line, as printed at the start of a run."""
    rows = [("group", "parameters", "tensors", "values", "lr", "weight decay", "betas")]
    for group in groups:
        values = group.param_group
        betas = ", ".join(f"{beta:g}" for beta in values["betas"])
        rows.append(
            (
                group.name,
                " ".join(group.patterns),
                str(len(group.parameters)),
                f"{group.num_values:,}",
                f"{values['lr']:g}",
                f"{values['weight_decay']:g}",
                betas,
            )
        )
    return format_table(rows, left=(0, 1))


def hyperparameters(groups: list[Group]) -> dict[str, dict[str, float]]:
    """{group: {"lr", "weight_decay", "beta1", "beta2"}}, read from the optimizer as they are now."""
    readings = {}
    for group in groups:
        values = group.param_group
        readings[group.name] = {"lr": values["lr"], "weight_decay": values["weight_decay"]}
        readings[group.name] |= {f"beta{i}": beta for i, beta in enumerate(values["betas"], start=1)}
    return readings


def describe_groups(groups: list[Group]) -> list[dict]:
    """The group table as plain values, for checkpoints."""
    values = hyperparameters(groups)
    return [
        {
            "name": group.name,
            "patterns": group.patterns,
            "parameters": list(group.parameters),
            "num_values": group.num_values,
            **values[group.name],
        }
        for group in groups
    ]


def format_table(rows: list[tuple[str, ...]], left: tuple[int, ...] = (0,)) -> str:
    """Aligned columns; the first row is the heading, and the columns in `left` are text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def _nothing_matches(model: nn.Module, group_name: str, group: GroupConfig, pattern: str) -> str:
    key = f"optimizer.groups.{group_name}"
    names = [name for name, _ in model.named_parameters()]
    if group.params is not None:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
        hint = f"; the nearest parameter is {near[0]}" if near else ""
        return f"{key}.params: '{pattern}' matches no trainable parameter (patterns match whole names){hint}"
    modules = ", ".join(name for name, _ in model.named_children())
    return (
        f"{key}: the model has no trainable parameter below a module '{group_name}'; "
        f"name the group after one of {modules}, or give it `params` patterns"
    )


def _listed(names: list[str], what: str) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what} ({', '.join(names[:10])}{more})"
