"""Complaints that nobody reads."""

from __future__ import annotations

import logging
import threading

from streamexit.cli.speaker import CAPACITY, Speaker


def test_nobody_waits_for_a_listener_who_does_not_listen() -> None:
    """Sentences pile up to a bound, the rest is counted, and said once somebody listens again."""
    said: list[str] = []
    listens, full = threading.Event(), threading.Event()

    def say(sentence: str) -> None:
        full.set()
        assert listens.wait(20.0)
        said.append(sentence)

    speaker = Speaker(say)
    speaker("first")
    assert full.wait(20.0)
    for i in range(CAPACITY + 50):
        speaker(str(i))
    listens.set()
    speaker.close()
    assert said[0] == "first"
    assert "50 messages were left out" in said[1]
    assert said[2:] == [str(i) for i in range(CAPACITY)]


def test_log_records_are_said_too() -> None:
    """A logger's warnings go the same way."""
    said: list[str] = []
    speaker = Speaker(said.append)
    logger = logging.getLogger("streamexit.test_speaker")
    logger.addHandler(speaker)
    logger.warning("%s is gone", "cam")
    logger.removeHandler(speaker)
    speaker.close()
    assert said == ["cam is gone"]
