from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from streamexit.wire import reference
from streamexit.wire.asyncapi import SENT
from streamexit.wire.commands import VERBS
from streamexit.wire.messages import MESSAGES
from streamexit.wire.topics import RETAINED_OF_STREAM
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reference" / "wire.md"
MODELS = (*MESSAGES.values(), *reference.parts().values(), *VERBS.values())


def test_committed_page_is_that_of_the_models() -> None:
    """What is committed is what the models make."""
    assert PAGE.read_text(encoding="utf-8") == reference.text(), (
        "python -m streamexit.wire.reference docs/reference/wire.md"
    )


def test_meanings_are_of_fields_that_say_nothing_themselves() -> None:
    """Nothing is explained twice, and nothing that is gone."""
    silent = {
        f"{model.__name__}.{field}"
        for model in MODELS
        for field in set(model.model_fields) - set(reference.docstrings(model))
    }
    assert set(reference.MEANINGS) <= silent


def test_retained_topics_of_streams_are_those_that_are_cleared() -> None:
    """The page calls the same topics retained that a node clears when a stream is removed."""
    said = {
        sent.address.rpartition("/")[2]
        for sent in SENT.values()
        if "{stream}" in sent.address and sent.retained
    }
    assert said == set(RETAINED_OF_STREAM)


def test_field_without_meaning_is_refused() -> None:
    """A field that nobody explains stops the page, and the message names it."""

    class Odd(BaseModel):
        size: int

    with pytest.raises(KeyError, match=r"Odd\.size"):
        reference.fields(Odd)


@pytest.mark.parametrize(
    ("schema", "kind", "bounds"),
    [
        ({"type": "integer", "minimum": 1}, "whole number", "at least 1"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or null", ""),
        ({"enum": ["a", True]}, "`a`, `true`", ""),
        ({"type": "array", "items": {"type": "number"}, "minItems": 3}, "list of number", "3 or"),
        ({"type": "object", "additionalProperties": False}, "mapping", ""),
        ({"type": "string", "pattern": "^x$"}, "text", "matches `^x$`"),
        ({"$ref": "#/$defs/Cost"}, "<Cost>", ""),
        ({}, "anything", ""),
    ],
)
def test_schemas_are_put_into_words(schema: dict[str, Any], kind: str, bounds: str) -> None:
    """Types and bounds are said in plain words."""
    assert reference.in_words(schema, "<{}>".format) == kind
    assert reference.limits(schema).startswith(bounds)
    assert bool(reference.limits(schema)) == bool(bounds)


def test_tables_hold_their_columns() -> None:
    """A bar or a line break inside a cell does not end it."""
    assert reference.table(("a", "b"), [("x|y", "two\nlines")]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| x\\|y | two lines |",
    ]
