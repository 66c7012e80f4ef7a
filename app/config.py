"""The configuration: its schema, how a YAML file and command line overrides become it, how it is checked.

The only user of OmegaConf. What leaves this module is frozen, typed and in range. Every complaint is a
ValueError of one line: the full key, what was found, what is allowed, what to do.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Device = Literal["auto", "cpu", "cuda", "mps"]
DEVICES = typing.get_args(Device)


def within(
    *,
    minimum: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    maximum: float = math.inf,
) -> Any:
    """A required number (or list of numbers) in a range; infinity and NaN are never in range."""
    bounds = {">=": minimum, ">": above, "<": below, "<=": maximum}
    return field(metadata={"bounds": {sign: bound for sign, bound in bounds.items() if math.isfinite(bound)}})


def optional(required: Any, default: Any) -> Any:
    """The same field, with a default for YAML files that leave it out."""
    return field(default=default, metadata=required.metadata)


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
    name: Literal["digits"]
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
    image_branch: ImageBranchConfig
    temporal_branch: TemporalBranchConfig
    fusion_head: FusionHeadConfig
    unimodal_heads: UnimodalHeadsConfig


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    lr: float = within(above=0)
    weight_decay: float = within(minimum=0)
    betas: list[float] = within(minimum=0, below=1)
    params: Optional[list[str]] = None  # noqa: UP045 (OmegaConf reads the older spelling)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: Literal["AdamW"]
    groups: dict[str, GroupConfig]


@dataclass(frozen=True, kw_only=True)
class ReductionConfig:
    groups: list[str]
    monitor: str
    mode: Literal["min", "max"] = "min"
    rule: Literal["plateau"]
    factor: float = within(above=0, below=1)
    patience: int = within(minimum=0)
    threshold: float = optional(within(minimum=0), 0.0)
    min_lr: float = within(minimum=0)


@dataclass(frozen=True, kw_only=True)
class LearningRatesConfig:
    warmup_steps: int = within(minimum=0)
    reductions: list[ReductionConfig]


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    every: int = within(minimum=1)


@dataclass(frozen=True, kw_only=True)
class Config:
    run: RunConfig
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    learning_rates: LearningRatesConfig
    statistics: StatisticsConfig


def load_config(path: str | Path, overrides: list[str] | None = None) -> tuple[Config, dict]:
    """Reads a YAML file and applies overrides such as `optimizer.groups.image_branch.lr=1e-4`.

    Returns the checked config, and the same as plain dicts and lists for config.yaml and checkpoints, in
    which `${oc.env:...}` stays as written, so that no secret of the environment is saved.

    Raises FileNotFoundError, or ValueError for anything that is wrong inside.
    """
    path = Path(path)
    if not path.is_file():
        near = ", ".join(sorted(str(p) for p in Path("configs").glob("*.yaml")))
        raise FileNotFoundError(f"config file {path} does not exist; available: {near or 'none in configs/'}")
    try:
        tree = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(tree, DictConfig):
        raise ValueError(f"{path}: expected a mapping with the sections {_names(Config)}")
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override '{override}' is not of the form key.of.the.config=value")
        try:
            parsed = OmegaConf.create(f"value: {value}" if value else "value: null").value
            OmegaConf.update(tree, key, parsed, force_add=True)
        except (YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
            raise ValueError(f"override '{override}': {_one_line(error)}") from None
    return parse_config(tree)


def parse_config(tree: DictConfig | dict) -> tuple[Config, dict]:
    """Like load_config, from a tree that is already read (such as the one in a checkpoint)."""
    tree = OmegaConf.create(tree)
    config = _build(Config, tree, "")
    _check_config(config)
    return config, _without_secrets(tree)


def save_config(tree: dict, path: Path) -> None:
    OmegaConf.save(OmegaConf.create(tree), path)


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """One line per leaf that differs between two plain configs: `key: old -> new`."""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _build(kind: type, node: Any, path: str) -> Any:
    """An instance of the dataclass `kind` from a node of the tree. OmegaConf converts and checks the leaves."""
    if not isinstance(node, DictConfig):
        raise ValueError(f"{path}: expected a mapping with the keys {_names(kind)}, found {node!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in node:
        if key not in fields:
            raise ValueError(f"{_join(path, key)}: unknown key; {_nearest(str(key), list(fields))}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, f in fields.items():
        key = _join(path, name)
        if name in node and not OmegaConf.is_missing(node, name):
            values[name] = _build_value(hints[name], node, name, key)
            _check_bounds(key, values[name], f.metadata.get("bounds", {}))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{key}: missing; add it ({_describe(hints[name], f)})")
    return kind(**values)


def _build_value(hint: Any, node: DictConfig, name: str, key: str) -> Any:
    try:
        value = node[name]  # resolves an interpolation
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}: {_one_line(error)}") from None
    inner, is_optional = _strip_optional(hint)
    if is_optional and value is None:
        return None
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if dataclasses.is_dataclass(inner):
        return _build(inner, value, key)
    if origin in (dict, list) and dataclasses.is_dataclass(arguments[-1]):
        if origin is dict and isinstance(value, DictConfig):
            return {k: _build_value(arguments[1], value, k, f"{key}.{k}") for k in value}
        if origin is list and isinstance(value, ListConfig):
            return [_build(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value)]
        shape = "a mapping of names to" if origin is dict else "a list of"
        raise ValueError(f"{key}: expected {shape} entries with {_names(arguments[-1])}, found {value!r}")
    leaf = OmegaConf.structured(dataclasses.make_dataclass("Leaf", [("value", hint)]))
    try:
        OmegaConf.update(leaf, "value", value)
    except OmegaConfBaseException:
        raise ValueError(f"{key}: found {value!r}, expected {_describe(hint)}") from None
    return OmegaConf.to_container(leaf)["value"]


def _check_bounds(key: str, value: Any, bounds: dict[str, float]) -> None:
    if not bounds or value is None:
        return
    compare = {
        ">=": lambda v, b: v >= b,
        ">": lambda v, b: v > b,
        "<": lambda v, b: v < b,
        "<=": lambda v, b: v <= b,
    }
    for number in value if isinstance(value, list) else [value]:
        if not math.isfinite(number) or not all(compare[sign](number, bound) for sign, bound in bounds.items()):
            each = "each value " if isinstance(value, list) else ""
            raise ValueError(f"{key}: found {value}, {each}must be {_spell(bounds)}")


def _check_config(config: Config) -> None:
    """What no single key can know."""
    groups = config.optimizer.groups
    for name, group in groups.items():
        if len(group.betas) != 2:
            raise ValueError(
                f"optimizer.groups.{name}.betas: found {group.betas}, expected two numbers, e.g. [0.9, 0.999]"
            )
    for i, reduction in enumerate(config.learning_rates.reductions):
        key = f"learning_rates.reductions[{i}]"
        if not reduction.groups:
            raise ValueError(f"{key}.groups: empty; name at least one of {', '.join(groups)}")
        for name in reduction.groups:
            if name not in groups:
                raise ValueError(f"{key}.groups: unknown group '{name}'; {_nearest(name, list(groups))}")
            if reduction.min_lr >= groups[name].lr:
                raise ValueError(
                    f"{key}.min_lr: found {reduction.min_lr}, must be below "
                    f"optimizer.groups.{name}.lr ({groups[name].lr})"
                )


def _without_secrets(tree: DictConfig) -> dict:
    """The tree as plain values, every interpolation resolved but those that read the environment."""

    def plain(node: DictConfig | ListConfig, key: str | int) -> Any:
        raw = OmegaConf.to_container(node, resolve=False)[key]
        if OmegaConf.is_interpolation(node, key) and "oc.env" in str(raw):
            return raw
        value = node[key]
        if isinstance(value, DictConfig):
            return {str(k): plain(value, k) for k in value}
        if isinstance(value, ListConfig):
            return [plain(value, i) for i in range(len(value))]
        return value

    return {str(key): plain(tree, key) for key in tree}


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        return inner[0], True
    return hint, False


def _describe(hint: Any, f: dataclasses.Field | None = None) -> str:
    inner, is_optional = _strip_optional(hint)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if typing.get_origin(inner) is Literal:
        text = "one of " + ", ".join(typing.get_args(inner))
    elif typing.get_origin(inner) is list:
        text = (
            "a list"
            if dataclasses.is_dataclass(typing.get_args(inner)[0])
            else ("a list, each item " + names[typing.get_args(inner)[0]])
        )
    elif inner in names:
        text = names[inner]
    else:
        text = "a mapping"
    if f is not None and f.metadata.get("bounds"):
        text += " " + _spell(f.metadata["bounds"])
    return f"{text}, or null" if is_optional else text


def _spell(bounds: dict[str, float]) -> str:
    return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items())


def _names(kind: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(kind))


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    listed = f"known here: {', '.join(known)}"
    return f"did you mean '{near[0]}'? {listed}" if near else listed


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("full_key:")[0].split())
