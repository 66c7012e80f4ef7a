"""The schema of a configuration: every key, its type, its range, its default, and what keys demand of each other.

Keys without a default must be in the YAML file. `app/config.py` reads a file into these classes.
"""

import dataclasses
import difflib
import math
import typing
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any, Literal, Optional

Device = Literal["auto", "cpu", "cuda", "mps"]
DEVICES = typing.get_args(Device)
RUN_NAME_BYTES = 240  # of the 255 that file systems allow for a name; the rest is for -2, -3, ...


def within(
    *, minimum: float = -math.inf, above: float = -math.inf, below: float = math.inf, maximum: float = math.inf
) -> Any:
    """A required number (or list of numbers) in a range; infinity and NaN are never in range."""
    bounds = {">=": minimum, ">": above, "<": below, "<=": maximum}
    return field(metadata={"bounds": {sign: bound for sign, bound in bounds.items() if math.isfinite(bound)}})


def optional(required: Any, default: Any) -> Any:
    """The same field, with a default for YAML files that leave it out."""
    return field(default=default, metadata=required.metadata)


# OmegaConf reads Optional[X], not the newer X | None.
# ruff: noqa: UP045


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str
    folder: str
    seed: int = within(minimum=0)
    epochs: int = within(minimum=1)
    device: Device
    precision: Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str  # a name in SOURCES of data/source.py
    batch_size: int = within(minimum=2)
    image_size: int = within(minimum=8)
    image_noise: float = within(minimum=0)
    sequence_noise: float = within(minimum=0)


@dataclass(frozen=True, kw_only=True)
class ImageBranchConfig:
    architecture: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class TemporalBranchConfig:
    hidden_size: int = within(minimum=1)
    num_layers: int = within(minimum=1)
    bidirectional: bool
    dropout: float = within(minimum=0, below=1)


@dataclass(frozen=True, kw_only=True)
class FusionHeadConfig:
    hidden_size: int = within(minimum=1)
    dropout: float = within(minimum=0, below=1)


@dataclass(frozen=True, kw_only=True)
class UnimodalHeadsConfig:
    loss_weight: float = within(minimum=0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    image_branch: Optional[ImageBranchConfig]
    temporal_branch: Optional[TemporalBranchConfig]
    fusion_head: FusionHeadConfig
    unimodal_heads: UnimodalHeadsConfig


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """What is None is left to the optimizer class's own default; the group table shows what that is."""

    lr: float = within(above=0)
    weight_decay: Optional[float] = optional(within(minimum=0), None)
    betas: Optional[list[float]] = optional(within(minimum=0, below=1), None)
    eps: Any = None  # a number, or Adafactor's two
    options: dict[str, Any] = field(default_factory=dict)
    params: Optional[list[str]] = None
    no_decay: bool = False
    layer_decay: Optional[float] = optional(within(above=0, maximum=1), None)
    freeze_until: int = optional(within(minimum=0), 0)
    unfreeze_warmup_steps: int = optional(within(minimum=0), 0)
    freeze_batchnorm: bool = False
    clip_norm: Optional[float] = optional(within(above=0), None)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: str
    clip_norm: Optional[float] = optional(within(above=0), None)
    groups: dict[str, GroupConfig]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    name: Literal["constant", "cosine", "linear", "step"]
    end_factor: float = optional(within(minimum=0, maximum=1), 0.0)
    every_epochs: Optional[int] = optional(within(minimum=1), None)
    factor: Optional[float] = optional(within(above=0, below=1), None)


@dataclass(frozen=True, kw_only=True)
class ReductionConfig:
    groups: list[str]
    monitor: str
    rule: Literal["plateau", "threshold"]
    factor: float = within(above=0, below=1)
    min_lr: float = optional(within(minimum=0), 0.0)
    cooldown: int = optional(within(minimum=0), 0)
    start_epoch: int = optional(within(minimum=1), 1)
    restore_best: bool = False
    # rule: plateau
    patience: Optional[int] = optional(within(minimum=0), None)
    threshold: float = optional(within(minimum=0), 1e-4)
    threshold_mode: Literal["rel", "abs"] = "rel"
    # rule: threshold
    above: Optional[float] = optional(within(), None)
    below: Optional[float] = optional(within(), None)
    repeat: bool = False


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    monitor: str
    patience: int = within(minimum=0)


@dataclass(frozen=True, kw_only=True)
class LearningRatesConfig:
    warmup_steps: int = within(minimum=0)
    schedules: dict[str, ScheduleConfig] = field(default_factory=dict)
    reductions: list[ReductionConfig]
    stop: Optional[StopConfig] = None
    stop_when_exhausted: bool = False


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    every: int = within(minimum=1)
    histograms_every: int = optional(within(minimum=0), 0)
    starving_update_ratio: float = optional(within(minimum=0), 1e-6)
    starving_readings: int = optional(within(minimum=1), 20)


@dataclass(frozen=True, kw_only=True)
class Config:
    run: RunConfig
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    learning_rates: LearningRatesConfig
    statistics: StatisticsConfig


def check_config(config: Config) -> None:
    """What no single key can know. Raises ValueError."""
    _check_run(config.run)
    if config.model.image_branch is None and config.model.temporal_branch is None:
        raise ValueError("model: image_branch and temporal_branch are both null; a model needs one of them")
    groups = config.optimizer.groups
    for name, group in groups.items():
        if group.betas is not None and len(group.betas) != 2:
            raise ValueError(
                f"optimizer.groups.{name}.betas: found {group.betas}, expected two numbers, e.g. [0.9, 0.999]"
            )
        _check_eps(f"optimizer.groups.{name}.eps", group.eps)
        if group.unfreeze_warmup_steps and not group.freeze_until:
            raise ValueError(
                f"optimizer.groups.{name}.unfreeze_warmup_steps: the group is never frozen; add freeze_until"
            )
    if groups and all(group.freeze_until for group in groups.values()):
        raise ValueError("optimizer.groups: every group is frozen in the first epoch (freeze_until); leave one free")
    for name, schedule in config.learning_rates.schedules.items():
        key = f"learning_rates.schedules.{name}"
        if name not in groups:
            raise ValueError(f"{key}: unknown group '{name}'; {nearest(name, list(groups))}")
        _check_asked_to_train(key, name, config)
        needs_step = schedule.name == "step"
        if needs_step != (schedule.every_epochs is not None) or needs_step != (schedule.factor is not None):
            raise ValueError(f"{key}: every_epochs and factor belong to the schedule step, which needs both")
    for i, reduction in enumerate(config.learning_rates.reductions):
        _check_reduction(f"learning_rates.reductions[{i}]", reduction, config)
    if config.learning_rates.stop_when_exhausted:
        _check_exhaustible(config)
    _check_lr_is_honoured(config)


def _check_eps(key: str, eps: Any) -> None:
    values = eps if isinstance(eps, list) and len(eps) == 2 else [eps]
    missing_first = values[1:] if len(values) == 2 and values[0] is None else values
    if eps is not None and not all(type(v) in (int, float) and 0 <= v < math.inf for v in missing_first):
        raise ValueError(f"{key}: found {eps!r}, expected a number >= 0, or for Adafactor two, e.g. [null, 1.0e-3]")


# Rprop reads lr at its first step only: from then on each weight has a step size of its own.
_IGNORE_LR = ("Rprop",)


def _check_lr_is_honoured(config: Config) -> None:
    """An lr that is changed while training must change what the optimizer does."""
    if config.optimizer.name not in _IGNORE_LR:
        return
    changes = {
        "learning_rates.warmup_steps": config.learning_rates.warmup_steps,
        "learning_rates.schedules": any(s.name != "constant" for s in config.learning_rates.schedules.values()),
        "learning_rates.reductions": config.learning_rates.reductions,
    }
    for name, group in config.optimizer.groups.items():
        changes[f"optimizer.groups.{name}.unfreeze_warmup_steps"] = group.unfreeze_warmup_steps
    for key, changes_lr in changes.items():
        if changes_lr:
            raise ValueError(
                f"{key}: {config.optimizer.name} does not follow a changed lr; take it out, or choose another optimizer"
            )


def _check_run(run: RunConfig) -> None:
    """The name becomes a folder's, on every system: Windows would drop dots and spaces at the end in silence."""
    if not run.folder:
        raise ValueError("run.folder: empty; give a folder, such as runs")
    name = run.name
    problems = {
        "is empty": not name,
        "has a separator": "/" in name or "\\" in name,
        "has '..'": ".." in name,
        "begins with a dot": name.startswith("."),
        "ends with a dot": name.endswith("."),
        "begins or ends with a space": name != name.strip(),
        "has a character that cannot be printed": not name.isprintable(),
        "begins with a drive": bool(PureWindowsPath(name).drive),
        f"is longer than {RUN_NAME_BYTES} bytes": len(name.encode("utf-8", "replace")) > RUN_NAME_BYTES,
    }
    for problem, found in problems.items():
        if found:
            raise ValueError(f"run.name: found {name!r}, which {problem}; give a plain name for a folder, e.g. fusion")


def _check_exhaustible(config: Config) -> None:
    """Each group must be able to reach the lowest min_lr of its rules, and to stall there."""
    for name in config.optimizer.groups:
        key = f"learning_rates.stop_when_exhausted: would never stop, for group '{name}'"
        rules = {i: rule for i, rule in enumerate(config.learning_rates.reductions) if name in rule.groups}
        if not rules:
            raise ValueError(f"{key} has no reduction; add one, or set stop_when_exhausted: false")
        for i, rule in rules.items():
            if rule.start_epoch > config.run.epochs:
                raise ValueError(
                    f"{key} has reductions[{i}], which never acts: its start_epoch {rule.start_epoch} is after the "
                    f"last epoch (run.epochs {config.run.epochs})"
                )
        repeating = {i: rule for i, rule in rules.items() if rule.rule == "plateau" or rule.repeat}
        if not repeating:
            raise ValueError(f"{key} has only thresholds that act once; give one of them repeat: true")
        for i, rule in repeating.items():
            if rule.min_lr == 0:
                raise ValueError(f"{key} has reductions[{i}] with min_lr 0; give it a min_lr above 0")


def _check_reduction(key: str, reduction: ReductionConfig, config: Config) -> None:
    groups = config.optimizer.groups
    if not reduction.groups:
        raise ValueError(f"{key}.groups: empty; name at least one of {', '.join(groups)}")
    for name in reduction.groups:
        if reduction.groups.count(name) > 1:
            raise ValueError(f"{key}.groups: names '{name}' twice; name each group once")
        if name not in groups:
            raise ValueError(f"{key}.groups: unknown group '{name}'; {nearest(name, list(groups))}")
        _check_asked_to_train(f"{key}.groups", name, config)
        if reduction.min_lr >= groups[name].lr:
            raise ValueError(
                f"{key}.min_lr: found {reduction.min_lr}, must be below optimizer.groups.{name}.lr ({groups[name].lr})"
            )
    if reduction.rule == "plateau":
        if reduction.patience is None:
            raise ValueError(f"{key}.patience: missing; add it (a whole number >= 0)")
        for other in ("above", "below"):
            if getattr(reduction, other) is not None:
                raise ValueError(f"{key}.{other}: belongs to the rule threshold, not to plateau")
    else:
        if (reduction.above is None) == (reduction.below is None):
            raise ValueError(f"{key}: the rule threshold needs one of above and below")
        if reduction.patience is not None:
            raise ValueError(f"{key}.patience: belongs to the rule plateau, not to threshold")


def _check_asked_to_train(key: str, name: str, config: Config) -> None:
    frozen = config.optimizer.groups[name].freeze_until
    if frozen >= config.run.epochs:
        raise ValueError(
            f"{key}: group '{name}' is frozen for the whole run (freeze_until {frozen}, run.epochs "
            f"{config.run.epochs}), so its lr means nothing; lower freeze_until, or take the group out here"
        )


# Keys of earlier versions, and what became of them.
_MODE = (
    "is not a key any more: the direction belongs to the monitor (a loss falls, accuracy and macro_f1 rise); remove it"
)
REMOVED_KEYS = {
    (DataConfig, "name"): "is called data.source now; rename the key",
    (ReductionConfig, "mode"): _MODE,
    (StopConfig, "mode"): _MODE,
}


def names_of(kind: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(kind))


def nearest(word: str, known: list[str]) -> str:
    """A hint for an unknown name: the nearest known one, whatever its case, and all of them."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    listed = f"known here: {', '.join(known)}"
    return f"did you mean '{lower[near[0]]}'? {listed}" if near else listed
