"""Writes a description of every key of the config: docs/config.md to read, configs/schema.json for editors.

python -m app.commands.reference
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.commands.root_config import Config
from app.messages import survive_lost_output
from app.section import describe, schema_of, sections_of, tag_key_of, tag_of

ROOT = Path(__file__).parents[2]

HEAD = """# Every key of the config

Made by `python -m app.commands.reference` from the classes that check the config; a test keeps it current. A key
without a default must be in the file. Any value can be `${another.key}`.

Editors that read `configs/schema.json` (with the YAML language server: named in the first line of each config)
complete, check and explain the keys. They know nothing of `${another.key}`, and mark it where no text is wanted.
"""


def main() -> int:
    for path, text in files().items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(f"written: {path}")
    return 0


def files() -> dict[str, str]:
    """{path below the project's folder: content}"""
    return {"docs/config.md": reference(), "configs/schema.json": json.dumps(schema(), indent=1) + "\n"}


def schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Config.model_json_schema()


def reference() -> str:
    """One table for each section of the config, in Markdown."""
    lines = [HEAD]
    for name, section in schema_of(Config)["properties"].items():
        optional = " The section may be left out." if "default" in section else ""
        description = section["description"]
        lines += [f"## `{name}`", "", f"{description[0].upper()}{description[1:]}.{optional}", ""]
        lines += ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
        for key, allowed, default, meaning in _rows(section, f"{name}."):
            allowed, meaning = (text.replace("<", "\\<") for text in (allowed, meaning))  # else an HTML tag
            lines.append(f"| `{key}` | {allowed} | {default} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _rows(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """(key, allowed, default, meaning) of what may stand in one place: a section, or those of a union."""
    sections, tag_key = sections_of(schema), tag_key_of(schema)
    for name in dict.fromkeys(name for section in sections for name in section["properties"]):
        owners = [section for section in sections if name in section["properties"]]
        value = owners[0]["properties"][name]
        if name == tag_key:
            tags = {tag_of(section, name): section["properties"][name]["description"] for section in sections}
            yield f"{prefix}{name}", f"one of {', '.join(tags)}", "", "; ".join(f"{t}: {d}" for t, d in tags.items())
            continue
        meaning = value["description"]
        if len(owners) < len(sections):
            meaning = f"{', '.join(tag_of(owner, tag_key) for owner in owners)}: {meaning}"
        yield f"{prefix}{name}", describe(value), _default(value), meaning
        yield from _rows(value, f"{prefix}{name}.")
        yield from _rows(value.get("items", {}), f"{prefix}{name}[i].")
        if isinstance(entry := value.get("additionalProperties"), dict):
            yield from _rows(entry, f"{prefix}{name}.<name>.")


def _default(value: dict[str, Any]) -> str:
    if "default" not in value:
        return ""
    return "`{}`" if sections_of(value) and value["default"] else f"`{json.dumps(value['default'])}`"


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
