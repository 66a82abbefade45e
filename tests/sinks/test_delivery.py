from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from streamexit.sinks import delivery as module
from streamexit.sinks.delivery import LIVE_RESULTS
from streamexit.sinks.publication import Publication
from streamexit.sinks.spool import Spool
from tests.sinks.rig import LIMIT_SECONDS, Rig, run


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
    """Of a retained topic only the latest is sent, and passing messages only while there is a connection."""

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
        rig.delivery.send(Publication("t/p", b"lost", 0, "passing"))
        rig.delivery.disconnected()
        rig.delivery.send(Publication("t/p", b"lost", 0, "passing"))
        await rig.visit()
        rig.delivery.connected()
        assert rig.take() is None
        assert rig.delivery.kept == 0
        await rig.delivery.close()

    run(body)


def test_a_reply_waits_for_the_next_connection_for_a_while() -> None:
    """A command may change the login, and others take longer than a connection lasts."""

    async def body() -> None:
        rig = Rig(None)
        rig.delivery.connected()
        rig.delivery.send(Publication("t/r", b"under way", 1, "reply"))
        assert rig.take()  # it may have arrived; or the broker breaks the connection for it
        rig.delivery.send(Publication("t/r", b"before", 1, "reply"))
        rig.delivery.disconnected()
        rig.now += module.REPLY_SECONDS - 1
        rig.delivery.send(Publication("t/r", b"meanwhile", 1, "reply"))
        rig.now += 2
        rig.delivery.connected()
        rig.send_all()
        assert rig.got == [b"meanwhile"]
        rig.delivery.send(Publication("t/r", b"soon", 1, "reply"))
        rig.delivery.disconnected()
        rig.delivery.connected()
        rig.send_all()
        assert rig.got == [b"meanwhile", b"soon"]
        await rig.delivery.close()

    run(body)


@pytest.mark.parametrize("spooled", [True, False])
def test_at_the_end_what_is_kept_anyhow_stays(tmp_path: Path, spooled: bool) -> None:
    """What is in the spool need not hold up the end; what is in memory only has to go now."""

    async def body() -> None:
        rig = Rig(tmp_path if spooled else None)
        rig.offer(1, 2)
        await rig.visit()
        rig.delivery.connected()
        await rig.visit(seconds=0)
        rig.delivery.leave_late()
        assert rig.delivery.quiet == spooled
        rig.offer(3)
        assert not rig.delivery.quiet
        rig.send_all()
        assert rig.got == ([b"3"] if spooled else [b"3", b"late:1", b"late:2"])
        assert rig.delivery.quiet
        assert rig.delivery.kept == (2 if spooled else 0)
        await rig.delivery.close()

    run(body)


def test_at_the_end_what_a_bad_disk_does_not_take_goes_alone(tmp_path: Path) -> None:
    """What the disk has already stays there."""

    async def body() -> None:
        rig = Rig(tmp_path)
        assert rig.spool
        rig.offer(1)
        await rig.visit()
        rig.spool.failing = ("append",)
        rig.offer(2)
        rig.delivery.connected()
        await rig.visit()
        assert rig.delivery.problem
        rig.delivery.leave_late()
        rig.send_all()
        assert rig.got == [b"late:2"]
        await rig.delivery.close()
        assert rig.delivery.spooled[0] == 1

    run(body)


def test_what_the_broker_has_not_confirmed_is_known(tmp_path: Path) -> None:
    """Results only: live ones that wait, and all that are under way."""

    async def body() -> None:
        rig = Rig(tmp_path)
        rig.delivery.connected()
        rig.delivery.send(Publication("t/s", b"", 1, "retained"))
        assert rig.delivery.unconfirmed == 0
        rig.offer(1, 2)
        assert rig.take()
        assert rig.take()
        assert (rig.delivery.unconfirmed, rig.delivery.backlog) == (2, 3)
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
        assert rig.delivery.bytes_in_memory == 0
        assert rig.books_balance
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
        assert rig.delivery.bytes_in_memory == 0
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
        rig.send_all()
        rig.got.clear()
        for payload in (b"small", b"larger than all that may wait"):
            rig.delivery.send(Publication("t/r", payload, 1, "reply"))
        rig.send_all()
        assert rig.got == [b"larger than all that may wait"]
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
        await rig.delivery.close()
        await task

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


def test_how_long_nothing_is_confirmed_counts_for_the_oldest() -> None:
    """From when it became the oldest: those before it took their time on a slow network."""

    async def body() -> None:
        rig = Rig(None)
        rig.delivery.connected()
        assert rig.delivery.stuck_for == 0
        rig.offer(1, 2, 3)
        first, second, third = (rig.take() for _ in range(3))
        assert first
        assert second
        assert third
        rig.now += 10
        assert rig.delivery.stuck_for >= 10
        rig.delivery.confirmed(second)
        assert rig.delivery.stuck_for >= 10
        rig.delivery.confirmed(first)
        assert rig.delivery.stuck_for == 0
        rig.now += 5
        rig.delivery.confirmed(third)
        assert rig.delivery.stuck_for == 0
        await rig.delivery.close()

    run(body)
