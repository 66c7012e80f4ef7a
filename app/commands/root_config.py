"""The config as a whole: its sections, and what they demand of each other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from app.config import check_config, read_config
from app.config import read_part as read_part_of
from app.learning_rates.balance import KEY, branches_without_groups, groups_of_branches, needs_both_branches
from app.learning_rates.learning_rates import LearningRatesConfig
from app.learning_rates.rules import ReductionConfig
from app.messages import Findings, nearest
from app.param_groups.conditions import earliest, latest, limit_in_words
from app.param_groups.groups import GroupConfig, patterns_of
from app.param_groups.optimizer import OptimizerConfig
from app.records.checkpoint import CheckpointConfig
from app.records.run_config import RunConfig
from app.section import Section
from app.training.balance import BalanceConfig
from app.training.group_stats import StatisticsConfig
from app.training.objective import BRANCHES, LossConfig
from data.source import Data
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


def _raise_contradictions(config: Config) -> None:
    if lines := [*_contradictions(config)]:
        raise Findings(lines)


def _contradictions(config: Config) -> Iterator[str]:
    groups, epochs = config.optimizer.groups, config.run.epochs
    yield from _all_frozen(groups, epochs)
    for name in config.learning_rates.schedules:
        yield from _wrong_group(f"learning_rates.schedules.{name}", name, groups, epochs)
    for i, reduction in enumerate(config.learning_rates.reductions):
        yield from _wrong_reduction(f"learning_rates.reductions[{i}]", reduction, groups, epochs)
    yield from _wrong_balance(config)
    yield from _ignored_lr(config)
    yield from _fusion_without_parameters(config)


def _all_frozen(groups: dict[str, GroupConfig], epochs: int) -> Iterator[str]:
    """The first epoch in which no group can train, whatever the validations are."""
    # Where it is so at all, it is so from the start, or from the epoch on in which one of them is frozen for good.
    ends = {latest(group.freeze_from) for group in groups.values() if group.freeze_from is not None}
    stuck = [e for e in sorted({0, *ends}) if e < epochs and not any(_may_train(g, e) for g in groups.values())]
    if not groups or not stuck:
        return
    if stuck[0] == 0:
        yield "optimizer.groups: every group is frozen in the first epoch (freeze_until); leave one free"
    else:
        yield (
            f"optimizer.groups: every group is frozen in epoch {stuck[0] + 1} (freeze_from, freeze_until); leave one "
            f"free, or lower run.epochs to {stuck[0]}"
        )


def _may_train(group: GroupConfig, epoch: int) -> bool:
    """epoch: finished epochs."""
    ended = group.freeze_from is not None and epoch >= latest(group.freeze_from)
    return epoch >= earliest(group.freeze_until) and not ended


def _wrong_group(key: str, name: str, groups: dict[str, GroupConfig], epochs: int) -> Iterator[str]:
    """Where something asks a group to train that does not exist, or never trains."""
    if name not in groups:
        yield f"{key}: unknown group '{name}'; {nearest(name, list(groups))}"
    elif earliest(frozen := groups[name].freeze_until) >= epochs:
        yield (
            f"{key}: group '{name}' is frozen for the whole run (freeze_until {limit_in_words(frozen)}, run.epochs "
            f"{epochs}), so its "
            "lr means nothing; lower freeze_until, or take the group out here"
        )


def _wrong_reduction(
    key: str, reduction: ReductionConfig, groups: dict[str, GroupConfig], epochs: int
) -> Iterator[str]:
    if not reduction.groups:
        yield f"{key}.groups: empty; name at least one of {', '.join(groups)}"
    for name in dict.fromkeys(reduction.groups):
        if reduction.groups.count(name) > 1:
            yield f"{key}.groups: names '{name}' twice; name each group once"
        yield from _wrong_group(f"{key}.groups", name, groups, epochs)
        if name in groups and reduction.min_lr >= (lr := groups[name].lr):
            yield f"{key}.min_lr: found {reduction.min_lr}, must be below optimizer.groups.{name}.lr ({lr})"


def _wrong_balance(config: Config) -> Iterator[str]:
    """Where the balance rule has no two branches to compare, or no groups that it can slow."""
    rule, groups = config.balance.learning_rates, config.optimizer.groups
    if rule is None:
        return
    if missing := [f"model.{branch}" for branch in BRANCHES if not getattr(config.model, branch)]:
        yield needs_both_branches(rule.rule, missing)
        return
    yield from branches_without_groups(rule.rule, groups)
    for names in groups_of_branches(groups).values():
        for name in names:
            yield from _wrong_group(KEY, name, groups, config.run.epochs)


def _fusion_without_parameters(config: Config) -> Iterator[str]:
    """Where a group asks for parameters of a fusion method that has none."""
    method, rates = config.model.fusion_head.method, config.learning_rates
    if method not in FUSIONS or FUSIONS[method].has_parameters:
        return
    for branch, gates in config.balance.gradients:
        if getattr(config.model, branch) and not gates.own:
            yield (
                f"balance.gradients.{branch}.own: found 0, but with model.fusion_head.method={method} a branch learns "
                "from its own head alone; raise it above 0"
            )
    why = f"model.fusion_head.method={method} has no parameters"
    for name, group in config.optimizer.groups.items():
        for pattern in patterns_of(name, group):
            if not pattern.startswith("fusion_head."):
                continue
            if group.params is not None:
                yield f"optimizer.groups.{name}.params: {why} that '{pattern}' could match; take the pattern out"
                continue
            keys = [
                f"learning_rates.reductions[{i}].groups" for i, r in enumerate(rates.reductions) if name in r.groups
            ]
            keys += [f"learning_rates.schedules.{name}"] if name in rates.schedules else []
            named = f", and out where it is named: {', '.join(keys)}" if keys else ""
            yield f"optimizer.groups.{name}: {why}; take the group out{named}"


# Rprop reads lr at its first step only: from then on each weight has a step size of its own.
IGNORE_LR = ("Rprop",)


def _ignored_lr(config: Config) -> Iterator[str]:
    """An lr that is changed while training must change what the optimizer does."""
    if config.optimizer.name not in IGNORE_LR:
        return
    changes = {
        "learning_rates.warmup_steps": config.learning_rates.warmup_steps,
        "learning_rates.schedules": any(s.name != "constant" for s in config.learning_rates.schedules.values()),
        "learning_rates.reductions": config.learning_rates.reductions,
        KEY: config.balance.learning_rates,
    }
    for name, group in config.optimizer.groups.items():
        changes[f"optimizer.groups.{name}.unfreeze_warmup_steps"] = group.unfreeze_warmup_steps
    for key, changes_lr in changes.items():
        if changes_lr:
            yield (
                f"{key}: {config.optimizer.name} does not follow a changed lr; take it out, or choose another optimizer"
            )
