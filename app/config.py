"""How a YAML file and command line overrides become a checked configuration.

OmegaConf reads, merges and interpolates (this module is its only user), app/section.py checks. Each section of the
config stands beside the class that it configures; app/commands/root_config.py puts them together. What leaves this
module is frozen, typed and in range. Every complaint is a line of a Findings.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import create_model

from app.messages import Findings, writing
from app.section import AnySection, Section, below, check_section, join_key, kinds_of, schema_of


def read_config(
    root: type[AnySection], path: str | Path, overrides: list[str] | None = None
) -> tuple[AnySection, dict]:
    """Reads a YAML file and applies overrides such as `optimizer.groups.image_branch.lr=1e-4`.

    Returns the checked config, and the same as plain dicts and lists for config.yaml and checkpoints, in which each
    `${other.key}` is the value of that key.

    Raises FileNotFoundError, or Findings for all that is wrong inside.
    """
    path = Path(path)
    if not path.exists():
        near = ", ".join(sorted(str(p) for p in Path("configs").glob("*.yaml")))
        raise FileNotFoundError(f"config file {path} does not exist; available: {near or 'none in configs/'}")
    tree = _read_file(path, f"the sections {', '.join(root.model_fields)}")
    schema, findings = schema_of(root), []
    for override in overrides or []:
        try:
            _apply_override(tree, override, schema)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            findings.append(f"override '{override}': {_one_line(error)}")
    if findings:
        raise Findings(findings)
    return check_config(root, tree)


def check_config(root: type[AnySection], tree: DictConfig | dict) -> tuple[AnySection, dict]:
    """Like read_config, from a tree that is already read."""
    plain = _resolved(OmegaConf.create(tree))
    return check_section(root, plain), plain


def read_part(root: type[Section], tree: dict, key: str) -> Any:
    """The checked value at one key of a saved config, such as "data" or "run.seed".

    What other keys hold does not matter. A key that was left out has its default.
    """
    *sections, name = key.split(".")
    for section in sections:
        root, tree = root.model_fields[section].annotation, tree[section]
    field = root.model_fields[name]
    part = create_model("Part", __base__=Section, **{name: (field.annotation, field)})
    values = {name: tree[name]} if name in tree else {}
    return getattr(check_section(part, values, ".".join(sections)), name)


def run_name_in(path: Path) -> str | None:
    """run.name in a config.yaml; None without one."""
    run = OmegaConf.to_container(_read_file(path, "the key run.name")).get("run")
    return run.get("name") if isinstance(run, dict) else None


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
        elif _are_entries(before) and _are_entries(after) and len(before) == len(after):
            for i, (one, other) in enumerate(zip(before, after, strict=True)):
                lines += differences(one, other, f"{prefix}{key}[{i}].")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _are_entries(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _read_file(path: Path, content: str) -> DictConfig:
    wanted = f"expected a YAML file with {content}"
    try:
        tree = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read as YAML ({_one_line(error)}); {wanted}") from None
    if not isinstance(tree, DictConfig) or not tree:
        raise ValueError(f"{path} holds {'a list' if tree else 'nothing'}; {wanted}")
    return tree


def _apply_override(tree: DictConfig, override: str, schema: dict[str, Any]) -> None:
    """`key=value` replaces what stood at `key`, a mapping or a list too."""
    key, equals, text = override.partition("=")
    names = re.findall(r"[^.\[\]]+", key)
    if not equals or not names:
        raise ValueError("not of the form key.of.the.config=value")
    value, parent = OmegaConf.to_container(tree), ""
    for name in names:
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{parent} is {value}; replace it as a whole, or change what it points to")
        if isinstance(value, list) and not (name.isdecimal() and int(name) < len(value)):
            raise ValueError(
                f"{parent} has no entry {name}: it is a list of {len(value)}, counted from 0; to add one, replace the "
                "whole list"
            )
        if isinstance(value, list):
            parent, value = f"{parent}[{name}]", value[int(name)]
        else:
            parent, value = join_key(parent, name), value.get(name) if isinstance(value, dict) else None
        schema = below(schema, name)
    OmegaConf.update(tree, key, _parse_override(text, schema), merge=False, force_add=True)


def _parse_override(text: str, schema: dict[str, Any]) -> Any:
    """YAML, but where the schema wants a text or a list of texts, 1e-4, 007 and yes are texts as typed."""
    kind = kinds_of(schema)[0]
    if kind.get("type") == "string" and text[:1] not in ("'", '"'):
        return text
    if kind.get("items", {}).get("type") == "string" and isinstance(texts := yaml.load(text, yaml.BaseLoader), list):
        return texts
    parsed = OmegaConf.create(f"value: {text}" if text else "value: null")
    return OmegaConf.to_container(parsed)["value"]  # interpolations as written: they are resolved in the whole tree


def _resolved(tree: DictConfig) -> dict:
    """As plain values. Raises Findings where a `${...}` is not the key of another value."""
    if lines := [*_other_interpolations(OmegaConf.to_container(tree))]:
        raise Findings(lines)
    try:
        return OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise Findings([f"{error.full_key}: {_one_line(error)}"]) from None


def _other_interpolations(value: Any, key: str = "") -> Iterator[str]:
    """A line for each value that OmegaConf would read from the environment, or otherwise than from another key: what
    a run reads must be in its config.yaml."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _other_interpolations(item, join_key(key, name))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _other_interpolations(item, f"{key}[{i}]")
    elif isinstance(value, str) and (resolver := re.search(r"\$\{\s*(?:oc\.env\s*:\s*(\w*)|[\w.]+\s*:)", value)):
        given = f'"${resolver[1] or "VALUE"}"'
        yield f"{key}: found {value!r}, only ${{another.key}} is read; set it on the command line, {key}={given}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("full_key:")[0].split())
