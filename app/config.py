"""How a YAML file and command line overrides become a checked configuration.

OmegaConf reads, merges and interpolates (this module is its only user), pydantic checks. Each section of the config
is a `Section` that stands beside the class it configures; app/commands/build.py puts them together. What leaves this
module is frozen, typed and in range. Every complaint is a line of a Findings: the full key, what was found, what is
allowed, what to do.
"""

import io
import os
import re
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env as read_environment
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from app.messages import Findings, closest, nearest, writing


class Section(BaseModel):
    """A section of the config: each key with its type, range, default, unit and effect.

    Keys without a default must be in the YAML file. True is no number and '1' is none; infinity and NaN are never
    in range. Sections that share a place in the config are told apart by a key with a Literal: `rule`, or `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    removed_keys: ClassVar[dict[str, str]] = {}  # keys of earlier versions, and what became of them


Root = TypeVar("Root", bound=Section)


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
    return _check(root, plain, tree, "", findings), _without_secrets(tree)


def read_part(root: type[Section], tree: dict, key: str) -> Any:
    """The checked value at one key of a saved config, such as "data" or "run.seed".

    Variables of the environment that only other keys read may be missing.
    """
    kind, node = root, OmegaConf.create(tree)
    *sections, name = key.split(".")
    for section in sections:
        kind, node = kind.model_fields[section].annotation, node[section]
    field = kind.model_fields[name]
    findings: dict[str, str] = {}
    plain = {name: _resolve(node, name, field.rebuild_annotation(), key, findings)}
    part = create_model("Part", __base__=Section, **{name: (field.annotation, field)})
    return getattr(_check(part, plain, node, ".".join(sections), findings), name)


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
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


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
                look(node[name], inner, item, _join(key, inner))

    tree = OmegaConf.create(saved)
    for name, written in OmegaConf.to_container(tree).items():
        look(tree, name, written, name)
    return found


def names_of(*sections: type[Section]) -> str:
    return ", ".join(dict.fromkeys(name for section in sections for name in section.model_fields))


def describe(hint: Any) -> str:
    """What a value of this type may be, in words: "a number > 0, or null"."""
    kind, bounds = kinds_of(hint)[0], _limits(hint)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Any: "a value"}
    if typing.get_origin(kind) is Literal:
        text = "one of " + ", ".join(typing.get_args(kind))
    elif typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        if sections_of(item):
            text = "a list"
        elif "items" in bounds:
            number = {2: "two"}.get(count := bounds.pop("items"), count)
            text = f"{number} {describe(item).removeprefix('a ').replace('number', 'numbers', 1)}"
        else:
            text = f"a list, each item {describe(item)}"
    else:
        text = names.get(kind, "a mapping")
    return " ".join([text, _spell(bounds)]).strip() + (", or null" if _takes_null(hint) else "")


def kinds_of(hint: Any) -> list[Any]:
    """The types that a value may have, beside null."""
    if typing.get_origin(hint) is Annotated:
        return kinds_of(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for inner in typing.get_args(hint) for kind in kinds_of(inner) if kind is not type(None)]
    return [hint]


def sections_of(hint: Any) -> list[type[Section]]:
    """The sections that may stand there: none, one, or those of a union."""
    plain = [kind for kind in kinds_of(hint) if isinstance(kind, type) and typing.get_origin(kind) is None]
    return [kind for kind in plain if issubclass(kind, Section)]


def type_below(hint: Any, name: str | int) -> Any:
    """The type of the value `name` in a value of type `hint`; None where there is no such key."""
    for kind in kinds_of(hint):
        if sections_of(kind) and name in kind.model_fields:
            return kind.model_fields[name].rebuild_annotation()
        if typing.get_origin(kind) in (dict, list):
            return typing.get_args(kind)[-1]
    return None


def tag_key_of(hint: Any) -> str:
    """The key that tells the sections of a union apart, such as `rule`."""
    return next(item.discriminator for item in hint.__metadata__ if isinstance(item, FieldInfo))


def tag_of(section: type[Section], key: str) -> str:
    return typing.get_args(section.model_fields[key].annotation)[0]


def _takes_null(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _takes_null(typing.get_args(hint)[0])
    return type(None) in typing.get_args(hint)


def _limits(hint: Any) -> dict[str, Any]:
    """Bounds by their sign (">=", ...), under "items" the number of items in a list where it is fixed."""
    if typing.get_origin(hint) is not Annotated:
        return {}
    given = [m for item in hint.__metadata__ for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    signs = {"ge": ">=", "gt": ">", "lt": "<", "le": "<=", "max_length": "items"}
    return {sign: getattr(m, name) for m in given for name, sign in signs.items() if hasattr(m, name)}


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
        parent = f"{parent}[{name}]" if isinstance(value, list) else _join(parent, name)
        hint, value = type_below(hint, name), _value_below(value, name)
    OmegaConf.update(tree, key, _parse_override(text, hint), merge=False, force_add=True)


def _entries(count: int) -> str:
    """How many a list has, and the indices that are allowed."""
    if count < 2:
        return "has 1 entry, and its only index is 0" if count else "has no entries, and so no index"
    return f"has {count} entries, and its indices are 0 to {count - 1}"


def _value_below(value: Any, name: str | int) -> Any:
    if isinstance(value, list):
        return dict(enumerate(value)).get(int(name) if str(name).isdecimal() else None)
    return value.get(name) if isinstance(value, dict) else None


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
        str(name): _resolve(node, name, type_below(hint, str(name)), _join(key, name), findings)
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


def _check(kind: type[Root], plain: dict, node: DictConfig, prefix: str, findings: dict[str, str]) -> Root:
    """An instance of `kind`. Raises Findings: those so far, by key, and what pydantic finds at other keys."""
    places: list[_Place] = []
    try:
        config = kind.model_validate(plain)
    except ValidationError as error:
        written = OmegaConf.to_container(node)
        places = [_locate(kind, found, plain, written, prefix) for found in error.errors(include_url=False)]
    lines = list(findings.values())
    meant = {_join(place.parent, place.nearest()) for place in places if place.error["type"] == "extra_forbidden"}
    for place in places:
        misspelt = place.error["type"] == "missing" and place.key in meant
        if not misspelt and not any(re.match(re.escape(key) + r"($|[.\[])", place.key) for key in findings):
            lines += place.lines()
    if lines:
        raise Findings(lines)
    return config


class _Place(typing.NamedTuple):
    """Where in the config one of pydantic's errors stands, and what could stand there."""

    error: dict[str, Any]
    key: str  # as it stands in the file
    parent: str  # the key of the mapping or list that it is in
    name: str | int
    hint: Any  # its type; None for an unknown key
    sections: list[type[Section]]  # what it is a key of; after that, the others of the union
    tag_key: str  # what tells these apart
    value: Any
    written: Any  # with its interpolation

    def nearest(self) -> str | None:
        """The known key that an unknown one may mean."""
        section, *others = self.sections
        if self.name in section.removed_keys or any(self.name in other.model_fields for other in others):
            return None
        return closest(str(self.name), list(section.model_fields))

    def lines(self) -> list[str]:
        match self.error["type"]:
            case "missing":
                return [f"{self.key}: missing; add it ({describe(self.hint)})"]
            case "extra_forbidden":
                return [f"{self.key}: {self._unknown()}"]
            case "union_tag_not_found":
                return self._untagged()
            case "union_tag_invalid":
                key = tag_key_of(self.hint)
                tags = ", ".join(tag_of(section, key) for section in sections_of(self.hint))
                return [f"{_join(self.key, key)}: found {self.value[key]!r}, expected one of {tags}"]
            case "value_error":
                return [f"{self.key}: {self.error['ctx']['error']}"]
            case "string_type" if isinstance(self.value, int | float | None):
                return [f"{self.key}: {self._no_text()}"]
            case "finite_number" | "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
                return [f"{self.key}: found {self.value}, must be {_spell(_limits(self.hint)) or 'a finite number'}"]
        return [f"{self.key}: {self._other_type()}"]

    def _unknown(self) -> str:
        section, *others = self.sections
        if self.name in section.removed_keys:
            return section.removed_keys[self.name]
        tags = [tag_of(other, self.tag_key) for other in others if self.name in other.model_fields]
        if tags:
            own = f"{self.tag_key}: {tag_of(section, self.tag_key)}"
            return f"belongs to {self.tag_key}: {' or '.join(tags)}, not to {own}"
        return f"unknown key; {nearest(str(self.name), list(section.model_fields))}"

    def _untagged(self) -> list[str]:
        """Without its tag nobody knows which section it is meant to be: only keys that none of them has are told."""
        tag_key, sections = tag_key_of(self.hint), sections_of(self.hint)
        known = list(dict.fromkeys(name for section in sections for name in section.model_fields))
        unknown = [name for name in self.value if name not in known and name not in sections[0].removed_keys]
        lines = [f"{_join(self.key, name)}: unknown key; {nearest(name, known)}" for name in unknown]
        if tag_key not in [closest(name, known) for name in unknown]:
            tags = ", ".join(tag_of(section, tag_key) for section in sections)
            lines.append(f"{_join(self.key, tag_key)}: missing; add it (one of {tags})")
        return lines

    def _no_text(self) -> str:
        """YAML's 007, 1e-4 and yes are no texts, and what was typed is lost: 7, 0.0001, True."""
        value = self.value
        kind = "null" if value is None else f"{value}, a{' truth value' if isinstance(value, bool) else ' number'}"
        remedy = "put it in quotes"
        if isinstance(self.written, str):
            remedy = f"put text beside it, e.g. {str(self.name).split('.')[-1]}-{self.written}"
        return f"found {kind}, expected a text; {remedy}"

    def _other_type(self) -> str:
        if sections := sections_of(self.hint):
            return f"expected a mapping with the keys {names_of(*sections)}, found {self.value!r}"
        if entries := sections_of(type_below(self.hint, 0)):
            shape = "a list of" if typing.get_origin(kinds_of(self.hint)[0]) is list else "a mapping of names to"
            return f"expected {shape} entries with {names_of(*entries)}, found {self.value!r}"
        return f"found {self.value!r}, expected {describe(self.hint)}"


def _locate(kind: type[Section], error: dict[str, Any], plain: dict, written: dict, prefix: str) -> _Place:
    key, parent, name, hint, sections, tag_key = prefix, prefix, "", kind, [], ""
    others, value = [], plain
    for part in error["loc"]:
        union = sections_of(hint)
        if len(union) > 1:  # here pydantic puts the tag, which is no key of the file
            tag_key = tag_key_of(hint)
            (hint,) = (section for section in union if tag_of(section, tag_key) == part)
            others = [section for section in union if section is not hint]
            continue
        sections, others = [*union, *others], []
        name, parent, key = part, key, f"{key}[{part}]" if isinstance(part, int) else _join(key, part)
        hint, value, written = type_below(hint, part), _value_below(value, part), _value_below(written, part)
    return _Place(error, key, parent, name, hint, sections, tag_key, value, written)


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


def _spell(bounds: dict[str, float]) -> str:
    return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items())


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split("full_key:")[0].split())
    return text.removeprefix("KeyError raised while resolving interpolation: ").strip('"')
