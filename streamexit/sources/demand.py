"""What is asked of a source while it is read: other pictures than configured, or one to look at."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from streamexit.sources.sampling import Sampler, Sampling

SHOWN_EVERY_SECONDS = 0.2
"""Pictures for people come five times a second at most: each costs a conversion that no network needs."""

SLOW_SECONDS = 2.0
"""Of a node's streams, a picture that comes so long after the one before is carried along unasked: whoever asks
does not wait for the next. Streams that are faster pay nothing."""

LARGEST_SHOWN = 1280
"""Pixels of the longer side of a picture for people."""


class Demand:
    """Set by whoever looks after a stream, read by the thread that decodes it.

    Args:
        clock: Seconds, monotonic.
        unasked: Whether pictures of slow streams are carried along for whoever may ask.

    Attributes:
        sampling: Which pictures are wanted; None leaves that to the configuration.
        served: Whether the source itself carries pictures for people along.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, unasked: bool = False
    ) -> None:
        self.sampling: Sampling | None = None
        self.served = False
        self._clock = clock
        self._until = -math.inf
        self._next = -math.inf
        self._unasked = unasked
        self._latest = -math.inf

    def show_for(self, seconds: float) -> None:
        """Have pictures carry one for people along, from now on for so long."""
        self._until = self._clock() + seconds

    def takes_one_to_show(self) -> bool:
        """Whether the next picture is to carry one along; it then has to. To be asked for each picture."""
        now = self._clock()
        slow, self._latest = self._unasked and now - self._latest > SLOW_SECONDS, now
        if not slow and not self._next <= now < self._until:
            return False
        self._next = now + SHOWN_EVERY_SECONDS
        return True


class Choice:
    """The sampler of one opening: a new one when something else is asked for.

    Args:
        configured: What holds while nothing is asked for.
        demand: Where that is said.
    """

    def __init__(self, configured: Sampling, demand: Demand) -> None:
        self._configured = configured
        self._demand = demand
        self._sampling = configured
        self._sampler = Sampler(configured)

    @property
    def sampling(self) -> Sampling:
        """What is wanted now."""
        return self._demand.sampling or self._configured

    @property
    def sampler(self) -> Sampler:
        """Chooses by it."""
        wanted = self.sampling
        if wanted != self._sampling:
            self._sampling, self._sampler = wanted, Sampler(wanted)
        return self._sampler
