"""Named parameter groups: which parameters they hold, their values, and the tables that show both.

A group is what the user named in `optimizer.groups`. Everything else in Duet (learning rates, statistics,
checkpoints, tables) speaks of groups by these names, never by position, also where a group needs several
torch `param_groups` (parameters without weight decay, layers with an lr of their own).
"""

import difflib
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from app.messages import format_table
from app.param_groups.conditions import LaterLimit, Limit, earliest, epochs_in_words, frozen_in_words, latest
from app.section import Section


class GroupConfig(Section):
    """What is None is left to the optimizer class's own default; the group table shows what that is."""

    lr: float = Field(gt=0, description="the base lr")
    weight_decay: float | None = Field(None, ge=0, description="default: the optimizer class's own")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="memory of the gradient and of its square, e.g. [0.9, 0.999]; default: the optimizer class's own",
    )
    eps: Any = Field(
        None, description="a number >= 0, or for Adafactor two, e.g. [null, 1.0e-3]; default: the optimizer class's own"
    )
    options: dict[str, Any] = Field({}, description="further arguments of the class: momentum, nesterov, amsgrad, ...")
    params: list[str] | None = Field(
        None, description="globs of whole parameter names; default: everything below the module of the group's name"
    )
    no_decay: bool = Field(False, description="biases, norms and absent vectors of the group without weight decay")
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="lr factor from one layer to the one below, in one module whose parts come one after another",
    )
    freeze_until: Limit = Field(0, description="frozen for that many epochs, or until a validation meets the condition")
    freeze_from: LaterLimit | None = Field(
        None,
        description="frozen for good after that many epochs of the run, or once a validation meets the condition after "
        "an epoch in which the group trained; null: never",
    )
    unfreeze_warmup_steps: int = Field(0, ge=0, description="steps from 0 to the full lr after unfreezing")
    freeze_batchnorm: bool = Field(False, description="BatchNorm in eval mode also while the weights train")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm of this group alone")

    @field_validator("eps")
    @classmethod
    def _eps_is_one_number_or_two(cls, eps: Any) -> Any:
        values = eps if isinstance(eps, list) and len(eps) == 2 else [eps]
        given = values[1:] if len(values) == 2 and values[0] is None else values
        if eps is not None and not all(type(v) in (int, float) and 0 <= v < math.inf for v in given):
            raise ValueError(f"found {eps!r}, expected a number >= 0, or for Adafactor two, e.g. [null, 1.0e-3]")
        return eps

    @field_validator("freeze_from")
    @classmethod
    def _trains_in_between(cls, freeze_from: LaterLimit | None, info: ValidationInfo) -> LaterLimit | None:
        until = info.data.get("freeze_until", 0)
        if freeze_from is not None and latest(freeze_from) <= earliest(until):
            found = f"found {latest(freeze_from)}" if isinstance(freeze_from, int) else f"at_most {latest(freeze_from)}"
            begins = f"it is frozen for {epochs_in_words(earliest(until))} at least (freeze_until)"
            raise ValueError(
                f"{found}, but {begins}, so the group never trains; raise freeze_from, or lower freeze_until"
            )
        return freeze_from

    @field_validator("unfreeze_warmup_steps")
    @classmethod
    def _warmup_follows_freezing(cls, steps: int, info: ValidationInfo) -> int:
        if steps and info.data.get("freeze_until") == 0:
            raise ValueError("the group is never frozen; add freeze_until")
        return steps


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
        readings[group.name]["weight_decay"] = max(entry["weight_decay"] for entry in group.param_groups)
        betas = group.param_groups[0].get("betas", ())
        readings[group.name] |= {f"beta{i}": beta for i, beta in enumerate(betas, start=1)}
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
    rows = group_rows(groups)
    return format_table([tuple(rows[0]), *(tuple(row.values()) for row in rows)], left=(0, 1))


def group_rows(groups: list[Group]) -> list[dict[str, str]]:
    """Of each group its cells, by column."""
    rows = []
    for group in groups:
        entry = group.param_groups[0]
        undecayed = sum(len(e["params"]) for e in group.param_groups if group.config.no_decay and not e["weight_decay"])
        row = {
            "group": group.name,
            "parameters": " ".join(patterns_of(group.name, group.config)),
            "tensors": str(len(group.parameters)),
            "values": f"{group.num_values:,}",
            "frozen": frozen_in_words(group.config.freeze_until, group.config.freeze_from),
            "lr": _range([e["lr"] for e in group.param_groups]),
            "weight decay": f"{max(e['weight_decay'] for e in group.param_groups):g}",
            "no decay": f"{undecayed} tensors" if undecayed else "-",
            "betas": ", ".join(f"{beta:g}" for beta in entry["betas"]) if "betas" in entry else "-",
            "eps": _eps(entry.get("eps", "-")),
        }
        row["options"] = ", ".join(f"{key}={value}" for key, value in group.config.options.items()) or "-"
        rows.append(row)
    return rows


def parameter_table(groups: list[Group]) -> str:
    """Each parameter on a line, with its group and its values."""
    rows = [("parameter", "group", "shape", "lr", "weight decay")]
    for group in groups:
        for name, parameter in group.parameters.items():
            entry = next(e for e in group.param_groups if any(p is parameter for p in e["params"]))
            shape = " x ".join(map(str, parameter.shape)) or "scalar"
            rows.append((name, group.name, shape, f"{entry['lr']:.4g}", f"{entry['weight_decay']:g}"))
    return format_table(rows, left=(0, 1))


def _nothing_matches(model: nn.Module, group_name: str, group: GroupConfig, pattern: str) -> str:
    key = f"optimizer.groups.{group_name}"
    names = [name for name, _ in model.named_parameters()]
    if group.params is not None:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
        hint = f"; the nearest parameter is {near[0]}" if near else ""
        return f"{key}.params: '{pattern}' matches no trainable parameter (patterns match whole names){hint}"
    modules = ", ".join(name for name, module in model.named_children() if [*module.parameters()])
    return (
        f"{key}: the model has no trainable parameter below a module '{group_name}'; "
        f"name the group after one of {modules}, give it `params` patterns, or take it out"
    )


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{high:g}" if low == high else f"{low:.2g} to {high:g}"


def _eps(eps: Any) -> str:
    values = eps if isinstance(eps, tuple) else [eps]  # Adafactor has two
    return ", ".join(f"{value:g}" if isinstance(value, float | int) else str(value) for value in values)


def _listed(names: list[str], what: str) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what} ({', '.join(names[:10])}{more})"
