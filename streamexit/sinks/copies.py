"""Results that wait for the broker, in the spool or in memory, and copies of those on their way to it.

Lives on one event loop, and the spool on a thread of its own: while that works, anything may happen here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from streamexit.errors import SpoolError
from streamexit.sinks.publication import DeliveryBooks, Publication
from streamexit.sinks.spool import Kept, Spool

Answer = TypeVar("Answer")

KEEP_AFTER_SECONDS = 0.25
"""A result that has not been confirmed for so long gets a copy in the spool, against a sudden end of this
process. Sooner would wear out memory cards while all is well."""

READ_AHEAD = 500
READ_AHEAD_BYTES = 8 << 20
"""Kept results that are read from the spool at once, at most."""

LARGE_BYTES = 1 << 20
"""That are given to the spool at once, at most; the event loop then has a look around."""

CHECK_SECONDS = 60.0
"""Between two looks for results in the spool that have become too old."""

SLOW_DISK_SECONDS = 5.0
"""After which results do not wait for the disk any more."""

AGAIN_SECONDS = 10.0
"""Between two attempts to use a spool that has failed."""


class Copies:
    """See the module.

    Args:
        spool: None keeps results in memory only.
        books: Count what is lost here.
        on_problem: Called with a sentence when the spool fails.
        on_ready: Called when there may be something to send.
        clock: Seconds, monotonic.

    Attributes:
        bytes: Of waiting results in memory.
        reads_ahead: Whether kept results are wanted: there is a connection.
        leaves_late: Whether what the spool has stays there.
        problem: What is wrong with the spool; empty if nothing is.
    """

    def __init__(
        self,
        spool: Spool | None,
        books: DeliveryBooks,
        *,
        on_problem: Callable[[str], None],
        on_ready: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._books = books
        self._on_problem = on_problem
        self._on_ready = on_ready
        self._clock = clock
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._late: deque[Publication] = deque()  # read from the spool
        self._homeless: OrderedDict[Publication, None] = OrderedDict()  # not in the spool
        self._unchecked: deque[Publication] = deque()  # live, and without a copy
        self._in_memory: dict[int, Publication] = {}
        self._unremoved: set[int] = set()
        self._cursor = 0
        self._retry_at = self._check_at = 0.0
        self.bytes = 0
        self.reads_ahead = self.leaves_late = False
        self.problem = ""

    # --- what waits -----------------------------------------------------------------------------

    def keep(self, one: Publication) -> None:
        """It waits in memory for the spool, or for a connection."""
        self._homeless[one] = None
        self.bytes += len(one.payload)

    def take(self) -> Publication | None:
        """The oldest that may be sent now, which then does not wait any more."""
        if self._late and not self.leaves_late:
            one = self._late.popleft()
        elif self.any_may_go:
            one, _ = self._homeless.popitem(last=False)
        else:
            return None
        self.bytes -= len(one.payload)
        return one

    @property
    def any_may_go(self) -> bool:
        """Whether one may be sent now; what the spool has not got only if it does not take it."""
        without_refuge = self._homeless and (self._spool is None or self.problem)
        return bool((self._late and not self.leaves_late) or without_refuge)

    def cut(self, under_way: Iterable[Publication]) -> None:
        """The connection is gone: all results of QoS 1 wait, what has a copy in the spool only there."""
        self.reads_ahead = False
        left = [*under_way, *self._late]
        self.bytes -= sum(len(one.payload) for one in self._late)
        self._late.clear()
        self._unchecked.clear()
        self._in_memory.clear()
        self._cursor = 0
        bare = [one for one in left if one.row is None]
        for one in bare:
            self.keep(one)
        for one in reversed([one for one in bare if one.kind == "historical"]):
            self._homeless.move_to_end(one, last=False)  # kept before, and the oldest

    def give_up_one(self) -> bool:
        """Make room in memory; False if nothing waits in it."""
        if self._late:
            one = self._late.pop()
            self.bytes -= len(one.payload)
            self.leave_to_spool(one)
        elif self._homeless:
            one, _ = self._homeless.popitem(last=False)
            self.bytes -= len(one.payload)
            self.lose(one, "outbox_full")
        else:
            return False
        return True

    @property
    def waiting(self) -> int:
        """Results that wait, in the spool and in memory."""
        return self._in_spool_only + len(self._homeless) + len(self._late)

    @property
    def spooled(self) -> tuple[int, int]:
        """Results in the spool, and their bytes."""
        return (self._spool.length, self._spool.bytes) if self._spool else (0, 0)

    @property
    def _in_spool_only(self) -> int:
        known = len(self._in_memory) + len(self._unremoved)
        return max(0, self._spool.length - known) if self._spool else 0

    # --- what is on its way ---------------------------------------------------------------------

    def watch(self, one: Publication) -> None:
        """It gets a copy unless it is soon over."""
        if self._spool is None:
            return
        while self._unchecked and self._unchecked[0].over:  # the disk may hang meanwhile
            self._unchecked.popleft()
        self._unchecked.append(one)

    def end(self, one: Publication) -> None:
        """It is over: its copy is removed."""
        one.over = True
        if one.row is not None:
            self._in_memory.pop(one.row, None)
            self._unremoved.add(one.row)

    def lose(self, one: Publication, reason: str) -> None:
        """It will not arrive."""
        self.end(one)
        self._books.lose(reason, earlier=one.earlier)

    def leave_to_spool(self, one: Publication) -> None:
        """Only its copy stays, to be read when it is its turn; without one it is lost."""
        if one.row is None:
            self.lose(one, "outbox_full")
            return
        one.over = True
        self._in_memory.pop(one.row, None)
        self._cursor = min(self._cursor, one.row - 1)

    # --- the spool ------------------------------------------------------------------------------

    async def visit(self) -> None:
        """Do what is due: keep, remove, read ahead."""
        if self._spool is None or self._clock() < self._retry_at:
            return
        failed = None
        for step in (self._check, self._remove, self._keep_due, self._read_ahead):
            try:
                await step(self._spool)
            except SpoolError as error:  # a full disk can still be read
                failed = failed or error
            self._note_gone(self._spool)
        if failed is not None:
            self._retry_at = self._clock() + AGAIN_SECONDS
            self._check_at = 0.0  # without anything to keep, only this would find it mended
            self._say(f"{failed}. Live results go on")
        else:
            self.problem = ""

    async def close(self) -> None:
        """Keep what there is; what cannot be kept is lost. A last look tells what the next run will find."""
        self._retry_at = self._check_at = 0.0
        await self.visit()
        for one in self._homeless:
            self.lose(one, "not_sent")
        self._homeless.clear()
        if self._spool is not None:
            await self._on_disk(self._spool.close)
        self._disk.shutdown(wait=False)

    async def _check(self, spool: Spool) -> None:
        if self._clock() >= self._check_at:
            self._check_at = self._clock() + CHECK_SECONDS
            await self._on_disk(spool.check)

    async def _remove(self, spool: Spool) -> None:
        if self._unremoved:
            ids = list(self._unremoved)
            await self._on_disk(lambda: spool.remove(ids))
            self._unremoved.difference_update(ids)

    async def _keep_due(self, spool: Spool) -> None:
        while await self._keep_some(spool):
            self._note_gone(spool)

    async def _keep_some(self, spool: Spool) -> bool:
        """Give the spool what is due, in the order in which it came; whether there may be more."""
        batch, size = [], 0
        for one in self._due():
            batch.append(one)
            size += len(one.payload)
            if size > LARGE_BYTES:
                break
        if not batch:
            return False
        try:
            rows = await self._on_disk(lambda: _append(spool, batch))
        except SpoolError:
            self._unchecked.extendleft(p for p in reversed(batch) if p not in self._homeless)
            raise
        for one, row in zip(batch, rows, strict=True):
            self._note_copy(one, row)
        return size > LARGE_BYTES

    def _due(self) -> Iterator[Publication]:
        """Those without a home, which are older, and those that have been under way for long."""
        yield from list(self._homeless)
        now = self._clock()
        while self._unchecked:
            one = self._unchecked[0]
            if not one.over and now - one.offered_at < KEEP_AFTER_SECONDS:
                return
            self._unchecked.popleft()
            if not one.over:
                yield one

    def _note_copy(self, one: Publication, row: int) -> None:
        """A copy was made; meanwhile anything may have happened to the original."""
        if one.over:
            self._unremoved.add(row)
        elif one in self._homeless:
            del self._homeless[one]
            self.bytes -= len(one.payload)
        else:
            one.row = row
            self._in_memory[row] = one

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
        self._on_ready()

    def _may_read_ahead(self) -> bool:
        enough = len(self._late) > READ_AHEAD // 2
        return self.reads_ahead and not enough and self._in_spool_only > 0

    def _is_waiting(self, row: Kept) -> bool:
        return row.id not in self._in_memory and row.id not in self._unremoved

    def _late_of(self, row: Kept) -> Publication:
        one = Publication(row.topic, row.payload, 1, "historical", row=row.id, earlier=row.earlier)
        self._in_memory[row.id] = one
        self.bytes += len(row.payload)
        return one

    def _note_gone(self, spool: Spool) -> None:
        """Results that the spool had to let go of are lost, unless they are still in memory."""
        unknown = Counter[bool]()
        for row, reason, earlier in spool.take_gone():
            if row is None:
                unknown[earlier] += 1
            elif one := self._in_memory.pop(row, None):
                one.row = None
            elif row in self._unremoved:
                self._unremoved.discard(row)
            else:
                self._books.lose(reason, earlier=earlier)
        if unknown:
            self._note_damage(spool, unknown)

    def _note_damage(self, spool: Spool, gone: Counter[bool]) -> None:
        """The whole file is gone; so many results were in it, by whether they are an earlier run's."""
        known = Counter(map(spool.is_earlier, (*self._in_memory, *self._unremoved)))
        for earlier, count in (gone - known).items():
            self._books.lose("spool_damaged", count, earlier=earlier)
        for one in self._in_memory.values():
            one.row = None
        self._in_memory.clear()
        self._unremoved.clear()

    async def _on_disk(self, work: Callable[[], Answer]) -> Answer:
        doing = asyncio.get_running_loop().run_in_executor(self._disk, work)
        done, _ = await asyncio.wait({doing}, timeout=SLOW_DISK_SECONDS)
        if not done and self._spool is not None:
            self._say(f"spool {self._spool.path}: the disk does not answer. Live results go on")
            self._on_ready()  # what waits for the spool need not any more
        return await doing

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._on_problem(problem)


def _append(spool: Spool, batch: list[Publication]) -> list[int]:
    earlier = [n for n, one in enumerate(batch) if one.earlier]
    return spool.append([(one.topic, one.payload) for one in batch], earlier=earlier)
