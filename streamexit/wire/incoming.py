"""A message that somebody published to us."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Incoming:
    """See the module.

    Attributes:
        topic: Where.
        payload: What.
        retained: Whether it is one that the broker keeps, or had kept.
        response_topic: Where an answer is wanted (MQTT 5).
        correlation: What an answer should carry (MQTT 5).
        telling: Whether `retained` can be relied on: MQTT 3.1.1 does not say it of what is published now.
    """

    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    telling: bool = True
