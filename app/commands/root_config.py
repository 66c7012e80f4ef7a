"""The config as a whole: its sections, and what they demand of each other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from app.config import check_config, read_config
from app.config import read_part as read_part_of
from app.learning_rates.learning_rates import LearningRatesConfig
from app.learning_rates.rules import ReductionConfig
from app.messages import Findings, nearest
from app.param_groups.conditions import earliest
from app.param_groups.groups import GroupConfig
from app.param_groups.optimizer import OptimizerConfig
from app.records.checkpoint import CheckpointConfig
from app.records.run_config import RunConfig
from app.section import Section
from app.training.balance import BalanceConfig
from app.training.group_stats import StatisticsConfig
from app.training.objective import LossConfig
from data.source import Data
from data.spec import MODALITIES
from models.fusion import FUSIONS
from models.fusion_classifier import ModelConfig


class Config(Section):
    run: RunConfig = Field(description="name, place and length of the run")
    data: Data = Field(description="what is learnt from")
    model: ModelConfig = Field(description="the branches, and what joins them")
    loss: LossConfig = Field(LossConfig(), description="cross-entropy, of the fusion and of each branch's own head")
    balance: BalanceConfig = Field(BalanceConfig(), description="what keeps one branch from starving the other")
    optimizer: OptimizerConfig = Field(description="the groups of parameters, and what moves them")
    learning_rates: LearningRatesConfig = Field(
        description="lr of a group = its lr x warm-up x schedule x reduction x balance"
    )
    statistics: StatisticsConfig = Field(description="what is measured of each group, and how often")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="what is kept of a run")


def load_config(path: str | Path, overrides: list[str] | None = None) -> tuple[Config, dict]:
    """The config of a YAML file with overrides, checked as a whole; and as plain values: see app/config.py.

    Raises FileNotFoundError, or Findings for all that is wrong inside. What one section demands of another is
    looked at where each is right on its own.
    """
    config, tree = read_config(Config, path, overrides)
    _raise_contradictions(config)
    return config, tree


def parse_config(tree: dict) -> tuple[Config, dict]:
    """Like load_config, from a tree that is already read."""
    config, tree = check_config(Config, tree)
    _raise_contradictions(config)
    return config, tree


def read_part(tree: dict, key: str) -> Any:
    """The checked value at one key of a saved config, such as "data" or "run.seed"."""
    return read_part_of(Config, tree, key)


def rename_run(config: Config, tree: dict, name: str) -> tuple[Config, dict]:
    """The same under another run.name."""
    run = config.run.model_copy(update={"name": name})
    return config.model_copy(update={"run": run}), {**tree, "run": {**tree["run"], "name": name}}


def not_default(tree: dict) -> list[str]:
    """A line for each key of a saved config that has a default and another value: `key: default -> value`."""
    lines = []
    for name in Config.model_fields:
        try:
            lines += [f"{key}: {old} -> {new}" for key, old, new in _changed(read_part(tree, name), name)]
        except Findings:  # a section that no prediction needs
            lines.append(f"{name}: cannot be read by this release")
    return lines


def _changed(value: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """(key, default, value) of each value below `key` that is not its default; what has no default is left out.

    value: a section, or a list or dict that may hold some.
    """
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _changed(item, f"{key}[{i}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _changed(item, f"{key}.{name}")
    elif isinstance(value, Section):
        for name, field in type(value).model_fields.items():
            item, inner = getattr(value, name), f"{key}.{name}"
            if field.is_required() or isinstance(field.default, Section):
                yield from _changed(item, inner)
            elif item != field.default:
                yield inner, field.default, item.model_dump(exclude_unset=True) if isinstance(item, Section) else item


def modalities_of(model_config: ModelConfig) -> list[str]:
    """Those of MODALITIES that the model reads."""
    branches = (model_config.image_branch, model_config.temporal_branch)
    return [modality for modality, branch in zip(MODALITIES, branches, strict=True) if branch]


def _raise_contradictions(config: Config) -> None:
    if lines := [*_contradictions(config)]:
        raise Findings(lines)


def _contradictions(config: Config) -> Iterator[str]:
    groups = config.optimizer.groups
    if groups and all(earliest(group.freeze_until) > 0 for group in groups.values()):
        yield "optimizer.groups: every group is frozen in the first epoch (freeze_until); leave one free"
    for name in config.learning_rates.schedules:
        yield from _unknown_group(f"learning_rates.schedules.{name}", name, groups)
    for i, reduction in enumerate(config.learning_rates.reductions):
        yield from _wrong_reduction(f"learning_rates.reductions[{i}]", reduction, groups)
    method = config.model.fusion_head.method
    if method in FUSIONS and not FUSIONS[method].has_parameters:
        for branch, gates in config.balance.gradients:
            if getattr(config.model, branch) and not gates.own:
                yield (
                    f"balance.gradients.{branch}.own: found 0, but with model.fusion_head.method={method} a branch "
                    "learns from its own head alone; raise it above 0"
                )


def _unknown_group(key: str, name: str, groups: dict[str, GroupConfig]) -> Iterator[str]:
    if name not in groups:
        yield f"{key}: unknown group '{name}'; {nearest(name, list(groups))}"


def _wrong_reduction(key: str, reduction: ReductionConfig, groups: dict[str, GroupConfig]) -> Iterator[str]:
    if not reduction.groups:
        yield f"{key}.groups: empty; name at least one of {', '.join(groups)}"
    for name in dict.fromkeys(reduction.groups):
        if reduction.groups.count(name) > 1:
            yield f"{key}.groups: names '{name}' twice; name each group once"
        yield from _unknown_group(f"{key}.groups", name, groups)
        if name in groups and reduction.min_lr >= (lr := groups[name].lr):
            yield f"{key}.min_lr: found {reduction.min_lr}, must be below optimizer.groups.{name}.lr ({lr})"
