"""How a YAML file and command line overrides become a checked configuration.

OmegaConf reads, merges and interpolates (this module is its only user), app/section.py checks. Each section of the
config stands beside the class that it configures; app/commands/root_config.py puts them together. What leaves this
module is frozen, typed and in range. Every complaint is a line of a Findings.
"""

import io
import os
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env as read_environment
from pydantic import create_model

from app.messages import Findings, writing
from app.section import (
    Root,
    Section,
    check_section,
    hint_of,
    join_key,
    kinds_of,
    names_of,
    sections_of,
    type_below,
    value_below,
)


def read_config(root: type[Root], path: str | Path, overrides: list[str] | None = None) -> tuple[Root, dict]:
    """Reads a YAML file and applies overrides such as `optimizer.groups.image_branch.lr=1e-4`.

    Returns the checked config, and the same as plain dicts and lists for config.yaml and checkpoints, in
    which `${oc.env:...}` stays as written, so that no secret of the environment is saved.

    Raises FileNotFoundError, or Findings for all that is wrong inside.
    """
    path = Path(path)
    if not path.exists():
        near = ", ".join(sorted(str(p) for p in Path("configs").glob("*.yaml")))
        raise FileNotFoundError(f"config file {path} does not exist; available: {near or 'none in configs/'}")
    tree = _read_file(path, f"the sections {names_of(root)}")
    findings = []
    for override in overrides or []:
        try:
            _apply_override(tree, override, root)
        except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
            findings.append(f"override '{override}': {_one_line(error)}")
    if findings:
        raise Findings(findings)
    return check_config(root, tree)


def check_config(root: type[Root], tree: DictConfig | dict) -> tuple[Root, dict]:
    """Like read_config, from a tree that is already read (such as the one in a checkpoint)."""
    tree = OmegaConf.create(tree)
    findings: dict[str, str] = {}
    plain = _resolve_items(tree, root, "", findings)
    return check_section(root, plain, OmegaConf.to_container(tree), "", findings), _without_secrets(tree)


def read_part(root: type[Section], tree: dict, key: str) -> Any:
    """The checked value at one key of a saved config, such as "data" or "run.seed".

    Variables of the environment that only other keys read may be missing. A key that was left out has its default.
    """
    kind, node = root, OmegaConf.create(tree)
    *sections, name = key.split(".")
    for section in sections:
        kind, node = kind.model_fields[section].annotation, node[section]
    field = kind.model_fields[name]
    findings: dict[str, str] = {}
    plain = {name: _resolve(node, name, hint_of(field), key, findings)} if name in node.keys() else {}
    part = create_model("Part", __base__=Section, **{name: (field.annotation, field)})
    return getattr(check_section(part, plain, OmegaConf.to_container(node), ".".join(sections), findings), name)


def run_name_in(path: Path) -> str | None:
    """run.name in a config.yaml. None if it has none, or one that reads the environment: it may read another today."""
    tree = _read_file(path, "the key run.name")
    with _noting_reads() as was_read:
        try:
            name = OmegaConf.select(tree, "run.name")
        except OmegaConfBaseException:
            return None
    return None if was_read else name


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


def changed_from_default(value: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """(key, default, value) of each value below `key` that is not its default; what has no default is left out.

    value: a section, or a list or dict that may hold some.
    """
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from changed_from_default(item, f"{key}[{name}]" if isinstance(value, list) else f"{key}.{name}")
    elif isinstance(value, Section):
        for name, field in type(value).model_fields.items():
            item, inner = getattr(value, name), f"{key}.{name}"
            if field.is_required() or isinstance(field.default, Section):
                yield from changed_from_default(item, inner)
            elif item != field.default:
                yield inner, field.default, item


def environment_values(saved: dict) -> dict[str, tuple[str, Any]]:
    """Of each value of a saved config that reads the environment, by its key: as it is written, and what it reads now.

    None is read where a variable is missing.
    """
    found = {}

    def look(node: DictConfig | ListConfig, name: Any, written: Any, key: str) -> None:
        if OmegaConf.is_interpolation(node, name):  # any other was resolved before it was saved
            try:
                value = node[name]
                value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            except OmegaConfBaseException:
                value = None
            found[key] = (written, value)
        elif isinstance(written, list):
            for i, item in enumerate(written):
                look(node[name], i, item, f"{key}[{i}]")
        elif isinstance(written, dict):
            for inner, item in written.items():
                look(node[name], inner, item, join_key(key, inner))

    tree = OmegaConf.create(saved)
    for name, written in OmegaConf.to_container(tree).items():
        look(tree, name, written, name)
    return found


def _read_file(path: Path, content: str) -> DictConfig:
    wanted = f"expected a YAML file with {content}"
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


def _apply_override(tree: DictConfig, override: str, root: type[Section]) -> None:
    """`key=value` replaces what stood at `key`, a mapping or a list too."""
    key, equals, text = override.partition("=")
    path = [name for name in re.split(r"[.\[\]]", key) if name]
    if not equals or not path:
        raise ValueError("not of the form key.of.the.config=value")
    hint, value, parent = root, OmegaConf.to_container(tree), ""
    for name in path:
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{parent} is {value}; replace it as a whole, or change what it points to")
        if isinstance(value, list) and not (name.isdecimal() and int(name) < len(value)):
            raise ValueError(f"{parent} {_entries(len(value))}; to add one, replace the whole list")
        parent = f"{parent}[{name}]" if isinstance(value, list) else join_key(parent, name)
        hint, value = type_below(hint, name), value_below(value, name)
    OmegaConf.update(tree, key, _parse_override(text, hint), merge=False, force_add=True)


def _entries(count: int) -> str:
    """How many a list has, and the indices that are allowed."""
    if count < 2:
        return "has 1 entry, and its only index is 0" if count else "has no entries, and so no index"
    return f"has {count} entries, and its indices are 0 to {count - 1}"


def _parse_override(text: str, hint: Any) -> Any:
    """YAML, but where the schema wants a text or a list of texts, 1e-4, 007, yes and null are texts as typed."""
    kind = kinds_of(hint)[0]
    if kind is str and text[:1] not in ("'", '"'):
        return text
    if kind == list[str] and isinstance(texts := yaml.load(text, Loader=yaml.BaseLoader), list):
        return texts
    parsed = OmegaConf.create(f"value: {text}" if text else "value: null")
    return OmegaConf.to_container(parsed)["value"]  # interpolations as written: they are resolved in the whole tree


def _resolve_items(node: DictConfig | ListConfig, hint: Any, key: str, findings: dict[str, str]) -> dict | list:
    """A mapping or list as plain values, interpolations resolved. What cannot be resolved is put into `findings`."""
    if isinstance(node, ListConfig):
        return [_resolve(node, i, type_below(hint, i), f"{key}[{i}]", findings) for i in range(len(node))]
    return {
        str(name): _resolve(node, name, type_below(hint, str(name)), join_key(key, name), findings)
        for name in node
        if not OmegaConf.is_missing(node, name)
    }


def _resolve(node: DictConfig | ListConfig, name: Any, hint: Any, key: str, findings: dict[str, str]) -> Any:
    if hint is None:  # an unknown key: what it holds does not matter
        return None
    try:
        value = node[name]
        if not OmegaConf.is_config(value):
            return _as_number(value, hint) if OmegaConf.is_interpolation(node, name) else value
        if any(typing.get_origin(kind) in (dict, list) or sections_of(kind) for kind in kinds_of(hint)):
            return _resolve_items(value, hint, key, findings)
        return OmegaConf.to_container(value, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        findings[key] = f"{key}: {_one_line(error)}"
        return None


def _as_number(value: Any, hint: Any) -> Any:
    """Variables of the environment are texts: where the schema wants a number, or true or false, one is read."""
    if isinstance(value, str) and kinds_of(hint)[0] in (int, float, bool):
        try:
            return _parse_override(value, hint)
        except (yaml.YAMLError, OmegaConfBaseException):
            pass  # which the check names
    return value


def _without_secrets(tree: DictConfig) -> dict:
    """The tree as plain values, every interpolation resolved but those that read the environment."""

    def plain(node: DictConfig | ListConfig, key: Any, written: Any) -> Any:
        if not OmegaConf.is_interpolation(node, key):
            return plain_items(node[key], written) if isinstance(written, dict | list) else written
        with _noting_reads() as was_read:
            value = node[key]
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
        return written if was_read else value

    def plain_items(node: DictConfig | ListConfig, written: dict | list) -> dict | list:
        if isinstance(written, dict):
            return {key: plain(node, key, item) for key, item in written.items()}
        return [plain(node, i, item) for i, item in enumerate(written)]

    return plain_items(tree, OmegaConf.to_container(tree))


@contextmanager
def _noting_reads() -> Iterator[list[str]]:
    """The variables of the environment that are read meanwhile."""
    was_read = []

    def note_and_read(name: str, *default: Any) -> Any:
        was_read.append(name)
        return read_environment(name, *default)

    OmegaConf.register_resolver("oc.env", note_and_read, replace=True)
    try:
        yield was_read
    finally:
        OmegaConf.register_resolver("oc.env", read_environment, replace=True)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split("full_key:")[0].split())
    return text.removeprefix("KeyError raised while resolving interpolation: ").strip('"')
