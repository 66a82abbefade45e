from __future__ import annotations

import pytest

from streamexit.config import reference
from streamexit.config.schema import NodeConfiguration, Section
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reference" / "configuration.md"
SECTIONS = dict(reference.sections())


def test_committed_page_is_that_of_the_models() -> None:
    """What is committed is what the models make."""
    assert PAGE.read_text(encoding="utf-8") == reference.text(), (
        "python -m streamexit.config.reference docs/reference/configuration.md"
    )


def test_sections_below_sections_are_found() -> None:
    """The walk goes through optional sections, lists and choices, and begins with the file."""
    assert SECTIONS[""] is NodeConfiguration
    assert {"mqtt.tls", "streams[]", "streams[].publish", "streams[].budget"} <= set(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS.values(), ids=lambda s: s.__name__)
def test_every_key_says_what_it_means(section: type[Section]) -> None:
    """Each field has a description, and so has each section."""
    assert [name for name, f in section.model_fields.items() if not f.description] == []
    assert section.__doc__


def test_links_to_more_are_of_keys_that_exist() -> None:
    """A key that is renamed takes its link along."""
    keys = {
        f"{place}.{name}".removeprefix(".")
        for place, section in SECTIONS.items()
        for name in section.model_fields
    }
    assert set(reference.MORE) | set(reference.KINDS) <= keys


@pytest.mark.parametrize(
    ("default", "text"),
    [(2.0, "`2`"), (0.01, "`0.01`"), (True, "`true`"), (None, "`null`"), ("auto", "`auto`")],
)
def test_defaults_are_written_as_in_the_file(default: object, text: str) -> None:
    """A default looks as it would in YAML, a whole number without a decimal point."""
    assert reference.shown(default) == text
