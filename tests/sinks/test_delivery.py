from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamexit.sinks import delivery as module
from streamexit.sinks.delivery import KEEP_AFTER_SECONDS, LIVE_RESULTS, Delivery, Publication
from streamexit.sinks.spool import Kept, Spool

LIMIT_SECONDS = 60


class SlowDisk(Spool):
    """A spool that, once told to, holds its answer back until it may give it."""

    held = ""

    def hold(self, work: str) -> None:
        """The next answer to this."""
        self.held, self.done, self.go_on = work, threading.Event(), threading.Event()

    def _answer(self, work: str) -> None:
        if work == self.held:
            self.held = ""
            self.done.set()
            assert self.go_on.wait(LIMIT_SECONDS)

    def append(self, results: Sequence[tuple[str, bytes]]) -> list[int]:
        """See `Spool`."""
        ids = super().append(results)
        self._answer("append")
        return ids

    def remove(self, ids: Sequence[int]) -> None:
        """See `Spool`."""
        super().remove(ids)
        self._answer("remove")

    def read(self, *, after: int, limit: int, max_bytes: int = 1 << 24) -> list[Kept]:
        """See `Spool`."""
        rows = super().read(after=after, limit=limit, max_bytes=max_bytes)
        self._answer("read")
        return rows


class Rig:
    """A delivery with a clock that is moved by hand, and a broker that is a list."""

    def __init__(self, folder: Path | None, *, qos: int = 1, max_bytes: int = 1 << 24) -> None:
        self.now = 100.0
        self.problems: list[str] = []
        self.spool = (
            SlowDisk(folder / "spool.sqlite", max_bytes=max_bytes, max_age=1e6) if folder else None
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


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine; a hang is a failure."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            await test()

    asyncio.run(limited())


def test_while_all_is_well_the_disk_is_not_touched(tmp_path: Path) -> None:
    """A confirmed result leaves no trace."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery.connected()
        for n in range(100):
            rig.offer(n)
            rig.send_all()
            await rig.visit(seconds=0.05)
        assert rig.got == [str(n).encode() for n in range(100)]
        assert rig.spool
        assert rig.spool.read(after=0, limit=1) == []
        assert rig.spool.append([("t", b"")]) == [1]  # the first ever
        await rig.delivery.close()

    run(body)


def test_what_is_not_confirmed_soon_gets_a_copy(tmp_path: Path) -> None:
    """So that a kill loses no more than the latest; a late confirmation removes it again."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery.connected()
        rig.offer(1, 2)
        first = rig.take()
        assert first
        await rig.visit(seconds=KEEP_AFTER_SECONDS / 2)
        assert rig.delivery.spooled[0] == 0
        await rig.visit()
        assert rig.delivery.spooled[0] == 2  # under way, and waiting
        rig.delivery.confirmed(first)
        rig.send_all()
        await rig.visit()
        assert rig.delivery.spooled[0] == 0
        assert rig.got == [b"2"]  # not sent a second time as history
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


@pytest.mark.parametrize("spooled", [True, False])
def test_an_outage_loses_nothing_and_keeps_the_order(tmp_path: Path, spooled: bool) -> None:
    """Unconfirmed, waiting and later results come afterwards, marked; live ones come first."""

    async def body() -> None:
        rig = Rig(tmp_path if spooled else None)
        rig.delivery.connected()
        rig.offer(1, 2, 3)
        unconfirmed = rig.take()
        assert unconfirmed
        rig.delivery.disconnected()
        rig.offer(4)
        await rig.visit()
        rig.offer(5)
        await rig.visit()
        assert rig.take() is None
        rig.delivery.connected()
        rig.offer(6)
        await rig.visit(seconds=0)
        rig.send_all()
        assert rig.got == [b"6", b"late:1", b"late:2", b"late:3", b"late:4", b"late:5"]
        await rig.visit()
        assert rig.delivery.kept == 0
        assert rig.delivery.books.confirmed == 6
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_the_next_run_sends_what_the_last_one_kept(tmp_path: Path) -> None:
    """Counted apart from its own."""

    async def body() -> None:
        before = Rig(tmp_path)
        before.offer(1, 2)
        await before.delivery.close()
        after = Rig(tmp_path)
        await after.visit()
        assert after.delivery.kept == 2
        after.delivery.connected()
        after.offer(3)
        await after.visit(seconds=0)
        after.send_all()
        assert after.got == [b"3", b"late:1", b"late:2"]
        assert (after.delivery.books.confirmed, after.delivery.books.recovered) == (1, 2)
        await after.visit()
        await after.delivery.close()

    run(body)


def test_history_goes_out_at_a_bounded_rate(tmp_path: Path) -> None:
    """So that live results and the broker have room."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery._rate = 100.0
        rig.offer(*range(50))
        await rig.visit()
        rig.delivery.connected()
        await rig.visit(seconds=0)
        sent = 0
        for _ in range(10):  # a hundredth of a second each
            rig.now += 0.009
            while one := rig.take():
                rig.now -= 1e-3
                rig.delivery.confirmed(one)
                sent += 1
        assert 8 <= sent <= 12
        await rig.delivery.close()

    run(body)


def test_a_slow_broker_fills_no_memory(tmp_path: Path) -> None:
    """Beyond a bound results are left to the spool, in their order."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery.connected()
        for n in range(2 * LIVE_RESULTS):
            rig.offer(n)
            if n % 500 == 0:
                await rig.visit()
        assert len(rig.delivery._live) <= LIVE_RESULTS + 500
        assert rig.delivery.crowded
        for _ in range(20):
            rig.send_all()
            await rig.visit()
        numbers = [int(p.removeprefix(b"late:")) for p in rig.got]
        live = [n for n, p in zip(numbers, rig.got, strict=True) if not p.startswith(b"late")]
        late = [n for n, p in zip(numbers, rig.got, strict=True) if p.startswith(b"late")]
        assert live == sorted(live)
        assert late == sorted(late)
        assert sorted(numbers) == list(range(2 * LIVE_RESULTS))
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_memory_is_bounded_without_a_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go, and are counted."""
    monkeypatch.setattr(module, "MOST_BYTES", 30)

    async def body() -> None:
        rig = Rig(None)
        rig.offer(*range(10, 30))  # two bytes each
        assert rig.delivery.lost() == {"outbox_full": 5}
        rig.delivery.connected()
        rig.send_all()
        assert rig.got == [f"late:{n}".encode() for n in range(15, 30)]
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_a_spool_that_fails_is_said_and_replaced_by_memory(tmp_path: Path) -> None:
    """Live results go on, kept ones wait in memory, and the file is tried again."""

    async def body() -> None:
        other = Spool(tmp_path / "spool.sqlite", max_bytes=1 << 20, max_age=1e6)
        other.append([])
        rig = Rig(tmp_path)
        rig.offer(1)
        await rig.visit()
        await rig.visit()
        assert [("another process uses it" in p) for p in rig.problems] == [True]
        assert "Live results go on" in rig.delivery.problem
        rig.delivery.connected()
        rig.offer(2)
        rig.send_all()
        assert rig.got == [b"2", b"late:1"]
        rig.delivery.disconnected()
        rig.offer(3)
        other.close()
        await rig.visit(seconds=module.AGAIN_SECONDS)
        assert rig.delivery.problem == ""
        assert rig.delivery.spooled[0] == 1
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_refusals_are_losses(tmp_path: Path) -> None:
    """The broker has said that it will not have it; it is not tried for ever."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.offer(1)
        await rig.visit()
        rig.delivery.connected()
        await rig.visit()
        one = rig.take()
        assert one
        rig.delivery.refused(one)
        await rig.visit()
        assert rig.delivery.lost() == {"refused": 1}
        assert rig.delivery.spooled[0] == 0
        await rig.delivery.close()

    run(body)


def test_quality_of_service_0_is_kept_for_nobody(tmp_path: Path) -> None:
    """Whoever asks for it wants it now or not at all."""

    async def body() -> None:
        rig = Rig(tmp_path, qos=0)
        rig.offer(1)
        rig.delivery.connected()
        rig.offer(2)
        rig.delivery.disconnected()
        await rig.visit()
        assert rig.delivery.lost() == {"broker_offline": 2}
        assert rig.delivery.spooled[0] == 0
        rig.delivery.connected()
        rig.offer(*range(LIVE_RESULTS + 3))
        assert rig.delivery.lost() == {"broker_offline": 2, "queue_full": 3}
        await rig.delivery.close()

    run(body)


def test_what_is_no_result_goes_first_and_is_not_kept(tmp_path: Path) -> None:
    """Of a retained topic only the latest is sent."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery.send(Publication("t/s", b"nobody", 1, "retained"))
        rig.delivery.connected()
        rig.offer(1)
        rig.delivery.send(Publication("t/r", b"reply", 1, "reply"))
        for payload in (b"old", b"new"):
            rig.delivery.send(Publication("t/s", payload, 1, "retained"))
        rig.send_all()
        assert rig.got == [b"new", b"reply", b"1"]
        rig.delivery.send(Publication("t/r", b"lost", 1, "reply"))
        rig.delivery.disconnected()
        await rig.visit()
        assert rig.delivery.kept == 0
        await rig.delivery.close()

    run(body)


def test_a_kept_result_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    """A file may be damaged where nobody can notice."""

    async def body() -> None:
        rig = Rig(tmp_path)

        def historical(payload: bytes) -> bytes:
            if payload == b"2":
                raise ValueError("not JSON")
            return b"late:" + payload

        rig.delivery._historical_of = historical
        rig.offer(1, 2, 3)
        await rig.visit()
        rig.delivery.connected()
        await rig.visit(seconds=0)
        rig.send_all()
        await rig.visit()
        assert rig.got == [b"late:1", b"late:3"]
        assert rig.delivery.lost() == {"spool_damaged": 1}
        assert rig.delivery.spooled[0] == 0
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


@pytest.mark.parametrize("connected", [True, False])
def test_what_the_spool_lets_go_of_is_counted_once(tmp_path: Path, connected: bool) -> None:
    """Results that are still in memory are not lost when their copy is."""

    async def body() -> None:
        rig = Rig(tmp_path, max_bytes=20 * 46)
        if connected:
            rig.delivery.connected()
        rig.offer(*range(100, 150))
        await rig.visit()
        assert rig.books_balance
        assert rig.delivery.lost().total() == (0 if connected else 30)
        rig.delivery.connected()
        for _ in range(3):
            await rig.visit()
            rig.send_all()
        assert len(rig.got) == (50 if connected else 20)
        await rig.visit()
        assert rig.books_balance
        assert rig.delivery.backlog + rig.delivery.kept == 0
        await rig.delivery.close()

    run(body)


def test_large_kept_results_do_not_displace_live_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read ahead goes back to the spool first."""
    monkeypatch.setattr(module, "MOST_BYTES", 2000)

    async def body() -> None:
        rig = Rig(tmp_path)
        for _ in range(10):
            rig.delivery.offer("t/a", b"x" * 150)
        await rig.visit()
        rig.delivery.connected()
        await rig.visit(seconds=0)
        for n in range(6):
            rig.delivery.offer("t/a", str(n).encode() * 150)
        assert rig.delivery.lost() == {}
        for _ in range(3):
            rig.send_all()
            await rig.visit()
        assert len(rig.got) == 16
        assert rig.delivery._bytes == 0
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_a_copy_that_failed_is_made_later(tmp_path: Path) -> None:
    """Of results that wait for a slow broker while the disk fails; in their order."""

    async def body() -> None:
        other = Spool(tmp_path / "spool.sqlite", max_bytes=1 << 20, max_age=1e6)
        other.check()
        rig = Rig(tmp_path)
        rig.delivery.connected()
        rig.offer(*range(10))
        await rig.visit()
        assert rig.delivery.problem
        other.close()
        await rig.visit(seconds=module.AGAIN_SECONDS)
        assert rig.delivery.spooled[0] == 10
        rig.delivery.disconnected()
        rig.delivery.connected()
        await rig.visit()
        rig.send_all()
        assert rig.got == [f"late:{n}".encode() for n in range(10)]
        await rig.delivery.close()

    run(body)


def test_confirmed_while_its_copy_is_made(tmp_path: Path) -> None:
    """The copy is removed again; the result does not come a second time."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery.connected()
        rig.offer(1, 2)
        first = rig.take()
        assert first
        await rig.meanwhile("append", lambda: rig.delivery.confirmed(first))
        await rig.visit()
        assert rig.delivery.spooled[0] == 1
        rig.delivery.disconnected()
        rig.delivery.connected()
        await rig.visit()
        rig.send_all()
        assert rig.got == [b"late:2"]
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_confirmed_while_others_are_removed(tmp_path: Path) -> None:
    """It is removed at the next visit, and does not come a second time."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery.connected()
        rig.offer(1, 2)
        first, second = rig.take(), rig.take()
        assert first
        assert second
        await rig.visit()
        assert rig.delivery.spooled[0] == 2
        rig.delivery.confirmed(first)
        await rig.meanwhile("remove", lambda: rig.delivery.confirmed(second))
        assert rig.delivery.spooled[0] == 1
        await rig.visit()
        assert rig.delivery.spooled[0] == 0
        assert rig.delivery.books.confirmed == 2
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_confirmed_while_the_spool_lets_go_of_its_copy(tmp_path: Path) -> None:
    """What has arrived is not lost, whatever becomes of the copy."""

    async def body() -> None:
        rig = Rig(tmp_path, max_bytes=2 * 46)
        rig.delivery.connected()
        rig.offer(100, 101)
        ones = [rig.take(), rig.take()]
        await rig.visit()
        rig.offer(102, 103)
        await rig.meanwhile(
            "append", *(lambda one=one: rig.delivery.confirmed(one) for one in ones)
        )
        assert rig.delivery.lost() == {}
        assert rig.delivery.books.confirmed == 2
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_what_is_left_to_the_spool_during_a_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that was under way does not step over it."""
    monkeypatch.setattr(module, "READ_AHEAD", 4)
    monkeypatch.setattr(module, "MOST_BYTES", 2000)

    async def body() -> None:
        rig = Rig(tmp_path)
        for n in range(6):
            rig.delivery.offer("t/a", str(n).encode() * 100)
        await rig.visit()
        rig.delivery.connected()
        await rig.visit(seconds=0)
        for _ in range(2):
            one = rig.take()
            assert one
            rig.got.append(one.payload)
            rig.delivery.confirmed(one)
        await rig.meanwhile("read", lambda: rig.delivery.offer("t/a", b"L" * 1900))
        for _ in range(4):
            rig.send_all()
            await rig.visit(seconds=0)
        assert [payload[-1:] for payload in rig.got] == [b"0", b"1", b"L", b"2", b"3", b"4", b"5"]
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_an_outage_during_a_read_begins_anew(tmp_path: Path) -> None:
    """What was read for a connection that is gone is not waiting twice."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.offer(1, 2, 3)
        await rig.visit()
        rig.delivery.connected()
        await rig.meanwhile("read", rig.delivery.disconnected)
        assert rig.delivery.kept == 3
        rig.delivery.connected()
        await rig.visit()
        rig.send_all()
        await rig.visit()
        assert rig.got == [b"late:1", b"late:2", b"late:3"]
        assert rig.delivery.kept == 0
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_no_more_is_read_ahead_than_can_be_sent_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the spool is visited while the broker takes its time, the rest stays on the disk."""
    monkeypatch.setattr(module, "READ_AHEAD", 10)

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.offer(*range(10, 60))
        await rig.visit()
        rig.delivery.connected()
        for _ in range(5):
            await rig.visit()
        assert rig.delivery._bytes == 10 * 2
        for _ in range(10):
            rig.send_all()
            await rig.visit()
        assert rig.got == [f"late:{n}".encode() for n in range(10, 60)]
        await rig.delivery.close()

    run(body)


def test_large_live_results_do_not_change_the_order_of_late_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were read last go back to the spool, and come when it is their turn."""
    monkeypatch.setattr(module, "MOST_BYTES", 2000)

    async def body() -> None:
        rig = Rig(tmp_path)
        for n in range(10):
            rig.delivery.offer("t/a", str(n).encode() * 150)
        await rig.visit()
        rig.delivery.connected()
        await rig.visit(seconds=0)
        for _ in range(6):
            rig.delivery.offer("t/a", b"L" * 150)
        for _ in range(3):
            rig.send_all()
            await rig.visit()
        late = [payload[-1:] for payload in rig.got if payload.startswith(b"late:")]
        assert late == [str(n).encode() for n in range(10)]
        assert len(rig.got) == 16
        await rig.delivery.close()

    run(body)


def test_late_results_that_were_cut_off_come_first_again(tmp_path: Path) -> None:
    """Without a spool, too, the order is kept through several cuts."""

    async def body() -> None:
        rig = Rig(None)
        rig.offer(1, 2, 3, 4)
        rig.delivery.connected()
        assert [one.payload for one in (rig.take(), rig.take(), rig.take()) if one] == [
            b"late:1",
            b"late:2",
            b"late:3",
        ]
        rig.delivery.disconnected()
        rig.offer(5)
        rig.delivery.connected()
        rig.send_all()
        assert rig.got == [f"late:{n}".encode() for n in range(1, 6)]
        assert rig.delivery._bytes == 0
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_a_long_silence_saves_no_burst_up(tmp_path: Path) -> None:
    """However long nothing was to be sent late, the next round sends no more than two rounds' worth."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery._rate = 100.0
        rig.offer(*range(50))
        await rig.visit()
        rig.delivery.connected()
        await rig.visit(seconds=3600.0)
        sent = 0
        while one := rig.delivery.take():
            rig.delivery.confirmed(one)
            sent += 1
        assert sent == 100.0 * module.ROUND_SECONDS * 2
        await rig.delivery.close()

    run(body)


def test_damage_costs_nothing_that_is_in_memory(tmp_path: Path) -> None:
    """Copies of results that are under way are gone with the file; the results arrive."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery.connected()
        rig.offer(1, 2, 3)
        await rig.visit()
        assert rig.spool
        assert rig.spool.length == 3
        rig.spool.close()
        path = tmp_path / "spool.sqlite"
        path.write_bytes(b"\0" * path.stat().st_size)
        rig.offer(4)
        await rig.visit()
        assert "is damaged" in rig.problems[0]
        assert rig.delivery.lost() == {}
        rig.send_all()
        assert rig.got == [b"1", b"2", b"3", b"4"]
        assert rig.books_balance
        await rig.visit(seconds=module.AGAIN_SECONDS)
        assert rig.delivery.problem == ""
        await rig.delivery.close()

    run(body)


def test_damage_costs_what_is_nowhere_else(tmp_path: Path) -> None:
    """What only the file had is lost, and counted."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.offer(1, 2, 3)
        await rig.visit()
        assert rig.spool
        rig.spool.close()
        path = tmp_path / "spool.sqlite"
        path.write_bytes(b"\0" * path.stat().st_size)
        rig.offer(4)
        await rig.visit()
        assert rig.delivery.lost() == {"spool_damaged": 3}
        assert rig.books_balance
        await rig.visit(seconds=module.AGAIN_SECONDS)
        rig.delivery.connected()
        await rig.visit()
        rig.send_all()
        assert rig.got == [b"late:4"]
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_confirmed_while_the_spool_is_read(tmp_path: Path) -> None:
    """What was read and has arrived meanwhile is not sent a second time."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.offer(1)
        await rig.visit()
        rig.delivery.connected()
        rig.offer(2)
        live = rig.take()
        assert live
        await rig.meanwhile("read", lambda: rig.delivery.confirmed(live))
        rig.send_all()
        assert rig.got == [b"late:1"]
        await rig.visit()
        assert rig.delivery.spooled[0] == 0
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_of_replies_that_nobody_takes_the_latest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded in number and in bytes."""
    monkeypatch.setattr(module, "URGENT_BYTES", 10)

    async def body() -> None:
        rig = Rig(None)
        rig.delivery.connected()
        for payload in (b"aaaa", b"bbbb", b"cccc"):
            rig.delivery.send(Publication("t/r", payload, 1, "reply"))
        assert rig.delivery.backlog == 2
        rig.send_all()
        assert rig.got == [b"bbbb", b"cccc"]
        for _ in range(module.URGENT + 2):
            rig.delivery.send(Publication("t/r", b"", 1, "passing"))
        assert rig.delivery.backlog == module.URGENT
        await rig.delivery.close()

    run(body)


def test_the_end_keeps_what_it_can(tmp_path: Path) -> None:
    """A spool that has just failed is tried once more; without one, what was not sent is lost."""

    async def body() -> None:
        other = Spool(tmp_path / "spool.sqlite", max_bytes=1 << 20, max_age=1e6)
        other.check()
        rig = Rig(tmp_path)
        rig.offer(1)
        await rig.visit()
        assert rig.delivery.problem
        other.close()
        await rig.delivery.close()
        assert rig.delivery.lost() == {}
        after = Rig(tmp_path)
        await after.visit()
        assert after.delivery.kept == 1
        await after.delivery.close()
        memory = Rig(None)
        memory.offer(1, 2)
        await memory.delivery.close()
        assert memory.delivery.lost() == {"not_sent": 2}
        assert memory.books_balance

    run(body)


def test_the_oldest_live_results_go_when_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with a copy are left to the spool, and come late; those without are lost, and counted."""
    monkeypatch.setattr(module, "MOST_BYTES", 1000)

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery.connected()
        for n in range(4):
            rig.delivery.offer("t/a", str(n).encode() * 200)
        await rig.visit()
        for n in range(4, 7):
            rig.delivery.offer("t/a", str(n).encode() * 200)
        assert rig.delivery.lost() == {}
        assert rig.delivery.kept == 2
        for _ in range(2):
            rig.send_all()
            await rig.visit()
        order = [payload[-1:] for payload in rig.got]
        assert order == [b"2", b"3", b"4", b"5", b"6", b"0", b"1"]
        for n in range(6):
            rig.delivery.offer("t/a", str(n).encode() * 200)
        assert rig.delivery.lost() == {"outbox_full": 1}
        rig.send_all()
        assert [payload[-1:] for payload in rig.got[7:]] == [b"1", b"2", b"3", b"4", b"5"]
        assert rig.books_balance
        await rig.visit()
        await rig.delivery.close()

    run(body)


def test_what_an_earlier_run_left_may_grow_too_old(tmp_path: Path) -> None:
    """That is no loss of this run's: it is counted apart."""

    async def body() -> None:
        before = Rig(tmp_path)
        before.offer(100, 101)
        await before.delivery.close()
        rig = Rig(tmp_path, max_bytes=2 * 46)
        rig.offer(102)
        await rig.visit()
        await rig.visit()
        assert rig.delivery.spooled[0] == 2
        assert (rig.delivery.books.lost_earlier, rig.delivery.lost()) == (1, {})
        await rig.delivery.close()

    run(body)


@pytest.mark.parametrize(("qos", "keeps"), [(0, False), (1, True)])
def test_only_confirmed_results_are_kept(qos: int, keeps: bool) -> None:
    """Of what is not confirmed nobody could say whether it has to be sent again; `under_way` counts it."""

    async def body() -> None:
        rig = Rig(None, qos=qos)
        assert rig.delivery.keeps == keeps
        rig.delivery.connected()
        rig.offer(1)
        rig.delivery.send(Publication("t/s", b"", 1, "retained"))
        one = rig.take()
        assert one
        assert (rig.delivery.under_way, rig.delivery.backlog) == (1, 2)
        rig.delivery.refused(one)
        assert (rig.delivery.under_way, rig.delivery.backlog) == (0, 1)
        assert rig.delivery.lost() == {}
        await rig.delivery.close()

    run(body)


def test_the_spool_is_visited_while_it_runs(tmp_path: Path) -> None:
    """What is offered without a broker is in the file soon; with one, sending is asked for again."""

    async def body() -> None:
        rig = Rig(tmp_path)
        assert rig.spool
        rig.offer(1)
        rig.spool.hold("append")
        task = asyncio.create_task(rig.delivery.run())
        assert await asyncio.to_thread(rig.spool.done.wait, LIMIT_SECONDS)
        rig.spool.go_on.set()
        rig.delivery.connected()
        for _ in range(3):  # it was read; and then, as long as it waits, again and again
            rig.delivery.wanted.clear()
            await rig.delivery.wanted.wait()
        rig.send_all()
        assert rig.got == [b"late:1"]
        task.cancel()
        await asyncio.wait([task])
        await rig.delivery.close()

    run(body)


def test_large_results_are_given_to_the_spool_in_parts(tmp_path: Path) -> None:
    """All of them, in their order, however many parts it takes."""

    async def body() -> None:
        rig = Rig(tmp_path, max_bytes=1 << 26)
        for n in range(5):
            rig.delivery.offer("t/a", str(n).encode() * (module.LARGE_BYTES * 2 // 3))
        await rig.visit()
        assert rig.delivery.spooled[0] == 5
        rig.delivery.connected()
        for _ in range(3):
            await rig.visit()
            rig.send_all()
        assert [payload[-1:] for payload in rig.got] == [b"0", b"1", b"2", b"3", b"4"]
        await rig.delivery.close()

    run(body)


def test_results_under_way_are_not_given_up_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker may have them already; only what waits can go."""

    async def body() -> None:
        rig = Rig(None)
        rig.delivery.connected()
        rig.offer(10, 11, 12, 13)
        ones = [rig.take() for _ in range(4)]
        monkeypatch.setattr(module, "MOST_BYTES", 5)
        rig.offer(14)
        assert rig.delivery.lost() == {"outbox_full": 1}
        for one in ones:
            assert one
            rig.delivery.confirmed(one)
        assert rig.delivery.books.confirmed == 4
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


class World:
    """Whatever may happen, a step at a time."""

    def __init__(self, folder: Path, background: bool) -> None:
        self._folder = folder
        self._background = background
        self._under_way: list[Publication] = []
        self._visits: list[asyncio.Task[None]] = []
        self.rig = Rig(folder)
        self.offered = 0
        self.arrived: list[bytes] = []

    async def offer(self) -> None:
        self.rig.offer(self.offered)
        self.offered += 1

    async def take(self) -> None:
        if one := self.rig.take():
            self._under_way.append(one)
            self.arrived.append(one.payload)

    async def confirm(self) -> None:
        if self._under_way:
            self.rig.delivery.confirmed(self._under_way.pop(0))

    async def cut(self) -> None:
        self.rig.delivery.disconnected()
        self._under_way.clear()

    async def connect(self) -> None:
        if not self.rig.delivery._connected:
            self.rig.delivery.connected()

    async def visit(self) -> None:
        """Of the spool; perhaps it takes until after the next steps."""
        if not self._background:
            await self.rig.visit()
        elif all(v.done() for v in self._visits):
            self.rig.now += KEEP_AFTER_SECONDS
            self._visits.append(asyncio.create_task(self.rig.delivery.visit_spool()))
            await asyncio.sleep(0)

    async def die(self) -> None:
        """And begin a new run."""
        await asyncio.gather(*self._visits)
        await self.rig.delivery.close()
        self.rig, self._under_way = Rig(self._folder), []

    async def end_well(self) -> None:
        await asyncio.gather(*self._visits)
        await self.cut()
        await self.connect()
        for _ in range(4):
            await self.rig.visit()
            self.rig.send_all()
        self.arrived += self.rig.got
        await self.rig.delivery.close()


STEPS = st.sampled_from(
    ["offer"] * 3 + ["take", "confirm", "confirm", "cut", "connect", "visit", "die"]
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, max_size=60), background=st.booleans())
def test_nothing_is_lost_and_order_is_kept_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], background: bool
) -> None:
    """Through cuts, slow confirmations and new runs each result arrives, and late ones in order."""

    async def body() -> None:
        world = World(tmp_path_factory.mktemp("spool"), background)
        for step in steps:
            await getattr(world, step)()
        await world.end_well()
        late = [int(p.removeprefix(b"late:")) for p in world.rig.got if p.startswith(b"late")]
        assert late == sorted(late)
        arrived = {int(p.removeprefix(b"late:")) for p in world.arrived}
        assert arrived == set(range(world.offered))

    run(body)
