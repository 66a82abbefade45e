"""Which broker is tried next, when, and in which version of the protocol. Knows no network and no time."""

from __future__ import annotations

from typing import Literal

from streamexit.sinks.brokers import BrokerAddress

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0

STEADY_SECONDS = 2.0
"""A connection that has lasted so long was a good one."""

MOST_SHORT = 3
"""Connections in a row that break at once; a broker that does that is not knocked at ever again."""

VersionFault = Literal["refused", "silent"]
"""Brokers without MQTT 5 refuse it with a code, or choke on it and say nothing."""


class Retries:
    """Takes brokers in turn, and longer and longer between two rounds.

    Attributes:
        turn: Counts attempts.
    """

    def __init__(self) -> None:
        self.turn = 0
        self._wait = FIRST_RETRY_SECONDS
        self._short = 0

    def after(self, lasted: float | None, brokers: int) -> float:
        """Seconds until the next attempt.

        Args:
            lasted: Of the connection that has ended, in seconds; None if there was none.
            brokers: That are tried in turn.
        """
        if lasted is not None:
            self._short = 0 if lasted > STEADY_SECONDS else self._short + 1
            if self._short <= MOST_SHORT:
                self._wait = FIRST_RETRY_SECONDS
        self.turn += 1
        if self.turn % brokers:
            return 0.0
        wait, self._wait = self._wait, min(2 * self._wait, LONGEST_RETRY_SECONDS)
        return wait


class Versions:
    """Whether MQTT 5 is spoken to a broker: unless it has refused that, or just said nothing to it.

    Args:
        prefer_v5: False speaks 3.1.1 to all.
    """

    def __init__(self, *, prefer_v5: bool) -> None:
        self._prefer_v5 = prefer_v5
        self._refused: set[BrokerAddress] = set()
        self._silent: set[BrokerAddress] = set()

    def five(self, address: BrokerAddress) -> bool:
        """Of the next attempt."""
        return self._prefer_v5 and address not in self._refused | self._silent

    def failed(self, address: BrokerAddress, fault: VersionFault | None) -> None:
        """There was no connection; `fault` says whether the version may be why."""
        five = self.five(address)
        self._silent.discard(address)  # perhaps it had something else to do
        if five and fault == "silent":
            self._silent.add(address)
        elif fault == "refused":
            self._refused ^= {address}  # the one version or the other

    def ended(self, address: BrokerAddress) -> None:
        """There was a connection; after one in 3.1.1 only a refusal is remembered."""
        self._silent.discard(address)
