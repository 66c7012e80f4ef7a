"""What a section of the config is, and how pydantic's complaints about one become lines.

A line is: the full key as it stands in the file, what was found, what is allowed. What is allowed is read from the
section's JSON schema, which app/commands/reference.py writes down too.
"""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from app.messages import Findings, nearest


class Section(BaseModel):
    """A section of the config: each key with its type, range, default, unit and effect.

    Keys without a default must be in the YAML file. True is no number and '1' is none; infinity and NaN are never
    in range. Sections that share a place in the config are told apart by a key with a Literal: `rule`, or `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)

WORDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}
WORDS |= {"object": "a mapping of names", "null": "null"}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "exclusiveMaximum": "<", "maximum": "<="}


def check_section(kind: type[AnySection], values: dict, key: str = "") -> AnySection:
    """An instance of `kind`. key: that of the section in the file.

    Raises Findings, with a line for each value that is wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found, schema = error.errors(include_url=False), schema_of(kind)
    raise Findings([_line(error, schema, key) for error in found])


def schema_of(kind: type[Section]) -> dict[str, Any]:
    """The JSON schema of a section, with each reference replaced by what it points to."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def expanded(node: Any) -> Any:
        if isinstance(node, list):
            return [expanded(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            node = definitions[node["$ref"].removeprefix("#/$defs/")] | node
        return {name: expanded(value) for name, value in node.items() if name != "$ref"}

    return expanded(schema)


def kinds_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of all kinds of value that may stand there, such as a number and null."""
    options = schema.get("anyOf") or schema.get("oneOf")
    return [kind for option in options for kind in kinds_of(option)] if options else [schema]


def sections_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of the sections that may stand there: none, one, or those of a union."""
    return [kind for kind in kinds_of(schema) if "properties" in kind]


def is_mixed(schema: dict[str, Any]) -> bool:
    """Whether a section or another kind of value may stand there, such as a number."""
    sections = sections_of(schema)
    return 0 < len(sections) < len([kind for kind in kinds_of(schema) if kind.get("type") != "null"])


def below(schema: dict[str, Any], name: str | int) -> dict[str, Any]:
    """The schema of the value `name` in a section, mapping or list; one that allows everything if there is none."""
    for kind in kinds_of(schema):
        entry = kind.get("properties", {}).get(name) or kind.get("additionalProperties") or kind.get("items")
        if isinstance(entry, dict):
            return entry
    return {}


def tag_key_of(schema: dict[str, Any]) -> str | None:
    """The key that tells the sections of a union apart, such as `rule`; None where there is no union."""
    options = [schema, *schema.get("anyOf", [])]
    return next((option["discriminator"]["propertyName"] for option in options if "discriminator" in option), None)


def tag_of(section: dict[str, Any], tag_key: str) -> str:
    return section["properties"][tag_key]["const"]


def describe(schema: dict[str, Any]) -> str:
    """What a value may be, in words: "a number > 0, or null"."""
    return ", or ".join(_describe(kind) for kind in kinds_of(schema))


def _describe(kind: dict[str, Any]) -> str:
    if "enum" in kind:
        return f"one of {', '.join(kind['enum'])}"
    if "properties" in kind:
        return f"a mapping with the keys {', '.join(kind['properties'])}"
    if kind.get("type") == "array":
        length = f" of {kind['maxItems']}" if "maxItems" in kind else ""
        return f"a list{length}" if sections_of(kind["items"]) else f"a list{length}, each {describe(kind['items'])}"
    return f"{WORDS.get(kind.get('type'), 'a value')} {_bounds(kind)}".strip()


def _bounds(kind: dict[str, Any]) -> str:
    return " and ".join(f"{sign} {kind[name]:g}" for name, sign in BOUNDS.items() if name in kind)


def _line(error: dict[str, Any], schema: dict[str, Any], key: str) -> str:
    if error["type"] == "invalid_key" or error["loc"][-1] == "[key]":
        *above, name = (part for part in error["loc"] if part != "[key]")
        key = _locate(tuple(above), schema, key)[0]
        return f"{join_key(key, name)}: a name is a text; put {name} in quotes"
    key, schema, around, tag_key = _locate(error["loc"], schema, key)
    value = error["input"]
    match error["type"]:
        case "missing":
            return f"{key}: missing; add it ({describe(schema)})"
        case "extra_forbidden":
            return f"{key}: {_unknown(error['loc'][-1], around, tag_key)}"
        case "union_tag_not_found" | "union_tag_invalid":
            tag_key = tag_key_of(schema)
            allowed = f"one of {', '.join(tag_of(section, tag_key) for section in sections_of(schema))}"
            found = f"found {value[tag_key]!r}, expected" if tag_key in value else "missing; add"
            return f"{join_key(key, tag_key)}: {found} {allowed}"
        case "value_error":
            return f"{key}: {error['ctx']['error']}"
        case "finite_number" | "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            bounds = "".join(map(_bounds, kinds_of(schema)))
            return f"{key}: found {value}, must be {bounds or 'a finite number'}"
        case "string_type" if isinstance(value, int | float | None):  # YAML's 007, 1e-4 and yes: 7, 0.0001 and True
            return f"{key}: found {value}, expected {describe(schema)}; put it in quotes"
    return f"{key}: found {value!r}, expected {describe(schema)}"


def _locate(
    place: tuple[str | int, ...], schema: dict[str, Any], key: str
) -> tuple[str, dict[str, Any], list[dict[str, Any]], str | None]:
    """Of pydantic's place of an error below `key`: the key as it stands in the file, the schema of its value, the
    section that it is a key of, with the others of a union after it, and what tells these apart."""
    around, union, tag_key = [], [], None
    for part in place:
        if tag := tag_key_of(schema):  # here pydantic puts the tag, which is no key of the file
            tag_key, sections = tag, {tag_of(section, tag): section for section in sections_of(schema)}
            schema = sections.pop(part)
            union = [schema, *sections.values()]
        elif is_mixed(schema):  # here it puts a tag too: see app/param_groups/conditions.py
            schema = sections_of(schema)[0] if part == "section" else schema
        else:
            around, union = union or sections_of(schema), []
            key, schema = f"{key}[{part}]" if isinstance(part, int) else join_key(key, part), below(schema, part)
    return key, schema, around, tag_key


def _unknown(name: Any, around: list[dict[str, Any]], tag_key: str | None) -> str:
    section, *others = around
    if owners := [tag_of(other, tag_key) for other in others if name in other["properties"]]:
        return f"belongs to {tag_key}: {' or '.join(owners)}, not to {tag_key}: {tag_of(section, tag_key)}"
    return f"unknown key; {nearest(str(name), list(section['properties']))}"


def join_key(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
