"""The keys of a configuration file as a page of tables, made from the models.

python -m streamexit.config.reference docs/reference/configuration.md
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from streamexit.config.schema import NodeConfiguration, Section
from streamexit.wire.reference import Schema, in_words, limits, slug, table

KINDS = {"streams[].source": "text or [mapping](#streamssource)"}
"""Key -> its type in words, where the model takes more than its schema says."""

MORE = {
    "engine.batch": "[batch sizes](../performance.md#batch-sizes)",
    "engine.milliseconds_per_second": "[sharing](../budgets.md#many-streams-one-device)",
    "engine.precision": "[what that costs](../performance.md#precision)",
    "homeassistant": "[Home Assistant](../operations.md#home-assistant)",
    "http": "[HTTP](../operations.md#http)",
    "mqtt.commands": "[commands](../operations.md#commands)",
    "mqtt.spool": "[results that survive](../operations.md#results-that-survive)",
    "access": "[access](../sources.md#what-sources-may-reach)",
    "sinks": "[a sink](../plugins.md#a-sink)",
    "streams[].budget": "[budgets](../budgets.md)",
    "streams[].budget.milliseconds_per_frame": "[milliseconds](../budgets.md#milliseconds)",
    "streams[].mask": "[segmentation](../segmentation.md#answers)",
    "streams[].policy": "[exit policies](../policies.md)",
    "streams[].regions": "[segmentation](../segmentation.md#answers)",
    "streams[].shadow": "[what is lost](../budgets.md#what-do-i-lose)",
    "streams[].source": "[sources](../sources.md)",
}
"""Key -> where there is more about it."""

INTRODUCTION = """# Configuration reference

Written by `python -m streamexit.config.reference docs/reference/configuration.md` from the models; do not edit
it. [Configuration](../configuration.md) explains the form of the file. `streams[]` stands for each entry of
the list `streams`, `<name>` for a name of yours. A default of `null` means that nothing is set; the meaning
says what happens then. An unknown key is an error. An id matches `[A-Za-z0-9_-]{1,64}`.
"""


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section with its place in the file, the whole file (an empty place) first."""
    yield from _below("", NodeConfiguration)


def _below(place: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    yield place, section
    for name, field in section.model_fields.items():
        for inner, entry in _inside(field.annotation):
            yield from _below(f"{_key(place, name)}{entry}", inner)


def _inside(annotation: Any, entry: str = "") -> Iterator[tuple[type[Section], str]]:
    """Sections that a field holds, and how one of them is reached from its key."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, entry
    step = "[]" if getattr(annotation, "__origin__", None) is list else ""
    for argument in getattr(annotation, "__args__", ()):
        yield from _inside(argument, entry + step)


def _key(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def text() -> str:
    """The page as it is written."""
    found = list(sections())
    anchors = {section.__name__: place for place, section in found}
    pieces = [INTRODUCTION]
    for place, section in found:
        heading = f"`{place}`" if place else "The file"
        pieces.append(
            f"## {heading}\n\n{inspect.getdoc(section)}\n\n{_rows(place, section, anchors)}"
        )
    return "\n".join(pieces)


def _rows(place: str, section: type[Section], anchors: dict[str, str]) -> str:
    schema = section.model_json_schema()
    rows = [
        _row(_key(place, name), schema["properties"][name], field, anchors)
        for name, field in section.model_fields.items()
    ]
    return table(("key", "type", "default", "bounds", "meaning"), rows)


def _row(key: str, schema: Schema, field: FieldInfo, anchors: dict[str, str]) -> tuple[str, ...]:
    def named(model: str) -> str:
        return f"[`{anchors[model]}`](#{slug(anchors[model])})"

    meaning = field.description or ""
    if key in MORE:
        meaning += f" More: {MORE[key]}."
    default = "required" if field.is_required() else shown(schema["default"])
    return f"`{key}`", KINDS.get(key) or in_words(schema, named), default, limits(schema), meaning


def shown(default: Any) -> str:
    """A default as it would stand in the file."""
    if isinstance(default, dict) and default:
        return "its defaults"
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
