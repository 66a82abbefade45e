"""What is on its way to the broker: results first come first served, kept while the broker is away.

A live result waits in memory, is under way until the broker has confirmed it, and is forgotten then. One
that has not been confirmed soon is copied into the spool; without a connection all results go there.
When the broker is back, what was kept is sent beside the live results, at a bounded rate and marked as
historical. Knows no MQTT; lives on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable

from streamexit.sinks.copies import Copies
from streamexit.sinks.publication import DeliveryBooks, Publication
from streamexit.sinks.spool import Spool

log = logging.getLogger(__name__)

ROUND_SECONDS = 0.05
"""Between two visits to the spool."""

LIVE_RESULTS = 2000
"""That wait in memory for a broker that takes them more slowly than they come; beyond, the oldest are left to
the spool, which has a copy of them by then."""

MOST_BYTES = 64 << 20
"""Of results in memory; it takes a spool that is absent, failing or slow to get there."""

URGENT = 1000
"""Replies and passing messages that wait; a broker that does not take them gets the latest."""

URGENT_BYTES = 8 << 20
"""Of these, unless a single one is larger."""

REPLY_SECONDS = 30.0
"""For which a reply waits for a connection: a command may have changed it, or taken longer than it lasted."""


class Delivery:
    """See the module.

    Args:
        qos: Of results.
        spool: None keeps results in memory only.
        historical: Makes the payload of a kept result that is sent late.
        rate: Of historical results, per second.
        on_problem: Called with a sentence when the spool fails.
        clock: Seconds, monotonic.

    Attributes:
        books: See `DeliveryBooks`.
        wanted: Set when there may be something to send.
    """

    def __init__(
        self,
        *,
        qos: int,
        spool: Spool | None,
        historical: Callable[[bytes], bytes],
        rate: float = 500.0,
        on_problem: Callable[[str], None] = log.warning,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._qos = qos
        self._historical_of = historical
        self._rate = rate
        self._clock = clock
        self._retained: dict[str, Publication] = {}
        self._urgent: deque[Publication] = deque(maxlen=URGENT)
        self._live: deque[Publication] = deque()
        self._under_way: dict[Publication, None] = {}
        self._oldest_since = 0.0
        self._bytes = 0  # of live results, and of late ones that are under way
        self._allowance, self._counted_at = 0.0, clock()
        self._connected = False
        self._closing = False
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self.books = DeliveryBooks()
        self.wanted = asyncio.Event()
        self._copies = Copies(
            spool, self.books, on_problem=on_problem, on_ready=self.wanted.set, clock=clock
        )

    # --- in -------------------------------------------------------------------------------------

    def offer(self, topic: str, payload: bytes) -> None:
        """Take a result; never waits."""
        self.books.offered += 1
        if not self._connected and not self._qos:
            self.books.lose("broker_offline")
            return
        one = Publication(topic, payload, self._qos, "live", self._clock())
        if self._connected:
            self._live.append(one)
            self._bytes += len(payload)
            if self._qos:
                self._copies.watch(one)
            self.wanted.set()
        else:
            self._copies.keep(one)
        self._hold_bounds()

    def send(self, publication: Publication) -> None:
        """Take something that is no result; it is sent before all results, or never.

        Without a connection only replies wait for one, and not for long.
        """
        if not self._connected and publication.kind != "reply":
            return
        publication.offered_at = self._clock()
        if publication.kind == "retained":  # only the latest matters
            self._retained.pop(publication.topic, None)
            self._retained[publication.topic] = publication
        else:
            self._urgent.append(publication)
            while len(self._urgent) > 1 and self._urgent_bytes > URGENT_BYTES:
                self._urgent.popleft()
        self.wanted.set()

    @property
    def _urgent_bytes(self) -> int:
        return sum(len(one.payload) for one in self._urgent)

    # --- out ------------------------------------------------------------------------------------

    def take(self) -> Publication | None:
        """What is to be sent next, which is then under way; None if there is nothing now."""
        one = self._next()
        if one is not None:
            if not self._under_way:
                self._oldest_since = self._clock()
            self._under_way[one] = None
        return one

    def _next(self) -> Publication | None:
        if not self._connected:
            return None
        if self._retained:
            return self._retained.pop(next(iter(self._retained)))
        if self._urgent:
            return self._urgent.popleft()
        if self._live:
            return self._live.popleft()  # its bytes count until it is over
        while self._copies.any_may_go and self._may_send_late():
            if (one := self._next_late()) is not None:
                return one
        return None

    def _next_late(self) -> Publication | None:
        one = self._copies.take()
        if one is None:
            return None
        try:
            one.payload = self._historical_of(one.payload)
        except ValueError:  # the file was damaged where nobody could notice
            self._copies.lose(one, "spool_damaged")
            return None
        one.kind = "historical"
        self._bytes += len(one.payload)
        return one

    def _may_send_late(self) -> bool:
        now = self._clock()
        self._allowance += (now - self._counted_at) * self._rate
        self._allowance = min(self._allowance, max(1.0, self._rate * ROUND_SECONDS * 2))
        self._counted_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def confirmed(self, one: Publication) -> None:
        """The broker has it."""
        self._end(one)
        self.books.confirm(one)

    def refused(self, one: Publication) -> None:
        """The broker does not want it, and will not."""
        self._end(one)
        if one.is_result:
            self.books.lose("refused", earlier=one.earlier)

    def _end(self, one: Publication) -> None:
        if one is next(iter(self._under_way)):
            self._oldest_since = self._clock()
        del self._under_way[one]
        if one.is_result:
            self._bytes -= len(one.payload)
        self._copies.end(one)
        self.wanted.set()

    # --- connection -----------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a connection now."""
        self._connected = self._copies.reads_ahead = True
        self._counted_at = self._clock()
        self._keep_replies()
        self.wanted.set()

    def disconnected(self) -> None:
        """It is gone: what was not confirmed may have arrived or not, and will be sent again."""
        self._connected = False
        left = [one for one in (*self._under_way, *self._live) if one.is_result]
        self._retained.clear()
        self._keep_replies()
        self._live.clear()
        self._under_way.clear()
        self._bytes = 0
        self.books.lose("broker_offline", sum(not one.qos for one in left))
        self._copies.cut(one for one in left if one.qos)

    def _keep_replies(self) -> None:
        """Those that somebody may still wait for, and that have not gone out yet.

        One that was under way may have arrived, or be what the broker broke the connection for.
        """
        since = self._clock() - REPLY_SECONDS
        wanted = [one for one in self._urgent if one.kind == "reply" and one.offered_at >= since]
        self._urgent = deque(wanted, maxlen=URGENT)

    def leave_late(self) -> None:
        """Send no more of what the spool has: the end is near, and it will be sent by the next run."""
        self._copies.leaves_late = True

    @property
    def under_way(self) -> int:
        """Publications that are not yet confirmed."""
        return len(self._under_way)

    @property
    def stuck_for(self) -> float:
        """Seconds for which the oldest publication under way has been the oldest."""
        return self._clock() - self._oldest_since if self._under_way else 0.0

    @property
    def keeps(self) -> bool:
        """Whether results are kept while there is no broker."""
        return self._qos > 0

    @property
    def crowded(self) -> bool:
        """Whether the broker is there, and takes results more slowly than they come."""
        return self._connected and 2 * len(self._live) > LIVE_RESULTS

    @property
    def backlog(self) -> int:
        """Everything that a connection would have to take now, or is taking, but what is kept for later."""
        urgent = len(self._retained) + len(self._urgent)
        return urgent + len(self._live) + len(self._under_way)

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be sent, nor under way."""
        return not self.backlog and not self._copies.any_may_go

    @property
    def unconfirmed(self) -> int:
        """Results among these."""
        return len(self._live) + sum(one.is_result for one in self._under_way)

    @property
    def kept(self) -> int:
        """Results that wait for a broker, in the spool and in memory."""
        return self._copies.waiting

    @property
    def spooled(self) -> tuple[int, int]:
        """Results in the spool, and their bytes."""
        return self._copies.spooled

    @property
    def bytes_in_memory(self) -> int:
        """Of results."""
        return self._bytes + self._copies.bytes

    @property
    def problem(self) -> str:
        """What is wrong with the spool; empty if nothing is."""
        return self._copies.problem

    def lost(self) -> Counter[str]:
        """Results that will not reach the broker, by reason."""
        return +self.books.lost

    # --- keeping --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Visit the spool until `close`. Do not cancel it: a copy that is being made would be forgotten."""
        self._at_rest.clear()
        try:
            while not self._closing:
                await self.visit_spool()
                await asyncio.sleep(ROUND_SECONDS)
                if self._copies.any_may_go:
                    self.wanted.set()  # the allowance has grown
        finally:
            self._at_rest.set()

    async def visit_spool(self) -> None:
        """Do what is due: keep, forget, read ahead."""
        await self._copies.visit()

    async def close(self) -> None:
        """Keep what there is, once nothing is sent any more; what cannot be kept is lost."""
        self.disconnected()
        self._closing = True
        await self._at_rest.wait()
        await self._copies.close()

    # --- bounds ---------------------------------------------------------------------------------

    def _hold_bounds(self) -> None:
        while len(self._live) > LIVE_RESULTS and not self._live[0].qos:
            self._copies.lose(self._oldest_live(), "queue_full")
        while len(self._live) > LIVE_RESULTS and self._live[0].row is not None:
            self._copies.leave_to_spool(self._oldest_live())
        while self.bytes_in_memory > MOST_BYTES:
            if self._copies.give_up_one():
                continue
            if not self._live:
                return
            self._copies.leave_to_spool(self._oldest_live())

    def _oldest_live(self) -> Publication:
        one = self._live.popleft()
        self._bytes -= len(one.payload)
        return one
