from __future__ import annotations

import pytest

from streamexit.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("500ms", 0.5),
        ("2", 2.0),
        ("0.25s", 0.25),
        (" 1.5h ", 5400.0),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    """A number and a unit; without a unit it is of seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "0", "0s", "0.0ms", "-1s", "1d", "1 s", "1e3", "1.s", ".5s", "nan", "inf"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Other forms, and nothing at all, get the form that is right."""
    with pytest.raises(ValueError, match="is not a duration; write 30s, 5m or 1h"):
        parse_duration(text)
