from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamexit.sinks import copies as module
from streamexit.sinks import delivery
from streamexit.sinks.copies import KEEP_AFTER_SECONDS
from streamexit.sinks.publication import DeliveryBooks, Publication
from streamexit.sinks.spool import Spool
from tests.sinks.rig import LIMIT_SECONDS, Rig, eventually, run


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


def test_a_spool_that_nobody_needs_is_looked_at_as_often(tmp_path: Path) -> None:
    """What is wrong with it is said once, and stands in the status until it is mended."""

    async def body() -> None:
        other = Spool(tmp_path / "spool.sqlite", max_bytes=1 << 20, max_age=1e6)
        other.append([])
        rig = Rig(tmp_path)
        rig.delivery.connected()
        for _ in range(20):
            await rig.visit(seconds=module.AGAIN_SECONDS / 2)
            assert "another process uses it" in rig.delivery.problem
        assert len(rig.problems) == 1
        other.close()
        await rig.visit(seconds=module.AGAIN_SECONDS)
        assert rig.delivery.problem == ""
        await rig.delivery.close()

    run(body)


def test_a_disk_that_hangs_is_said_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was to be kept goes out as soon as there is a broker; and only once."""
    monkeypatch.setattr(module, "SLOW_DISK_SECONDS", 0.0)

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.offer(1)
        assert rig.spool
        rig.spool.hold("append")
        visit = asyncio.create_task(rig.visit())
        assert await asyncio.to_thread(rig.spool.done.wait, LIMIT_SECONDS)
        await eventually(lambda: bool(rig.delivery.problem))
        assert "the disk does not answer" in rig.delivery.problem
        rig.delivery.connected()
        rig.send_all()
        assert rig.got == [b"late:1"]
        rig.spool.go_on.set()
        await visit
        assert rig.delivery.problem == ""
        await rig.visit()
        rig.send_all()
        assert rig.got == [b"late:1"]
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
    monkeypatch.setattr(delivery, "MOST_BYTES", 2000)

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
        assert rig.delivery.bytes_in_memory == 10 * 2
        for _ in range(10):
            rig.send_all()
            await rig.visit()
        assert rig.got == [f"late:{n}".encode() for n in range(10, 60)]
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
        rig.spool.damage()
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
        rig.spool.damage()
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


def test_large_live_results_do_not_change_the_order_of_late_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were read last go back to the spool, and come when it is their turn."""
    monkeypatch.setattr(delivery, "MOST_BYTES", 2000)

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


@pytest.mark.parametrize("how", ["no room", "damaged"])
def test_a_result_whose_copy_is_gone_is_kept_or_counted(tmp_path: Path, how: str) -> None:
    """It was in memory when the spool let go of its copy; then the broker went, too."""

    async def body() -> None:
        rig = Rig(tmp_path, max_bytes=2 * 46 if how == "no room" else 1 << 24)
        rig.delivery.connected()
        rig.offer(100, 101, 102, 103)
        await rig.visit()
        assert rig.spool
        if how == "damaged":
            rig.spool.damage()
            await rig.visit(seconds=module.CHECK_SECONDS)
            assert rig.spool.set_aside
        rig.delivery.disconnected()
        await rig.visit(seconds=module.AGAIN_SECONDS)
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


@pytest.mark.parametrize("spooled", [True, False])
def test_what_has_arrived_leaves_nothing_in_memory(tmp_path: Path, spooled: bool) -> None:
    """Also when there is no spool, or its disk hangs and is never done."""

    async def body() -> None:
        rig = Rig(tmp_path if spooled else None)
        rig.delivery.connected()
        for n in range(100):
            rig.offer(n)
            rig.send_all()
        assert len(rig.delivery._copies._unchecked) <= 1
        await rig.delivery.close()

    run(body)


@pytest.mark.parametrize("how", ["refused", "damaged", "unreadable"])
def test_losses_of_an_earlier_run_are_counted_apart(tmp_path: Path, how: str) -> None:
    """Whatever the reason."""

    async def body() -> None:
        before = Rig(tmp_path)
        before.offer(1, 2, 3)
        await before.delivery.close()
        rig = Rig(tmp_path)
        assert rig.spool
        rig.offer(4)
        await rig.visit()
        if how == "damaged":
            rig.spool.damage()
            await rig.visit(seconds=module.CHECK_SECONDS)
        if how == "unreadable":

            def historical(payload: bytes) -> bytes:
                raise ValueError("not JSON")

            rig.delivery._historical_of = historical
        rig.delivery.connected()
        await rig.visit()
        while one := rig.take():
            rig.delivery.refused(one)
        assert rig.delivery.books.lost_earlier == 3
        assert rig.delivery.lost().total() == 1
        await rig.delivery.close()

    run(body)


def test_damage_is_counted_at_the_end_at_the_latest(tmp_path: Path) -> None:
    """The next run could not say how many there were."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.offer(1, 2)
        await rig.visit()
        assert rig.spool
        rig.spool.damage()
        await rig.delivery.close()
        assert rig.delivery.lost() == {"spool_damaged": 2}

    run(body)


def test_an_earlier_result_stays_one_over_damage_and_a_cut(tmp_path: Path) -> None:
    """It was in memory when the file was damaged, and then had to be kept anew."""

    async def body() -> None:
        before = Rig(tmp_path)
        before.offer(1, 2)
        await before.delivery.close()
        rig = Rig(tmp_path)
        assert rig.spool
        rig.delivery.connected()
        await rig.visit()
        rig.spool.damage()
        await rig.visit(seconds=module.CHECK_SECONDS)
        rig.delivery.disconnected()
        rig.offer(3)
        await rig.visit(seconds=module.AGAIN_SECONDS)
        assert rig.spool.length == 3
        rig.delivery.connected()
        await rig.visit()
        rig.send_all()
        assert (rig.delivery.books.confirmed, rig.delivery.books.recovered) == (1, 2)
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


def test_the_end_waits_for_a_copy_that_is_being_made(tmp_path: Path) -> None:
    """Else it would be made a second time, and the next run would send the result twice."""

    async def body() -> None:
        rig = Rig(tmp_path)
        assert rig.spool
        rig.delivery.connected()
        rig.offer(1, 2)
        arrived = rig.take()
        assert arrived
        rig.now += KEEP_AFTER_SECONDS
        rig.spool.hold("append")
        keeper = asyncio.create_task(rig.delivery.run())
        assert await asyncio.to_thread(rig.spool.done.wait, LIMIT_SECONDS)
        rig.delivery.confirmed(arrived)
        end = asyncio.create_task(rig.delivery.close())
        await asyncio.sleep(0)
        rig.spool.go_on.set()
        await asyncio.gather(end, keeper)
        after = Rig(tmp_path)
        after.delivery.connected()
        for _ in range(2):
            await after.visit()
            after.send_all()
        assert after.got == [b"late:2"]
        assert after.delivery.books.recovered == 1
        await after.delivery.close()

    run(body)


@pytest.mark.parametrize("cut", [True, False])
def test_damage_is_counted_before_a_new_file_is_begun(tmp_path: Path, cut: bool) -> None:
    """What is kept from then on is in the new one."""

    async def body() -> None:
        rig = Rig(tmp_path)
        assert rig.spool
        rig.offer(1, 2, 3)
        await rig.visit()
        rig.delivery.connected()
        await rig.visit()
        rig.spool.damage()
        if cut:
            rig.delivery.disconnected()
        rig.offer(4)
        await rig.visit(seconds=module.CHECK_SECONDS)
        assert rig.delivery.lost().total() == (3 if cut else 0)
        assert rig.books_balance
        await rig.visit(seconds=module.AGAIN_SECONDS)
        if cut:
            rig.delivery.connected()
        for _ in range(2):
            rig.send_all()
            await rig.visit()
        assert len(rig.got) == len(set(rig.got)) == (1 if cut else 4)
        assert rig.books_balance
        await rig.delivery.close()

    run(body)


class World:
    """Whatever may happen, a step at a time."""

    def __init__(self, folder: Path | None, *, max_bytes: int, background: bool) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._background = background
        self._under_way: list[Publication] = []
        self._visits: list[asyncio.Task[None]] = []
        self._books: list[DeliveryBooks] = []
        self.offered = 0
        self.arrived: list[int] = []
        self.disordered = False
        self._begin()

    def _begin(self) -> None:
        self.rig = Rig(self._folder, max_bytes=self._max_bytes)
        self._books.append(self.rig.delivery.books)
        self._under_way = []

    async def offer(self) -> None:
        self.rig.offer(1000 + self.offered)
        self.offered += 1

    async def take(self) -> None:
        if one := self.rig.take():
            self._under_way.append(one)

    async def confirm(self) -> None:
        if self._under_way:
            self._arrive(self._under_way.pop(0))

    def _arrive(self, one: Publication) -> None:
        self.rig.delivery.confirmed(one)
        self.arrived.append(int(one.payload.removeprefix(b"late:")))

    async def refuse(self) -> None:
        if self._under_way:
            self.rig.delivery.refused(self._under_way.pop(0))

    async def cut(self) -> None:
        self.rig.delivery.disconnected()
        self._under_way = []

    async def connect(self) -> None:
        if not self.rig.delivery._connected:
            self.rig.delivery.connected()

    async def visit(self) -> None:
        """Of the spool; perhaps it takes until after the next steps."""
        if not self._background:
            await self.rig.visit(seconds=module.AGAIN_SECONDS)
            assert self._books[1:] or self.rig.books_balance
        elif all(visit.done() for visit in self._visits):
            self.rig.now += KEEP_AFTER_SECONDS
            self._visits.append(asyncio.create_task(self.rig.delivery.visit_spool()))
            await asyncio.sleep(0)

    async def fail(self, *works: str) -> None:
        """Of the disk."""
        if self.rig.spool:
            self.rig.spool.failing = works
            self.disordered = True

    async def fail_to_append(self) -> None:
        await self.fail("append")

    async def fail_at_all(self) -> None:
        await self.fail("append", "remove", "read")

    async def heal(self) -> None:
        if self.rig.spool:
            self.rig.spool.failing = ()

    async def damage(self) -> None:
        """To a file that is used; what nobody has read could not be counted."""
        await asyncio.gather(*self._visits)
        if self.rig.spool and self.rig.delivery.spooled[0]:
            self.rig.spool.damage()
            self.disordered = True

    async def die(self) -> None:
        """And begin a new run."""
        await asyncio.gather(*self._visits)
        await self.heal()
        await self.rig.delivery.close()
        self._begin()

    async def end_well(self) -> list[bytes]:
        """What came at last, late ones in their order."""
        await asyncio.gather(*self._visits)
        await self.heal()
        await self.cut()
        await self.connect()
        got = []
        for _ in range(self.offered + 4):
            await self.rig.visit(seconds=module.AGAIN_SECONDS)
            while one := self.rig.take():
                got.append(one.payload)
                self._arrive(one)
        await self.rig.visit()
        assert (self.rig.delivery.kept, self.rig.delivery.backlog) == (0, 0)
        assert self.rig.delivery.bytes_in_memory == 0
        await self.rig.delivery.close()
        return got

    @property
    def lost(self) -> int:
        """By all runs."""
        return sum(books.lost.total() + books.lost_earlier for books in self._books)

    @property
    def confirmed(self) -> int:
        """By all runs."""
        return sum(books.confirmed + books.recovered for books in self._books)


STEPS = st.sampled_from(
    ["offer"] * 6
    + ["take"] * 3
    + ["confirm"] * 3
    + ["visit"] * 3
    + ["refuse", "cut", "connect", "connect", "fail_to_append", "fail_at_all", "heal", "damage"]
    + ["die"]
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(STEPS, max_size=80),
    background=st.booleans(),
    spool=st.sampled_from(["large", "small", "none"]),
    scarce=st.booleans(),
)
def test_each_result_arrives_once_or_is_counted_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[str],
    background: bool,
    spool: str,
    scarce: bool,
) -> None:
    """Through cuts, slow confirmations, bad disks and new runs; and late ones are in order."""

    async def body() -> None:
        folder = tmp_path_factory.mktemp("spool") if spool != "none" else None
        world = World(
            folder, max_bytes=8 * 47 if spool == "small" else 1 << 24, background=background
        )
        for step in steps:
            await getattr(world, step)()
        got = await world.end_well()
        assert world.confirmed == len(world.arrived) == len(set(world.arrived))
        assert world.confirmed + world.lost == world.offered
        late = [payload for payload in got if payload.startswith(b"late")]
        assert late == sorted(late) or world.disordered

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "READ_AHEAD", 4)
        if scarce:
            patch.setattr(delivery, "MOST_BYTES", 40)
            patch.setattr(delivery, "LIVE_RESULTS", 6)
        run(body)
