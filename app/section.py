"""What a section of the config is, how pydantic checks one, and how its complaints become lines.

A line is: the full key as it stands in the file, what was found, what is allowed, what to do.
"""

import re
import types
import typing
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from app.messages import Findings, closest, nearest


class Section(BaseModel):
    """A section of the config: each key with its type, range, default, unit and effect.

    Keys without a default must be in the YAML file. True is no number and '1' is none; infinity and NaN are never
    in range. Sections that share a place in the config are told apart by a key with a Literal: `rule`, or `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    removed_keys: ClassVar[dict[str, str]] = {}  # keys of earlier versions, and what became of them


Root = TypeVar("Root", bound=Section)


def check_section(kind: type[Root], plain: dict, written: dict, prefix: str, findings: dict[str, str]) -> Root:
    """An instance of `kind`.

    Args:
        plain, written: the values, with interpolations resolved and as they are written.
        prefix: the key of the section in the file.
        findings: those so far, by key.

    Raises Findings: those, and what pydantic finds at other keys.
    """
    places: list[_Place] = []
    try:
        config = kind.model_validate(plain)
    except ValidationError as error:
        located = (_locate(kind, found, plain, written, prefix) for found in error.errors(include_url=False))
        places = [place for place in located if place is not None]
    lines = list(findings.values())
    meant = {join_key(place.parent, place.nearest()) for place in places if place.error["type"] == "extra_forbidden"}
    for place in places:
        misspelt = place.error["type"] == "missing" and place.key in meant
        if not misspelt and not any(re.match(re.escape(key) + r"($|[.\[])", place.key) for key in findings):
            lines += place.lines()
    if lines:
        raise Findings(lines)
    return config


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
    text = " ".join([text, _spell(bounds)]).strip()
    if is_mixed(hint):
        text += f", or a mapping with the keys {names_of(*sections_of(hint))}"
    return text + (", or null" if _takes_null(hint) else "")


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


def hint_of(field: FieldInfo) -> Any:
    """Its type with its limits, and with the key that tells the sections of a union apart."""
    hint = field.rebuild_annotation()
    return Annotated[hint, Field(discriminator=field.discriminator)] if field.discriminator else hint


def is_mixed(hint: Any) -> bool:
    """Whether a section or another kind of value may stand there, such as a number."""
    return 0 < len(sections_of(hint)) < len(kinds_of(hint))


def type_below(hint: Any, name: str | int) -> Any:
    """The type of the value `name` in a value of type `hint`; None where there is no such key."""
    for kind in kinds_of(hint):
        if sections_of(kind) and name in kind.model_fields:
            return hint_of(kind.model_fields[name])
        if typing.get_origin(kind) in (dict, list):
            return typing.get_args(kind)[-1]
    return None


def value_below(value: Any, name: str | int) -> Any:
    if isinstance(value, list):
        return dict(enumerate(value)).get(int(name) if str(name).isdecimal() else None)
    return value.get(name) if isinstance(value, dict) else None


def tag_key_of(hint: Any) -> str | None:
    """The key that tells the sections of a union apart, such as `rule`; None where there is no union."""
    of_fields = [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, FieldInfo)]
    return next((item.discriminator for item in of_fields if item.discriminator), None)


def tag_of(section: type[Section], key: str) -> str:
    return typing.get_args(section.model_fields[key].annotation)[0]


def _takes_null(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _takes_null(typing.get_args(hint)[0])
    return type(None) in typing.get_args(hint)


def _limits(hint: Any) -> dict[str, Any]:
    """Bounds by their sign (">=", ...), under "items" the number of items in a list where it is fixed."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return {sign: bound for member in typing.get_args(hint) for sign, bound in _limits(member).items()}
    if typing.get_origin(hint) is not Annotated:
        return {}
    given = [m for item in hint.__metadata__ for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    signs = {"ge": ">=", "gt": ">", "lt": "<", "le": "<=", "max_length": "items"}
    return {sign: getattr(m, name) for m in given for name, sign in signs.items() if hasattr(m, name)}


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
                return [f"{join_key(self.key, key)}: found {self.value[key]!r}, expected one of {tags}"]
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
        lines = [f"{join_key(self.key, name)}: unknown key; {nearest(name, known)}" for name in unknown]
        if tag_key not in [closest(name, known) for name in unknown]:
            tags = ", ".join(tag_of(section, tag_key) for section in sections)
            lines.append(f"{join_key(self.key, tag_key)}: missing; add it (one of {tags})")
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
        if (sections := sections_of(self.hint)) and not is_mixed(self.hint):
            return f"expected a mapping with the keys {names_of(*sections)}, found {self.value!r}"
        if entries := sections_of(type_below(self.hint, 0)):
            shape = "a list of" if typing.get_origin(kinds_of(self.hint)[0]) is list else "a mapping of names to"
            return f"expected {shape} entries with {names_of(*entries)}, found {self.value!r}"
        return f"found {self.value!r}, expected {describe(self.hint)}"


def _locate(kind: type[Section], error: dict[str, Any], plain: dict, written: dict, prefix: str) -> _Place | None:
    """None for what is found of a value of another kind than the one that stands there."""
    key, parent, name, hint, sections, tag_key = prefix, prefix, "", kind, [], ""
    others, value = [], plain
    for part in error["loc"]:
        union = sections_of(hint)
        if own_tag := tag_key_of(hint):  # here pydantic puts the tag, which is no key of the file
            tag_key = own_tag
            (hint,) = (section for section in union if tag_of(section, tag_key) == part)
            others = [section for section in union if section is not hint]
            continue
        if is_mixed(hint):  # here pydantic puts what it took the value for
            (section,) = union
            if isinstance(value, dict) != (section.__name__ in str(part)):  # with the names of its validators
                return None
            hint = section if isinstance(value, dict) else hint
            continue
        sections, others = [*union, *others], []
        name, parent, key = part, key, f"{key}[{part}]" if isinstance(part, int) else join_key(key, part)
        hint, value, written = type_below(hint, part), value_below(value, part), value_below(written, part)
    return _Place(error, key, parent, name, hint, sections, tag_key, value, written)


def _spell(bounds: dict[str, float]) -> str:
    return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items())


def join_key(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
