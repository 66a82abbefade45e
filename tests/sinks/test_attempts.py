from __future__ import annotations

import pytest

from streamexit.sinks.attempts import (
    FIRST_RETRY_SECONDS,
    LONGEST_RETRY_SECONDS,
    MOST_SHORT,
    STEADY_SECONDS,
    Retries,
    Versions,
)
from streamexit.sinks.brokers import BrokerAddress

HERE, THERE = BrokerAddress("here", 1883), BrokerAddress("there", 1883)


def test_a_broker_that_is_away_is_asked_more_and_more_rarely() -> None:
    """Twice as long each time, up to a bound."""
    retries = Retries()
    waits = [retries.after(None, 1) for _ in range(10)]
    assert waits[:3] == [FIRST_RETRY_SECONDS * factor for factor in (1, 2, 4)]
    assert waits[-1] == LONGEST_RETRY_SECONDS


def test_all_brokers_are_tried_before_there_is_a_pause() -> None:
    """In turn."""
    retries = Retries()
    assert [retries.after(None, 3) > 0 for _ in range(6)] == [False, False, True] * 2
    assert retries.turn == 6


@pytest.mark.parametrize("lasted", [STEADY_SECONDS + 1, 0.0])
def test_a_connection_that_ends_is_made_again_soon(lasted: float) -> None:
    """Also one that broke at once, if that does not happen again and again."""
    retries = Retries()
    for _ in range(10):
        retries.after(None, 1)
    assert retries.after(lasted, 1) == FIRST_RETRY_SECONDS


def test_a_broker_that_breaks_every_connection_is_not_knocked_at_for_ever() -> None:
    """Until one lasts."""
    retries = Retries()
    waits = [retries.after(0.0, 1) for _ in range(MOST_SHORT + 2)]
    assert waits == [FIRST_RETRY_SECONDS] * MOST_SHORT + [
        2 * FIRST_RETRY_SECONDS,
        4 * FIRST_RETRY_SECONDS,
    ]
    assert retries.after(STEADY_SECONDS + 1, 1) == FIRST_RETRY_SECONDS


def test_a_refused_version_is_not_tried_again() -> None:
    """Of that broker; the others may have it. Should it refuse the other one, too, it was changed."""
    versions = Versions(prefer_v5=True)
    versions.failed(HERE, "refused")
    assert (versions.five(HERE), versions.five(THERE)) == (False, True)
    versions.ended(HERE)
    assert not versions.five(HERE)
    versions.failed(HERE, "refused")
    assert versions.five(HERE)


def test_silence_is_a_hint_for_once() -> None:
    """3.1.1 is tried next; whatever comes of that, 5 is tried again."""
    versions = Versions(prefer_v5=True)
    versions.failed(HERE, "silent")
    assert (versions.five(HERE), versions.five(THERE)) == (False, True)
    versions.failed(HERE, "silent")
    assert versions.five(HERE)
    versions.failed(HERE, "silent")
    versions.ended(HERE)
    assert versions.five(HERE)
    versions.failed(HERE, None)
    assert versions.five(HERE)


def test_where_3_1_1_is_wanted_it_is_spoken() -> None:
    """Whatever happens."""
    versions = Versions(prefer_v5=False)
    versions.failed(HERE, "silent")
    assert not versions.five(HERE)
