"""What the tests of this room share: a delivery with a broker that is a list, and a disk that can be held."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

from streamexit.errors import SpoolError
from streamexit.sinks.copies import KEEP_AFTER_SECONDS
from streamexit.sinks.delivery import Delivery
from streamexit.sinks.publication import Publication
from streamexit.sinks.spool import Kept, Spool

LIMIT_SECONDS = 90


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine; a hang is a failure."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            await test()

    asyncio.run(limited())


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the event loop run until `condition` holds; `run` bounds it."""
    while not condition():  # noqa: ASYNC110 - there is no event for "whatever a test looks at"
        await asyncio.sleep(0.01)


class OddDisk(Spool):
    """A spool that, once told to, holds its answer back until it may give it, or fails."""

    held = ""
    failing: tuple[str, ...] = ()
    """What fails, of append, remove and read."""

    def hold(self, work: str) -> None:
        """The next answer to this."""
        self.held, self.done, self.go_on = work, threading.Event(), threading.Event()

    def damage(self) -> None:
        """From now on the file is none."""
        self.close()
        if self.path.exists():
            self.path.write_bytes(b"\0" * self.path.stat().st_size)

    def _begin(self, work: str) -> None:
        if work in self.failing:
            raise SpoolError("the disk fails", reason="disk_error")

    def _answer(self, work: str) -> None:
        if work == self.held:
            self.held = ""
            self.done.set()
            assert self.go_on.wait(LIMIT_SECONDS)

    def append(
        self, results: Sequence[tuple[str, bytes]], *, earlier: Collection[int] = ()
    ) -> list[int]:
        """See `Spool`."""
        self._begin("append")
        ids = super().append(results, earlier=earlier)
        self._answer("append")
        return ids

    def remove(self, ids: Sequence[int]) -> None:
        """See `Spool`."""
        self._begin("remove")
        super().remove(ids)
        self._answer("remove")

    def read(self, *, after: int, limit: int, max_bytes: int = 1 << 24) -> list[Kept]:
        """See `Spool`."""
        self._begin("read")
        rows = super().read(after=after, limit=limit, max_bytes=max_bytes)
        self._answer("read")
        return rows


class Rig:
    """A delivery with a clock that is moved by hand, and a broker that is a list."""

    def __init__(self, folder: Path | None, *, qos: int = 1, max_bytes: int = 1 << 24) -> None:
        self.now = 100.0
        self.problems: list[str] = []
        self.spool = (
            OddDisk(folder / "spool.sqlite", max_bytes=max_bytes, max_age=1e6) if folder else None
        )
        self.delivery = Delivery(
            qos=qos,
            spool=self.spool,
            historical=lambda payload: b"late:" + payload.removeprefix(b"late:"),
            rate=1e6,
            on_problem=self.problems.append,
            clock=lambda: self.now,
        )
        self.got: list[bytes] = []

    def offer(self, *numbers: int) -> None:
        for number in numbers:
            self.delivery.offer("t/a", str(number).encode())

    def take(self) -> Publication | None:
        self.now += 1e-3
        return self.delivery.take()

    def send_all(self) -> None:
        """The broker takes and confirms everything."""
        while one := self.take():
            self.got.append(one.payload)
            self.delivery.confirmed(one)

    async def visit(self, *, seconds: float = KEEP_AFTER_SECONDS) -> None:
        self.now += seconds
        await self.delivery.visit_spool()

    async def meanwhile(self, work: str, *steps: Callable[[], object]) -> None:
        """Visit the spool; the steps happen when it has done some work, but not yet said so."""
        assert self.spool
        self.spool.hold(work)
        visit = asyncio.create_task(self.visit())
        assert await asyncio.to_thread(self.spool.done.wait, LIMIT_SECONDS)
        for step in steps:
            step()
        self.spool.go_on.set()
        await visit

    @property
    def books_balance(self) -> bool:
        """Every result is somewhere."""
        books, delivery = self.delivery.books, self.delivery
        here = delivery.kept + delivery.backlog
        return books.offered == books.confirmed + delivery.lost().total() + here
