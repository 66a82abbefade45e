"""Hours in which a stream is wanted."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamexit.schedule import ActiveHours, Schedule

MONDAY = datetime(2026, 11, 16)


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        ("07:00-19:00", ["mon 07:00", "sun 18:59"], ["mon 06:59", "mon 19:00"]),
        ("mon-fri 07:00-19:00", ["fri 12:00"], ["sat 12:00", "sun 12:00"]),
        ("sat 8:00-12:00", ["sat 08:00"], ["fri 08:00", "sat 12:00"]),
        ("fri 22:00-06:00", ["fri 22:00", "sat 05:59"], ["fri 05:00", "sat 06:00", "sat 23:00"]),
        ("sat-mon 10:00-11:00", ["sat 10:30", "sun 10:30", "mon 10:30"], ["tue 10:30"]),
        ("00:00-24:00", ["mon 00:00", "sun 23:59"], []),
        ("sun 23:00-01:00", ["sun 23:30", "mon 00:59"], ["mon 01:00", "sun 00:30"]),
    ],
)
def test_spans(span: str, inside: list[str], outside: list[str]) -> None:
    """Days, midnight and both ends."""
    hours = ActiveHours.parse(span)
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

    def moment(text: str) -> datetime:
        day, _, clock = text.partition(" ")
        hour, _, minute = clock.partition(":")
        return MONDAY + timedelta(days=days.index(day), hours=int(hour), minutes=int(minute))

    assert all(hours.contain(moment(text)) for text in inside)
    assert not any(hours.contain(moment(text)) for text in outside)


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 7 * 1440 - 1))
def test_a_span_and_its_complement_share_the_week(start: int, end: int, minute: int) -> None:
    """Every minute is in one of two spans that begin where the other ends."""
    one, other = (
        ActiveHours.parse(f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}")
        for a, b in ((start, end), (end, start))
    )
    moment = MONDAY + timedelta(minutes=minute)
    both = one.contain(moment) + other.contain(moment)
    assert both == (2 if start == end else 1)


@pytest.mark.parametrize("text", ["", "7-19", "monday 07:00-19:00", "07:00", "25:00-26:00", "07:61-08:00", "mon-xyz 07:00-08:00"])  # fmt: skip
def test_what_is_no_span_is_refused_with_an_example(text: str) -> None:
    """The message quotes it."""
    with pytest.raises(ValueError, match="write") as caught:
        ActiveHours.parse(text)
    assert repr(text) in str(caught.value)


def test_the_time_zone_is_that_of_the_node() -> None:
    """07:00 in Auckland is not 07:00 in New York."""
    seven = datetime(2026, 11, 16, 7, 0, tzinfo=ZoneInfo("Pacific/Auckland")).timestamp()
    assert Schedule(True, ["07:00-08:00"], "Pacific/Auckland").why_not(seven) is None
    reason, _ = Schedule(True, ["07:00-08:00"], "America/New_York").why_not(seven) or ("", "")
    assert reason == "inactive_hours"


def test_a_disabled_stream_is_never_wanted() -> None:
    """Whatever the hours."""
    assert Schedule(True, [], None).why_not(0.0) is None
    reason, _ = Schedule(False, ["00:00-24:00"], None).why_not(0.0) or ("", "")
    assert reason == "disabled"
