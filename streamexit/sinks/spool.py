"""Results that the broker has not taken yet, in a file: SQLite, bounded in bytes and age.

Not safe for threads: whoever uses a spool does it from one thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from streamexit.errors import SpoolError

SpoolLoss = Literal["spool_full", "spool_expired", "spool_damaged"]
"""Why a result left the spool unsent: it was the oldest of too many bytes, it was too old, the file was
damaged."""

ROW_BYTES = 40
"""That a row takes besides its topic and payload, about."""

CLOCK_SET_SECONDS = 60.0
"""By which the wall clock runs away from the steady one, at least, if somebody has set it."""

SCHEMA_VERSION = 1

_REASONS = {
    sqlite3.SQLITE_FULL: "disk_full",
    sqlite3.SQLITE_IOERR: "disk_error",
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_READONLY: "unwritable",
    sqlite3.SQLITE_CANTOPEN: "unwritable",
    sqlite3.SQLITE_PERM: "unwritable",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
}


@dataclass(frozen=True, slots=True)
class Kept:
    """A result in the spool; ids rise in the order of keeping."""

    id: int
    topic: str
    payload: bytes
    earlier: bool
    """Whether it is an earlier run's."""


class Gone(NamedTuple):
    """A result that left the spool unsent."""

    id: int | None
    """None where it is not known: the file is damaged."""
    reason: SpoolLoss
    earlier: bool
    """As in `Kept`."""


class Spool:
    """See the module.

    A commit is in the operating system's hands: it survives the end of this process, however it comes,
    but a power cut may take the latest ones.

    Args:
        path: Made, with its folder, when it is first needed.
        max_bytes: Of topics and payloads; beyond, the oldest go.
        max_age: Seconds; what is older goes.
        wall_clock: Unix time.
        clock: Seconds, monotonic.

    Attributes:
        length: Results in the file.
        bytes: That they take.
        set_aside: Where a damaged file was moved to, the last time that it happened.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        max_age: float,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._wall_clock, self._clock = wall_clock, clock
        self._read_clocks = wall_clock(), clock()
        self._database: sqlite3.Connection | None = None
        self._opened_before = False
        self._last_id = 0
        self.length = 0
        self.bytes = 0
        self._gone: list[Gone] = []
        self._newest_before = self._length_before = 0
        self._kept_again: set[int] = set()  # an earlier run's, that lost their first copies
        self.set_aside: Path | None = None

    def append(
        self, results: Sequence[tuple[str, bytes]], *, earlier: Collection[int] = ()
    ) -> list[int]:
        """Keep (topic, payload) pairs, all or none; their ids.

        Args:
            results: In the order of keeping.
            earlier: Places in it of those that an earlier run had kept.

        Raises:
            SpoolError: They are not kept.
        """
        with self._using() as database:
            if not results:
                return []
            now = self._now(database)
            sizes = [len(topic) + len(payload) + ROW_BYTES for topic, payload in results]
            with database:
                cursor = database.execute("SELECT coalesce(max(id), 0) FROM results")
                first = max(int(cursor.fetchone()[0]), self._last_id) + 1
                ids = list(range(first, first + len(results)))
                database.executemany(
                    "INSERT INTO results (id, kept_at, size, topic, payload) VALUES (?, ?, ?, ?, ?)",
                    [
                        (id_, now, size, topic, payload)
                        for id_, size, (topic, payload) in zip(ids, sizes, results, strict=True)
                    ],
                )
            self._last_id = ids[-1]
            self._kept_again.update(ids[n] for n in earlier)
            self._length_before += len(earlier)
            self.length += len(ids)
            self.bytes += sum(sizes)
            with contextlib.suppress(sqlite3.Error):  # they are kept all the same; see `check`
                self._hold_bounds(database, now)
            return ids

    def read(self, *, after: int, limit: int, max_bytes: int = 1 << 24) -> list[Kept]:
        """The oldest results behind an id, one at least if there is one.

        Raises:
            SpoolError: The file cannot be read.
        """
        with self._using() as database:
            rows = database.execute(
                "SELECT id, topic, payload FROM results WHERE id > ? ORDER BY id LIMIT ?",
                (after, limit),
            )
            found, size = [], 0
            for id_, topic, payload in rows:
                found.append(Kept(id_, topic, payload, self.is_earlier(id_)))
                size += len(found[-1].payload)
                if size > max_bytes:
                    break
            return found

    def remove(self, ids: Sequence[int]) -> None:
        """Forget results; those that are gone already do not matter.

        Raises:
            SpoolError: They are all still there.
        """
        with self._using() as database:
            with database:
                rows = [
                    row
                    for id_ in ids
                    for row in database.execute(
                        "DELETE FROM results WHERE id = ? RETURNING id, size", (id_,)
                    )
                ]
            self._count_out(rows)
            if not self.length and ids:
                database.executescript("PRAGMA incremental_vacuum")  # `execute` frees one page
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def take_gone(self) -> list[Gone]:
        """Results that left unsent since this was last asked."""
        gone, self._gone = self._gone, []
        return gone

    def is_earlier(self, id_: int) -> bool:
        """Whether it is an earlier run's."""
        return id_ <= self._newest_before or id_ in self._kept_again

    def check(self) -> None:
        """Open the file if need be, and let go of what is too much or has become too old.

        Raises:
            SpoolError: It cannot be opened, or changed.
        """
        with self._using() as database:
            self._hold_bounds(database, self._now(database))

    def close(self) -> None:
        """Let go of the file; it is opened again if need be."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    # --- inside ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The open database; its errors become ours."""
        try:
            if self._database is None:
                self._database = self._open()
            yield self._database
        except (sqlite3.Error, OSError) as error:
            reason = _reason(error)
            if reason != "disk_full":  # which can still be read
                self.close()
            if reason == "damaged":
                self._put_aside()
            raise SpoolError(
                f"spool {self.path}: {_in_words(reason, error, self.set_aside)}", reason=reason
            ) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # another process that has the file is no reason to wait: we try again later
        database = sqlite3.connect(self.path, timeout=0, check_same_thread=False)
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")  # two nodes would send all twice
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA journal_size_limit = 4194304")
            if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("the file fails its check")
            with database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS results (id INTEGER PRIMARY KEY, kept_at REAL NOT NULL, "
                    "size INTEGER NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL)"
                )
                if database.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            found = database.execute(
                "SELECT count(*), coalesce(sum(size), 0), coalesce(max(id), 0) FROM results"
            )
            self.length, self.bytes, last_id = found.fetchone()
            self._last_id = max(self._last_id, last_id)  # ids are never used again
        except BaseException:
            database.close()
            raise
        if not self._opened_before:
            self._newest_before, self._length_before = self._last_id, self.length
            self._opened_before = True
        return database

    def _now(self, database: sqlite3.Connection) -> float:
        """Unix time; where the clock has been set since it was last read, this run's results keep their age.

        A device without a clock of its own learns the time from the network, which often comes back
        together with the broker.
        """
        wall, steady = self._wall_clock(), self._clock()
        was_wall, was_steady = self._read_clocks
        moved = (wall - was_wall) - (steady - was_steady)
        if abs(moved) > CLOCK_SET_SECONDS:
            with database:
                database.execute(
                    "UPDATE results SET kept_at = kept_at + ? WHERE id > ?",
                    (moved, self._newest_before),
                )
        self._read_clocks = wall, steady
        return wall

    def _hold_bounds(self, database: sqlite3.Connection, now: float) -> None:
        """The oldest out first, as long as there are too many bytes; and whatever is too old."""
        if self.bytes > self._max_bytes:
            excess, out_of, last = self.bytes - self._max_bytes, 0, 0
            for id_, size in database.execute("SELECT id, size FROM results ORDER BY id"):
                out_of, last = out_of + size, id_
                if out_of >= excess:
                    break
            self._drop(database, "spool_full", "id <= ?", last)
        oldest = database.execute("SELECT kept_at FROM results ORDER BY id LIMIT 1").fetchone()
        if oldest and oldest[0] < now - self._max_age:
            self._drop(database, "spool_expired", "kept_at < ?", now - self._max_age)

    def _drop(
        self, database: sqlite3.Connection, reason: SpoolLoss, condition: str, value: float
    ) -> None:
        with database:
            rows = database.execute(
                f"DELETE FROM results WHERE {condition} RETURNING id, size", (value,)
            ).fetchall()
        self._count_out(rows)
        self._gone.extend(Gone(id_, reason, self.is_earlier(id_)) for id_, _ in rows)

    def _count_out(self, rows: Sequence[tuple[int, int]]) -> None:
        self.length -= len(rows)
        self.bytes -= sum(size for _, size in rows)
        self._length_before -= sum(self.is_earlier(id_) for id_, _ in rows)

    def _put_aside(self) -> None:
        """Move a damaged file out of the way; a new one is begun at the next use."""
        aside = self.path.with_name(f"{self.path.name}.damaged")  # one is enough
        with contextlib.suppress(OSError):
            self.path.replace(aside)
            self.set_aside = aside
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                Path(f"{self.path}{suffix}").replace(f"{aside}{suffix}")
        self._gone.extend(
            Gone(None, "spool_damaged", n < self._length_before) for n in range(self.length)
        )
        self.length = self.bytes = self._length_before = 0


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return "unwritable"
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # of Python's own: of its kinds only these two say something of the file
        damaged = type(error) is sqlite3.DatabaseError or "Could not decode" in str(error)
        return "damaged" if damaged else "disk_error"
    return _REASONS.get(code & 0xFF, "disk_error")


def _in_words(reason: str, error: Exception, aside: Path | None) -> str:
    return {
        "disk_full": "the disk is full; make room",
        "locked": "another process uses it; give each node a file of its own (mqtt.spool.file)",
        "unwritable": f"cannot be written ({error}); choose another file (mqtt.spool.file)",
        "damaged": f"is damaged ({error}); it is now {aside}, and a new one is begun",
    }.get(reason, f"the disk fails ({error})")
