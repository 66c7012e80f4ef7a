"""How a YAML file and command line overrides become a checked configuration.

The only user of OmegaConf. What leaves this module is frozen, typed and in range. Every complaint is a
ValueError of one line: the full key, what was found, what is allowed, what to do.
"""

import dataclasses
import math
import types
import typing
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env as read_environment
from yaml import YAMLError

from app.config_schema import REMOVED_KEYS, Config, check_config, names_of, nearest


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
        raise ValueError(f"{path}: expected a mapping with the sections {names_of(Config)}")
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
    check_config(config)
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
        raise ValueError(f"{path}: expected a mapping with the keys {names_of(kind)}, found {node!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in node:
        if (kind, key) in REMOVED_KEYS:
            raise ValueError(f"{_join(path, key)}: {REMOVED_KEYS[kind, key]}")
        if key not in fields:
            raise ValueError(f"{_join(path, key)}: unknown key; {nearest(str(key), list(fields))}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, f in fields.items():
        key = _join(path, name)
        if name in node and not OmegaConf.is_missing(node, name):
            values[name] = _build_value(hints[name], node, name, key)
            _check_bounds(key, values[name], f.metadata.get("bounds"))
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
            return {str(k): _build_value(arguments[1], value, k, f"{key}.{k}") for k in value}
        if origin is list and isinstance(value, ListConfig):
            return [_build(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value)]
        shape = "a mapping of names to" if origin is dict else "a list of"
        raise ValueError(f"{key}: expected {shape} entries with {names_of(arguments[-1])}, found {value!r}")
    if OmegaConf.is_config(value):
        try:
            value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            raise ValueError(f"{key}: {_one_line(error)}") from None
    leaf = OmegaConf.structured(dataclasses.make_dataclass("Leaf", [("value", hint)]))
    try:
        OmegaConf.update(leaf, "value", value)
    except OmegaConfBaseException:
        raise ValueError(f"{key}: found {value!r}, expected {_describe(hint)}") from None
    return OmegaConf.to_container(leaf)["value"]


def _check_bounds(key: str, value: Any, bounds: dict[str, float] | None) -> None:
    if bounds is None or value is None:
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
            raise ValueError(f"{key}: found {value}, {each}must be {_spell(bounds) or 'a finite number'}")


def _without_secrets(tree: DictConfig) -> dict:
    """The tree as plain values, every interpolation resolved but those that read the environment."""

    def as_written(name: str, *default: Any) -> str:
        return "${oc.env:" + ",".join([name, *map(str, default)]) + "}"

    OmegaConf.register_resolver("oc.env", as_written, replace=True)
    try:
        return OmegaConf.to_container(tree, resolve=True)
    finally:
        OmegaConf.register_resolver("oc.env", read_environment, replace=True)


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


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("full_key:")[0].split())
