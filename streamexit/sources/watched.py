"""A folder into which somebody puts recordings: each is played once it is whole, for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from streamexit.errors import SourceError
from streamexit.sources.access import Access, file_error
from streamexit.sources.source import DropReport, Picture, Source, Watch
from streamexit.sources.splice import Splice

log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".flv",
     ".wmv", ".3gp", ".264", ".h264", ".265", ".h265", ".hevc", ".mjpg", ".mjpeg"}
)  # fmt: skip

Shape = tuple[int, int]
"""Of a file: bytes, and nanoseconds of its last change."""

LOOK_SECONDS = 0.5
"""Between two looks into the folder; file systems of other machines send no notices."""


class WatchedSource:
    """Recordings of a folder in the order in which they were last written to.

    One that is written to, or replaced, after it was played is another one.
    One that cannot be read is reported, logged and left behind. A folder that cannot be read is looked
    into again, for ever: it may lie on a disk that comes back.

    Args:
        folder: Sub-folders are not looked into.
        open_recording: Makes a source of a file.
        access: What may be read.
        existing: Begin with the recordings that are there; else they are left alone.
        settle_seconds: A recording is whole once it has not changed for so long.
        clock: Seconds, monotonic.
    """

    live = False

    def __init__(
        self,
        folder: Path,
        open_recording: Callable[[Path], Source],
        access: Access,
        *,
        existing: bool,
        settle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._open_recording = open_recording
        self._access = access
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._known: dict[Path, tuple[Shape, float]] = {}
        self._done: dict[Path, Shape] | None = {} if existing else None
        self._problem: SourceError | None = None
        self._look()

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`; timestamps go on from recording to recording, each an epoch of its own."""
        watch = watch or Watch()
        splice = Splice(counted=True)
        while not watch.stopped:
            path = self._next()
            if path is None:
                watch.wait_idly(LOOK_SECONDS, self._problem)
            else:
                yield from splice.play(self._play(path, report, watch))

    def _play(self, path: Path, report: DropReport, watch: Watch) -> Iterator[Picture]:
        try:
            yield from self._open_recording(path).pictures(report, watch)
        except SourceError as error:
            log.warning("%s: %s", error.reason, error)
            report("unreadable_recording")

    def _next(self) -> Path | None:
        """The oldest recording that is whole and has not been played."""
        found = self._look()
        now = self._clock()
        done = dict[Path, Shape]() if self._done is None else self._done
        waiting = {path: shape for path, shape in found.items() if done.get(path) != shape}
        self._known = {
            path: self._known[path]
            if path in self._known and self._known[path][0] == shape
            else (shape, now)
            for path, shape in waiting.items()
        }
        whole = [
            (shape[1], path)
            for path, (shape, since) in self._known.items()
            if now - since >= self._settle_seconds
        ]
        if not whole:
            return None
        _, path = min(whole)
        done[path] = waiting[path]
        return path

    def _look(self) -> dict[Path, Shape]:
        """Every recording in the folder; nothing if it cannot be read."""
        self._access.check_path(self._folder)
        try:
            paths = list(self._folder.iterdir())
        except OSError as error:
            if self._problem is None:
                self._problem = file_error(self._folder, error)
                log.warning("%s; it is looked into again and again", self._problem)
            return {}
        self._problem = None
        found = {}
        for path in paths:
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                with suppress(OSError):  # taken away while we looked, or a link to nothing
                    status = path.stat()
                    found[path] = (status.st_size, status.st_mtime_ns)
        # what was taken away may come again; what lies there at the first look is not wanted
        done, there = found if self._done is None else self._done, set(paths)
        self._done = {path: shape for path, shape in done.items() if path in there}
        return found
