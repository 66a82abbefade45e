"""What is wrong with a YAML file, in words for those who wrote it rather than the parser's. Pure."""

from __future__ import annotations

import re
from typing import Any

IDENTIFIER = r"^[A-Za-z0-9_-]{1,64}$"
"""Of nodes, streams and pipelines: a level of a topic."""

_SYNTAX = (
    ("\\t", "indent with spaces, not with tabs"),
    ("but got '{'", 'inside braces write it in quotes: "${NAME}"'),
    ("found '-'", "begin each item of a list with '- ', all indented alike"),
    ("<block end>", "indent this line like its neighbours"),
    ("mapping values", "indent this line like its neighbours; text that holds ': ' takes quotes"),
    ("expected ':'", "a key is followed by a colon and a space"),
)
_NUMBER = re.compile(r"\s*(-?\d+(?:\.\d*)?|-?\.\d+)\s*(%?)")


def of_syntax(problem: str) -> str:
    """The parser's sentence with what to do."""
    remedy = next((remedy for sign, remedy in _SYNTAX if sign in problem), "")
    return f"{problem}; {remedy}" if remedy else problem


def of_key(key: str) -> str:
    """For a key that is none; empty if there is nothing to say."""
    name, colon, value = key.partition(":")
    return f"a space belongs behind the colon: '{name}: {value}'" if colon else ""


def of_value(kind: str, value: Any, context: dict[str, Any]) -> str:
    """For pydantic's kind of error; empty where its own sentence will do."""
    if kind == "string_type" and isinstance(value, bool):
        return "YAML reads on, off, yes and no as true or false; write it in quotes"
    if kind == "string_type" and not isinstance(value, (list, dict)):  # ~, 12, 2027-01-01
        return "text is needed here; write it in quotes"
    if kind == "string_pattern_mismatch" and context["pattern"] == IDENTIFIER:
        return "write up to 64 letters, digits, _ and -, as in back_yard"
    if kind in ("dict_type", "list_type", "model_type", "model_attributes_type"):
        return _of_content(kind, value)
    if kind in ("float_parsing", "int_parsing"):
        return _of_number(value)
    return ""


def _of_content(kind: str, value: Any) -> str:
    if value is None:
        return "is empty; indent what belongs to it"
    if kind == "list_type":
        return "is a list: begin each item with '- '"
    return "is a section: write its keys below it, indented, or {} for none"


def _of_number(value: Any) -> str:
    found = _NUMBER.match(value) if isinstance(value, str) else None
    if not found:
        return ""
    number, percent = found.groups()
    return f"write a number: {float(number) / 100 if percent else float(number):g}"
