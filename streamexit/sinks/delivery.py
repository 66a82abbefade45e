"""What is on its way to the broker: results first come first served, kept while the broker is away.

A live result waits in memory, is under way until the broker has confirmed it, and is forgotten then. One
that has not been confirmed soon is copied into the spool; without a connection all results go there.
When the broker is back, what was kept is sent beside the live results, at a bounded rate and marked as
historical. Knows no MQTT; lives on one event loop, and the spool on a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from streamexit.errors import SpoolError
from streamexit.sinks.spool import Kept, Spool

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Kind = Literal["live", "historical", "retained", "reply", "passing"]

KEEP_AFTER_SECONDS = 0.25
"""A result that has not been confirmed for so long gets a copy in the spool, against a sudden end of this
process. Sooner would wear out memory cards while all is well."""

ROUND_SECONDS = 0.05
"""Between two visits to the spool."""

LIVE_RESULTS = 2000
"""That wait in memory for a broker that takes them more slowly than they come; beyond, the oldest are left to
the spool, which has a copy of them by then."""

READ_AHEAD = 500
READ_AHEAD_BYTES = 8 << 20
"""Kept results that are read from the spool at once, at most."""

MOST_BYTES = 64 << 20
"""Of results in memory; it takes a spool that is absent, failing or slow to get there."""

LARGE_BYTES = 1 << 20
"""That are given to the spool at once, at most; the event loop then has a look around."""

URGENT = 1000
"""Replies and passing messages that wait; a broker that does not take them gets the latest."""

URGENT_BYTES = 8 << 20

CHECK_SECONDS = 60.0
"""Between two looks for results in the spool that have become too old."""

AGAIN_SECONDS = 10.0
"""Between two attempts to use a spool that has failed."""


@dataclass(slots=True, eq=False)
class Publication:
    """A message on its way.

    Attributes:
        topic: Where to.
        payload: What.
        qos: 0 or 1.
        kind: Results are live or historical; retained messages stay at the broker, replies go to
            whoever asked, passing ones are of no interest later.
        offered_at: Monotonic seconds.
        correlation: Of a reply: what the request carried.
        row: Of its copy in the spool.
        homeless: Waits in memory for the spool, or for a connection.
        over: Confirmed, refused or lost.
    """

    topic: str
    payload: bytes
    qos: int
    kind: Kind
    offered_at: float = 0.0
    correlation: bytes | None = None
    row: int | None = None
    homeless: bool = False
    over: bool = False

    @property
    def is_result(self) -> bool:
        """Whether it counts as one."""
        return self.kind in ("live", "historical")


@dataclass
class DeliveryBooks:
    """Where results went. offered = confirmed + lost + those that are still here.

    Attributes:
        offered: By this run.
        confirmed: Of these.
        recovered: Confirmed results of earlier runs, which the spool held.
        lost: Of this run's, by reason; docs/wire.md has them.
        lost_earlier: Of earlier runs', from the spool.
    """

    offered: int = 0
    confirmed: int = 0
    recovered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    lost_earlier: int = 0


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
        problem: What is wrong with the spool; empty if nothing is.
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
        self._spool = spool
        self._historical_of = historical
        self._rate = rate
        self._on_problem = on_problem
        self._clock = clock
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._retained: dict[str, Publication] = {}
        self._urgent: deque[Publication] = deque(maxlen=URGENT)
        self._live: deque[Publication] = deque()
        self._late: deque[Publication] = deque()
        self._under_way: dict[Publication, None] = {}
        self._homeless: deque[Publication] = deque()
        self._bytes = 0
        self._unchecked: deque[Publication] = deque()
        self._in_memory: set[int] = set()
        self._unremoved: set[int] = set()
        self._bare: set[int] = set()  # in memory, and their copies have gone
        self._cursor = 0
        self._allowance, self._counted_at = 0.0, clock()
        self._retry_at = self._check_at = 0.0
        self._connected = False
        self.books = DeliveryBooks()
        self.wanted = asyncio.Event()
        self.problem = ""

    # --- in -------------------------------------------------------------------------------------

    def offer(self, topic: str, payload: bytes) -> None:
        """Take a result; never waits."""
        self.books.offered += 1
        if not self._connected and not self._qos:
            self.books.lost["broker_offline"] += 1
            return
        one = Publication(topic, payload, self._qos, "live", self._clock())
        self._bytes += len(payload)
        if self._connected:
            self._live.append(one)
            if self._qos:
                self._unchecked.append(one)
            self.wanted.set()
        else:
            self._keep_for_later(one)
        self._hold_bounds()

    def send(self, publication: Publication) -> None:
        """Take something that is no result; it is sent before all results, or never."""
        if not self._connected:
            return
        if publication.kind == "retained":  # only the latest matters
            self._retained.pop(publication.topic, None)
            self._retained[publication.topic] = publication
        else:
            self._urgent.append(publication)
            while sum(len(one.payload) for one in self._urgent) > URGENT_BYTES:
                self._urgent.popleft()
        self.wanted.set()

    # --- out ------------------------------------------------------------------------------------

    def take(self) -> Publication | None:
        """What is to be sent next, which is then under way; None if there is nothing now."""
        one = self._next()
        if one is not None:
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
        while (self._late or self._homeless_may_go) and self._may_send_late():
            if (one := self._next_late()) is not None:
                return one
        return None

    def _next_late(self) -> Publication | None:
        one = self._late.popleft() if self._late else self._homeless.popleft()
        one.homeless = False
        try:
            payload = self._historical_of(one.payload)
        except ValueError:  # the file was damaged where nobody could notice
            self._lose(one, "spool_damaged")
            return None
        one.kind = "historical"
        self._bytes -= len(one.payload)
        one.payload = payload
        self._bytes += len(one.payload)
        return one

    @property
    def _homeless_may_go(self) -> bool:
        """Whether results that are in memory only are sent from there: the spool does not take them."""
        return bool(self._homeless) and (self._spool is None or bool(self.problem))

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
        if one.is_result:
            before = one.row is not None and self._spool and one.row <= self._spool.newest_before
            if before:
                self.books.recovered += 1
            else:
                self.books.confirmed += 1

    def refused(self, one: Publication) -> None:
        """The broker does not want it, and will not."""
        self._end(one)
        if one.is_result:
            self.books.lost["refused"] += 1

    def _end(self, one: Publication) -> None:
        self._under_way.pop(one, None)
        self._forget_bytes(one)
        one.over = True
        if one.row is not None:
            self._in_memory.discard(one.row)
            self._bare.discard(one.row)
            self._unremoved.add(one.row)
        self.wanted.set()

    # --- connection -----------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a connection now."""
        self._connected = True
        self._counted_at = self._clock()
        self.wanted.set()

    def disconnected(self) -> None:
        """It is gone: what was not confirmed may have arrived or not, and will be sent again."""
        self._connected = False
        left = [*self._under_way, *self._live, *self._late]
        self._retained.clear()
        self._urgent.clear()
        self._live.clear()
        self._late.clear()
        self._under_way.clear()
        self._unchecked.clear()
        for one in left:
            if one.row in self._bare:  # nothing to find again: it is kept anew
                one.row = None
        self._in_memory.clear()
        self._bare.clear()
        self._cursor = 0
        again = [one for one in left if one.kind == "historical" and one.row is None]
        for one in reversed(again):  # they had been kept in memory, and are the oldest
            one.homeless = True
            self._homeless.appendleft(one)
        for one in left:
            if one.homeless:
                continue
            if one.is_result and not one.qos:
                self._lose(one, "broker_offline")
            elif one.is_result and one.row is None:
                self._keep_for_later(one)
            else:  # of no use later, or with a copy in the spool, where it is found again
                self._forget_bytes(one)

    @property
    def under_way(self) -> int:
        """Publications that are not yet confirmed."""
        return len(self._under_way)

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
    def kept(self) -> int:
        """Results that wait for a broker, in the spool and in memory."""
        return self._in_spool_only + len(self._homeless) + len(self._late)

    @property
    def _in_spool_only(self) -> int:
        known = len(self._in_memory) + len(self._unremoved)
        return max(0, self._spool.length - known) if self._spool else 0

    @property
    def spooled(self) -> tuple[int, int]:
        """Results in the spool, and their bytes."""
        return (self._spool.length, self._spool.bytes) if self._spool else (0, 0)

    def lost(self) -> Counter[str]:
        """Results that will not reach the broker, by reason."""
        return +self.books.lost

    # --- keeping --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Visit the spool for ever; see `close`."""
        while True:
            await self.visit_spool()
            await asyncio.sleep(ROUND_SECONDS)
            if self._late or self._homeless_may_go:
                self.wanted.set()  # the allowance has grown

    async def visit_spool(self) -> None:
        """Do what is due: keep, forget, read ahead."""
        if self._spool is None or self._clock() < self._retry_at:
            return
        failed = None
        for step in (self._check, self._forget, self._keep_all, self._read_ahead):
            try:
                await step(self._spool)
            except SpoolError as error:  # a full disk can still be read
                failed = failed or error
        self._note_gone(self._spool)
        if failed is not None:
            self._retry_at = self._clock() + AGAIN_SECONDS
            self._say(f"{failed}. Live results go on")
        else:
            self.problem = ""

    async def close(self) -> None:
        """Keep what there is, once nothing is sent any more; what cannot be kept is lost."""
        self.disconnected()
        self._retry_at = 0.0
        await self.visit_spool()
        while self._homeless:
            self._lose(self._homeless.popleft(), "not_sent")
        if self._spool is not None:
            await self._on_disk(self._spool.close)
        self._disk.shutdown(wait=False)

    def _note_gone(self, spool: Spool) -> None:
        """Results that the spool had to let go of are lost, unless they are still in memory."""
        gone = spool.take_gone()
        unknown = [reason for row, reason in gone if not row]
        known = len(self._in_memory) + len(self._unremoved)
        self.books.lost.update(unknown[known:])
        self._bare |= self._in_memory if unknown else self._in_memory & {row for row, _ in gone}
        for row, reason in gone:
            if not row or row in self._in_memory or row in self._unremoved:
                continue
            if row > spool.newest_before:
                self.books.lost[reason] += 1
            else:
                self.books.lost_earlier += 1

    async def _check(self, spool: Spool) -> None:
        if self._clock() >= self._check_at:
            self._check_at = self._clock() + CHECK_SECONDS
            await self._on_disk(spool.check)

    async def _keep_all(self, spool: Spool) -> None:
        while await self._keep(spool):
            pass

    async def _forget(self, spool: Spool) -> None:
        if self._unremoved:
            ids = list(self._unremoved)
            await self._on_disk(lambda: spool.remove(ids))
            self._unremoved.difference_update(ids)

    async def _keep(self, spool: Spool) -> bool:
        """Give the spool what is due, in the order in which it came; whether there is more."""
        batch, size = [], 0
        for one in self._due_for_a_copy():
            batch.append(one)
            size += len(one.payload)
            if size > LARGE_BYTES:
                break
        if not batch:
            return False
        try:
            rows = await self._on_disk(lambda: spool.append([(p.topic, p.payload) for p in batch]))
        except SpoolError:
            self._unchecked.extendleft(p for p in reversed(batch) if not p.homeless)
            raise
        for one, row in zip(batch, rows, strict=True):
            self._note_copy(one, row)
        return size > LARGE_BYTES

    def _note_copy(self, one: Publication, row: int) -> None:
        """A copy was made; meanwhile anything may have happened to the original."""
        if one.over:
            self._unremoved.add(row)
        elif one.homeless:
            self._homeless.remove(one)  # one of the first
            self._forget_bytes(one)
        else:
            one.row = row
            self._in_memory.add(row)

    def _due_for_a_copy(self) -> Iterator[Publication]:
        """Those without a home, which are older, and those that have waited for long."""
        yield from list(self._homeless)
        now = self._clock()
        while self._unchecked:
            one = self._unchecked[0]
            waits = not one.over and not one.homeless
            if waits and now - one.offered_at < KEEP_AFTER_SECONDS:
                return
            self._unchecked.popleft()
            if waits:
                yield one

    async def _read_ahead(self, spool: Spool) -> None:
        asked = self._cursor
        if not self._may_read_ahead():
            return
        rows = await self._on_disk(
            lambda: spool.read(after=asked, limit=READ_AHEAD, max_bytes=READ_AHEAD_BYTES)
        )
        if not rows or self._cursor != asked or not self._may_read_ahead():
            return
        self._cursor = rows[-1].id
        self._late.extend(self._late_of(row) for row in rows if self._is_waiting(row))
        self.wanted.set()

    def _may_read_ahead(self) -> bool:
        enough = len(self._late) > READ_AHEAD // 2
        return self._connected and not enough and self._in_spool_only > 0

    def _is_waiting(self, row: Kept) -> bool:
        return row.id not in self._in_memory and row.id not in self._unremoved

    def _late_of(self, row: Kept) -> Publication:
        self._in_memory.add(row.id)
        self._bytes += len(row.payload)
        return Publication(row.topic, row.payload, 1, "historical", row=row.id)

    async def _on_disk(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    # --- bounds ---------------------------------------------------------------------------------

    def _hold_bounds(self) -> None:
        while len(self._live) > LIVE_RESULTS and not self._live[0].qos:
            self._lose(self._live.popleft(), "queue_full")
        while len(self._live) > LIVE_RESULTS and self._live[0].row is not None:
            self._leave_to_spool(self._live.popleft())
        while self._bytes > MOST_BYTES:
            if self._late:
                self._leave_to_spool(self._late.pop())
            elif self._homeless:
                self._lose(self._homeless.popleft(), "outbox_full")
            elif self._live and self._live[0].row is not None:
                self._leave_to_spool(self._live.popleft())
            elif self._live:
                self._lose(self._live.popleft(), "outbox_full")
            else:
                return

    def _leave_to_spool(self, one: Publication) -> None:
        assert one.row is not None
        if one.row in self._bare:
            self._lose(one, "outbox_full")
            return
        self._forget_bytes(one)
        one.over = True
        self._in_memory.discard(one.row)
        self._cursor = min(self._cursor, one.row - 1)

    def _keep_for_later(self, one: Publication) -> None:
        one.homeless = True
        self._homeless.append(one)

    def _lose(self, one: Publication, reason: str) -> None:
        self._forget_bytes(one)
        one.over, one.homeless = True, False
        if one.row is not None:
            self._in_memory.discard(one.row)
            self._unremoved.add(one.row)
        self.books.lost[reason] += 1

    def _forget_bytes(self, one: Publication) -> None:
        if one.is_result and not one.over:
            self._bytes -= len(one.payload)

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._on_problem(problem)
