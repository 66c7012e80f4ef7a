"""Writes a description of every key of the config: docs/config.md to read, configs/schema.json for editors.

python -m app.commands.reference
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from app.commands.root_config import Config
from app.section import Section, describe, hint_of, sections_of, tag_key_of, tag_of, type_below

ROOT = Path(__file__).parents[2]
# A value of any kind may be written as what it points to.
POINTER = {"type": "string", "pattern": r"\$\{"}

HEAD = """# Every key of the config

Made by `python -m app.commands.reference` from the classes that check the config; a test keeps it current. A key
without a default must be in the file. Any value can be `${another.key}` or `${oc.env:VARIABLE}`; where a number, or
true or false, is wanted, it is read from the variable's text.

Editors that read `configs/schema.json` (with the YAML language server: named in the first line of each config)
complete, check and explain the keys.
"""


def main() -> int:
    for path, text in files().items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(f"written: {path}")
    return 0


def files() -> dict[str, str]:
    """{path below the project's folder: content}"""
    return {"docs/config.md": reference(), "configs/schema.json": json.dumps(schema(), indent=1) + "\n"}


def reference() -> str:
    """One table for each section of the config, in Markdown."""
    lines = [HEAD]
    for name, field in Config.model_fields.items():
        optional = "" if field.is_required() else " The section may be left out."
        lines += [f"## `{name}`", "", f"{_capital(field.description)}.{optional}", ""]
        lines += ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
        hint = hint_of(field)
        for key, allowed, default, meaning in _rows(sections_of(hint), f"{name}.", tag_key_of(hint)):
            allowed, meaning = (text.replace("<", "\\<") for text in (allowed, meaning))  # else an HTML tag
            lines.append(f"| `{key}` | {allowed} | {default} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _rows(
    sections: list[type[Section]], prefix: str, tag_key: str | None = None
) -> Iterator[tuple[str, str, str, str]]:
    """(key, allowed, default, meaning) of what may stand in one place: a section, or those of a union."""
    for name in dict.fromkeys(name for section in sections for name in section.model_fields):
        owners = [section for section in sections if name in section.model_fields]
        field = owners[0].model_fields[name]
        if name == tag_key:
            tags = {tag_of(section, tag_key): section.model_fields[name].description for section in sections}
            yield f"{prefix}{name}", f"one of {', '.join(tags)}", "", "; ".join(f"{t}: {d}" for t, d in tags.items())
            continue
        meaning = field.description
        if len(owners) < len(sections):
            meaning = f"{', '.join(tag_of(owner, tag_key) for owner in owners)}: {meaning}"
        hint = hint_of(field)
        yield f"{prefix}{name}", describe(hint), _default(field), meaning
        if below := sections_of(hint):
            yield from _rows(below, f"{prefix}{name}.", tag_key_of(hint))
        elif below := sections_of(entry := type_below(hint, 0)):
            place = "[i]." if describe(hint).startswith("a list") else ".<name>."
            yield from _rows(below, f"{prefix}{name}{place}", tag_key_of(entry))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    return "`{}`" if isinstance(field.default, Section) else f"`{json.dumps(field.default)}`"


def schema() -> dict[str, Any]:
    """A JSON schema of the config, in which each value that is no text may also be a text with `${...}`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | _with_pointers(Config.model_json_schema())


def _with_pointers(node: dict[str, Any]) -> dict[str, Any]:
    node = {key: value for key, value in node.items() if key not in ("title", "discriminator")}
    for name in ("$defs", "properties"):
        if name in node:
            change = _with_pointers if name == "$defs" else _or_pointer
            node[name] = {key: change(value) for key, value in node[name].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            node[name] = _or_pointer(node[name])
    for name in ("anyOf", "oneOf"):  # with a pointer for its tag, an entry may be one of several
        if name in node:
            node["anyOf"] = [_with_pointers(value) for value in node.pop(name)]
    return node


def _or_pointer(node: dict[str, Any]) -> dict[str, Any]:
    node = _with_pointers(node)
    words = {key: node.pop(key) for key in ("description", "default") if key in node}
    takes_any_text = not node or (node.get("type") == "string" and not node.keys() & {"enum", "const"})
    return words | (node if takes_any_text else {"anyOf": [*node.pop("anyOf", [node]), POINTER]})


if __name__ == "__main__":
    sys.exit(main())
