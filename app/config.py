"""How a YAML file and command line overrides become a checked configuration.

The only user of OmegaConf. What leaves this module is frozen, typed and in range. Every complaint is a
ValueError of one line: the full key, what was found, what is allowed, what to do.
"""

import dataclasses
import io
import math
import os
import re
import types
import typing
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env as read_environment

from app.config_schema import REMOVED_KEYS, Config, check_config, names_of, nearest
from app.messages import writing


def load_config(path: str | Path, overrides: list[str] | None = None) -> tuple[Config, dict]:
    """Reads a YAML file and applies overrides such as `optimizer.groups.image_branch.lr=1e-4`.

    Returns the checked config, and the same as plain dicts and lists for config.yaml and checkpoints, in
    which `${oc.env:...}` stays as written, so that no secret of the environment is saved.

    Raises FileNotFoundError, or ValueError for anything that is wrong inside.
    """
    path = Path(path)
    if not path.exists():
        near = ", ".join(sorted(str(p) for p in Path("configs").glob("*.yaml")))
        raise FileNotFoundError(f"config file {path} does not exist; available: {near or 'none in configs/'}")
    tree = _read_file(path)
    for override in overrides or []:
        try:
            _apply_override(tree, override)
        except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
            raise ValueError(f"override '{override}': {_one_line(error)}") from None
    return parse_config(tree)


def parse_config(tree: DictConfig | dict) -> tuple[Config, dict]:
    """Like load_config, from a tree that is already read (such as the one in a checkpoint)."""
    tree = OmegaConf.create(tree)
    config = _build(Config, tree, "")
    check_config(config)
    return config, _without_secrets(tree)


def read_part(tree: dict, key: str) -> Any:
    """The checked value at one key of a saved config, such as "data" or "run.seed".

    Variables of the environment that only other keys read may be missing.
    """
    kind, node = Config, OmegaConf.create(tree)
    *sections, name = key.split(".")
    for section in sections:
        kind, node = typing.get_type_hints(kind)[section], node[section]
    (field,) = (f for f in dataclasses.fields(kind) if f.name == name)
    return _build_field(field, typing.get_type_hints(kind)[name], node, key)


def run_name_in(path: Path) -> str | None:
    """run.name in a config.yaml; None if it has none, or reads a variable of the environment that is missing."""
    tree = _read_file(path)
    try:
        return OmegaConf.select(tree, "run.name")
    except OmegaConfBaseException:
        return None


def save_config(tree: dict, path: Path) -> None:
    """Writes the whole file or, if that fails, none of it."""
    temporary = path.with_suffix(".tmp")
    try:
        with writing(path):
            OmegaConf.save(OmegaConf.create(tree), temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def _read_file(path: Path) -> DictConfig:
    wanted = f"expected a YAML file with the sections {names_of(Config)}"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({_one_line(error)}); {wanted}") from None
    except OSError as error:
        what = "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise ValueError(f"{path} {what}; {wanted}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode) or not root.value:
            what = (
                "is empty"
                if not root or not root.value
                else f"holds a {'list' if isinstance(root, yaml.SequenceNode) else 'single value'}"
            )
            raise ValueError(f"{path} {what}; {wanted}")
        return OmegaConf.load(io.StringIO(text))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: not valid YAML: {_one_line(error)}") from None


def _apply_override(tree: DictConfig, override: str) -> None:
    """`key=value` replaces what stood at `key`, a mapping or a list too."""
    key, equals, text = override.partition("=")
    path = [name for name in re.split(r"[.\[\]]", key) if name]
    if not equals or not path:
        raise ValueError("not of the form key.of.the.config=value")
    hint, value = Config, OmegaConf.to_container(tree)
    for i, name in enumerate(path):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{'.'.join(path[:i])} is {value}; replace it as a whole, or change what it points to")
        hint, value = _type_below(hint, name), _value_below(value, name)
    OmegaConf.update(tree, key, _parse_override(text, hint), merge=False, force_add=True)


def _type_below(hint: Any, name: str) -> Any:
    """The type in the schema of `name` below a value of type `hint`; None where the schema has no such key."""
    inner, _ = _strip_optional(hint)
    if dataclasses.is_dataclass(inner):
        return typing.get_type_hints(inner).get(name)
    return typing.get_args(inner)[-1] if typing.get_origin(inner) in (dict, list) else None


def _value_below(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return dict(enumerate(value)).get(int(name) if name.isdecimal() else None)
    return value.get(name) if isinstance(value, dict) else None


def _parse_override(text: str, hint: Any) -> Any:
    """YAML, but where the schema wants a text or a list of texts, 1e-4, 007, yes and null are texts as typed."""
    inner, _ = _strip_optional(hint)
    if inner is str and text[:1] not in ("'", '"'):
        return text
    if inner == list[str] and isinstance(texts := yaml.load(text, Loader=yaml.BaseLoader), list):
        return texts
    parsed = OmegaConf.create(f"value: {text}" if text else "value: null")
    return OmegaConf.to_container(parsed)["value"]  # interpolations as written: they are resolved in the whole tree


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
            values[name] = _build_field(f, hints[name], node, key)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{key}: missing; add it ({_describe(hints[name], f)})")
    return kind(**values)


def _build_field(field: dataclasses.Field, hint: Any, node: DictConfig, key: str) -> Any:
    value = _build_value(hint, node, field.name, key)
    _check_bounds(key, value, field.metadata.get("bounds"))
    return value


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
    if inner is str:
        _check_text(key, value, node, name)
    elif inner == list[str] and isinstance(value, list):
        for i, text in enumerate(value):
            _check_text(f"{key}[{i}]", text, node[name], i)
    leaf = OmegaConf.structured(dataclasses.make_dataclass("Leaf", [("value", hint)]))
    try:
        OmegaConf.update(leaf, "value", value)
    except OmegaConfBaseException:
        raise ValueError(f"{key}: found {value!r}, expected {_describe(hint)}") from None
    return OmegaConf.to_container(leaf)["value"]


def _check_text(key: str, value: Any, node: DictConfig | ListConfig, name: str | int) -> None:
    """YAML's 007, 1e-4 and yes are no texts, and what was typed is lost: 7, 0.0001, True."""
    if not isinstance(value, int | float | None):
        return
    kind = "null" if value is None else f"{value}, a truth value" if isinstance(value, bool) else f"{value}, a number"
    remedy = "put it in quotes"
    if OmegaConf.is_interpolation(node, name):
        remedy = f"put text beside it, e.g. {str(name).split('.')[-1]}-{OmegaConf.to_container(node)[name]}"
    raise ValueError(f"{key}: found {kind}, expected a text; {remedy}")


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
    was_read = []

    def note_and_read(name: str, *default: Any) -> Any:
        was_read.append(name)
        return read_environment(name, *default)

    def plain(node: DictConfig | ListConfig, key: Any, written: Any) -> Any:
        if not OmegaConf.is_interpolation(node, key):
            return plain_items(node[key], written) if isinstance(written, dict | list) else written
        was_read.clear()
        value = node[key]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        return written if was_read else value

    def plain_items(node: DictConfig | ListConfig, written: dict | list) -> dict | list:
        if isinstance(written, dict):
            return {key: plain(node, key, item) for key, item in written.items()}
        return [plain(node, i, item) for i, item in enumerate(written)]

    OmegaConf.register_resolver("oc.env", note_and_read, replace=True)
    try:
        return plain_items(tree, OmegaConf.to_container(tree))
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
    text = " ".join(str(error).split("full_key:")[0].split())
    return text.removeprefix("KeyError raised while resolving interpolation: ").strip('"')
