from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamexit.errors import SpoolError
from streamexit.sinks.spool import ROW_BYTES, Spool

DAY = 86_400.0


class Clock:
    """Unix time, moved by hand."""

    now = 1_000_000.0
    wrong = 0.0

    def __call__(self) -> float:
        return self.now + self.wrong

    def steady(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """One for a test."""
    return Clock()


MakeSpool = Callable[..., Spool]


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[MakeSpool]:
    """Spools in one file, closed at the end."""
    made: list[Spool] = []

    def make_one(*, max_bytes: int = 1 << 20, path: Path = tmp_path / "spool.sqlite") -> Spool:
        made.append(
            Spool(path, max_bytes=max_bytes, max_age=DAY, wall_clock=clock, clock=clock.steady)
        )
        return made[-1]

    yield make_one
    for spool in made:
        spool.close()


def results(*numbers: int) -> list[tuple[str, bytes]]:
    """Some results."""
    return [("t/a", str(n).encode()) for n in numbers]


def payloads(spool: Spool, *, after: int = 0) -> list[int]:
    """What it holds."""
    return [int(kept.payload) for kept in spool.read(after=after, limit=10_000)]


def test_what_is_kept_is_read_in_order_until_it_is_removed(make: MakeSpool) -> None:
    """First in, first out; ids rise over removals and openings."""
    spool = make()
    first = spool.append(results(1, 2, 3))
    assert first == sorted(first)
    assert payloads(spool) == [1, 2, 3]
    assert payloads(spool, after=first[0]) == [2, 3]
    spool.remove([first[1]])
    spool.remove([first[1]])  # twice does not matter
    assert (payloads(spool), spool.length) == ([1, 3], 2)
    spool.remove(first)
    assert (spool.length, spool.bytes) == (0, 0)
    spool.close()
    assert spool.append(results(4))[0] > 0
    assert payloads(spool) == [4]


def test_what_was_removed_stays_removed(make: MakeSpool) -> None:
    """Also when the file is let go of at once: else the next run would send it a second time."""
    spool = make()
    ids = spool.append(results(1, 2, 3))
    spool.remove([ids[1]])
    spool.close()
    assert payloads(make()) == [1, 3]


def test_ids_are_not_used_again(make: MakeSpool) -> None:
    """Else somebody who has read up to one would miss what comes."""
    spool = make()
    first = spool.append(results(1, 2))
    spool.remove(first)
    assert spool.append(results(3))[0] > first[-1]


def test_next_run_finds_what_was_left(make: MakeSpool) -> None:
    """And knows what is from before."""
    before = make()
    before.append(results(1, 2))
    before.close()
    after = make()
    after.check()
    assert (after.length, after.bytes) == (2, before.bytes)
    after.append(results(3))
    assert [kept.earlier for kept in after.read(after=0, limit=9)] == [True, True, False]
    assert payloads(after) == [1, 2, 3]


def test_what_this_run_kept_is_not_from_before(make: MakeSpool) -> None:
    """However often the file is let go of and opened again."""
    before = make()
    ids = before.append(results(1, 2))
    before.remove(ids[:1])
    before.close()
    spool = make()
    spool.append(results(3))
    spool.close()
    spool.append(results(4))
    assert [kept.earlier for kept in spool.read(after=0, limit=9)] == [True, False, False]


def test_a_killed_process_loses_nothing(make: MakeSpool, tmp_path: Path) -> None:
    """Each append is committed when it returns."""
    path = tmp_path / "spool.sqlite"
    script = (
        "import os, signal, sys; from pathlib import Path; from streamexit.sinks.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), max_bytes=1 << 20, max_age=86400.0, wall_clock=lambda: 1e6)\n"
        "for n in range(100): spool.append([('t/a', str(n).encode())])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60)
    assert done.returncode == -9
    assert payloads(make()) == list(range(100))


def test_the_oldest_go_when_there_are_too_many_bytes(make: MakeSpool) -> None:
    """Exactly as many as it takes, and they are counted."""
    size = len("t/a") + 1 + ROW_BYTES
    spool = make(max_bytes=5 * size)
    spool.append(results(1, 2, 3, 4))
    assert spool.take_gone() == []
    spool.append(results(5, 6, 7))
    assert payloads(spool) == [3, 4, 5, 6, 7]
    assert (spool.length, spool.bytes) == (5, 5 * size)
    assert [gone.reason for gone in spool.take_gone()] == ["spool_full"] * 2


def test_the_old_go(make: MakeSpool, clock: Clock) -> None:
    """After the age that was set, also when nothing else happens."""
    spool = make()
    spool.append(results(1))
    clock.now += DAY / 2
    spool.append(results(2))
    clock.now += DAY / 2 + 1
    spool.check()
    assert payloads(spool) == [2]
    assert [gone.reason for gone in spool.take_gone()] == ["spool_expired"]


def test_what_is_just_as_old_as_allowed_stays(make: MakeSpool, clock: Clock) -> None:
    """Also beside one that is older, and goes."""
    spool = make()
    spool.append(results(1))
    clock.now += 1
    spool.append(results(2))
    clock.now += DAY
    spool.check()
    assert payloads(spool) == [2]


def test_what_was_let_go_of_is_told_once_and_stays_gone(make: MakeSpool, clock: Clock) -> None:
    """Neither asking again nor opening the file again brings it back."""
    size = len("t/a") + 1 + ROW_BYTES
    spool = make(max_bytes=2 * size)
    ids = spool.append(results(1, 2, 3, 4))
    assert spool.take_gone() == [(ids[0], "spool_full", False), (ids[1], "spool_full", False)]
    assert spool.take_gone() == []
    spool.close()
    assert payloads(spool) == [3, 4]
    clock.now += DAY + 1
    spool.check()
    assert spool.take_gone() == [(ids[2], "spool_expired", False), (ids[3], "spool_expired", False)]
    assert (spool.length, spool.bytes) == (0, 0)
    spool.close()
    assert payloads(spool) == []


def test_a_clock_that_is_set_back_costs_nothing(make: MakeSpool, clock: Clock) -> None:
    """And results grow as old as before."""
    spool = make()
    spool.append(results(1))
    clock.wrong -= 10 * DAY
    spool.append(results(2))
    assert payloads(spool) == [1, 2]
    clock.now += DAY + 1
    spool.check()
    assert payloads(spool) == []


def test_a_clock_that_is_set_forward_costs_nothing(make: MakeSpool, clock: Clock) -> None:
    """Machines without a battery begin in the past, and learn the time when the network is back."""
    before = make()
    before.append(results(1))
    before.close()
    clock.now += DAY / 2
    spool = make()
    spool.append(results(2))
    clock.wrong += 2 * DAY
    spool.check()
    assert payloads(spool) == [2]  # how old the other one is the clock alone can tell
    clock.now += DAY - 1
    spool.append(results(3))
    assert payloads(spool) == [2, 3]
    clock.now += 2
    spool.check()
    assert payloads(spool) == [3]


def test_what_cannot_be_let_go_of_keeps_nothing_out(
    make: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that are in the file are kept, whatever comes after; to say otherwise would store them twice."""
    size = len("t/a") + 1 + ROW_BYTES
    spool = make(max_bytes=2 * size)

    def fails(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(spool, "_drop", fails)
        assert len(spool.append(results(1, 2, 3))) == 3
        with pytest.raises(SpoolError):
            spool.check()
    spool.check()
    assert payloads(spool) == [2, 3]


def test_an_earlier_result_stays_one(make: MakeSpool) -> None:
    """Also when it has to be kept anew."""
    before = make()
    before.append(results(1))
    before.close()
    spool = make()
    spool.remove([kept.id for kept in spool.read(after=0, limit=9)])
    spool.append(results(2, 1), earlier=[1])
    assert [kept.earlier for kept in spool.read(after=0, limit=9)] == [False, True]
    spool._put_aside()
    assert sorted(gone.earlier for gone in spool.take_gone()) == [False, True]


@pytest.mark.parametrize("damage", ["nonsense", "middle"])
def test_a_damaged_file_is_set_aside(make: MakeSpool, tmp_path: Path, damage: str) -> None:
    """It is said once, a new file is begun, and the old one can be looked at."""
    path = tmp_path / "spool.sqlite"
    spool = make()
    spool.append([("t/a", b"x" * 3000) for _ in range(50)])
    spool.close()
    content = bytearray(path.read_bytes())
    if damage == "nonsense":
        content[:] = b"this is no database" * 100
    else:
        content[4096 : len(content) - 4096] = bytes(len(content) - 8192)
    path.write_bytes(content)
    again = make()
    with pytest.raises(SpoolError, match=r"is damaged .*; it is now .*damaged") as caught:
        again.append(results(1))
    assert caught.value.reason == "damaged"
    assert again.set_aside
    assert again.set_aside.stat().st_size == len(content)
    again.append(results(2))
    assert payloads(again) == [2]


def test_damage_while_it_is_used_is_counted(make: MakeSpool, tmp_path: Path) -> None:
    """What was in the file is lost, and in the books."""
    spool = make()
    spool.append([("t/a", b"x" * 3000) for _ in range(50)])
    spool.close()
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(SpoolError, match="is damaged"):
        spool.read(after=0, limit=10)
    assert spool.take_gone() == [(None, "spool_damaged", False)] * 50
    assert spool.length == 0


def test_damage_that_shows_while_the_file_is_open_ends_its_use(
    make: MakeSpool, tmp_path: Path
) -> None:
    """What is kept from then on goes into a new file, and not into the one that was set aside."""
    path = tmp_path / "spool.sqlite"
    spool = make(max_bytes=1 << 26)
    spool.append([("t/a", b"x" * 1000) for _ in range(20_000)])
    spool.close()
    spool.check()  # reads through it, and is content
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(path.stat().st_size - 4096))
    with pytest.raises(SpoolError, match="is damaged"):
        spool.read(after=0, limit=20_000, max_bytes=1 << 26)
    assert spool.set_aside
    assert spool.append(results(1))[0] > 20_000
    spool.close()
    assert payloads(make()) == [1]


def test_two_processes_do_not_share_a_file(make: MakeSpool) -> None:
    """They would both send what is in it. The second takes over when the first has gone."""
    first, second = make(), make()
    first.append(results(1))
    with pytest.raises(
        SpoolError, match="another process uses it; give each node a file"
    ) as caught:
        second.append(results(2))
    assert caught.value.reason == "locked"
    first.close()
    second.append(results(3))
    assert payloads(second) == [1, 3]


def test_a_folder_that_cannot_be_is_explained(make: MakeSpool, tmp_path: Path) -> None:
    """With the key that names another."""
    (tmp_path / "file").write_text("not a folder")
    spool = make(path=tmp_path / "file" / "spool.sqlite")
    with pytest.raises(SpoolError, match=r"cannot be written .*\(mqtt.spool.file\)") as caught:
        spool.check()
    assert caught.value.reason == "unwritable"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_and_survived(small_disk: Path, make: MakeSpool) -> None:
    """Nothing that was kept is lost, all or none of a batch is kept, and with room it goes on."""
    filler = small_disk / "other people's data"
    spool = make(path=small_disk / "spool.sqlite", max_bytes=10 << 20)
    ids = spool.append([("t/a", b"y" * 1000) for _ in range(20)])
    filler.write_bytes(b"z" * (700 << 10))

    def fill() -> None:
        for _ in range(100):
            ids.extend(spool.append([("t/a", b"y" * 10_000) for _ in range(3)]))

    with pytest.raises(SpoolError, match="the disk is full") as caught:
        fill()
    assert caught.value.reason == "disk_full"
    filler.unlink()
    ids += spool.append([("t/a", b"end")])
    assert [kept.id for kept in spool.read(after=0, limit=1000)] == ids
    assert spool.length == len(ids)


def test_what_it_writes_is_ordinary_sqlite(make: MakeSpool, tmp_path: Path) -> None:
    """For those who want to look into one."""
    spool = make()
    spool.append(results(1))
    spool.close()
    with sqlite3.connect(tmp_path / "spool.sqlite") as database:
        assert database.execute("SELECT topic, payload FROM results").fetchall() == [("t/a", b"1")]
    database.close()


def test_ids_rise_over_damage(make: MakeSpool, tmp_path: Path) -> None:
    """Whoever knows a row by its number must not meet another."""
    spool = make()
    first = spool.append(results(1, 2, 3))
    spool.close()
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(SpoolError, match="is damaged"):
        spool.check()
    assert spool.append(results(4))[0] > first[-1]


def test_an_emptied_file_gives_its_room_back(make: MakeSpool, tmp_path: Path) -> None:
    """A long outage does not take the disk for good."""
    spool = make(max_bytes=1 << 24)
    ids = spool.append([("t/a", b"x" * 10_000) for _ in range(300)])
    spool.remove(ids)
    assert (tmp_path / "spool.sqlite").stat().st_size < 100_000


def test_reading_is_bounded_in_bytes(make: MakeSpool) -> None:
    """But gives one result, however large."""
    spool = make()
    spool.append([("t/a", b"x" * 1000) for _ in range(10)])
    assert len(spool.read(after=0, limit=100, max_bytes=2500)) == 3
    assert len(spool.read(after=0, limit=100, max_bytes=1)) == 1
