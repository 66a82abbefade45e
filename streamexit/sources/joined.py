"""Several sources played one after the other as one, once or for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from streamexit.errors import SourceError
from streamexit.sources.source import DropReport, Picture, Source, Watch

FIRST_STEP = 0.04
"""Seconds between two parts when a part has one picture only."""


class JoinedSource:
    """See the module.

    Args:
        parts: Recordings; a live source never ends, so nothing would come after it.
        repeat: Start again after the last one.

    Raises:
        SourceError: A live source among them.
    """

    live = False

    def __init__(self, parts: Sequence[Source], *, repeat: bool = False) -> None:
        if any(part.live for part in parts):
            raise SourceError("a live source has no end to be joined at", reason="bad_source")
        self._parts = parts
        self._repeat = repeat

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`; timestamps go on from part to part."""
        offset, step, base, epoch = 0.0, FIRST_STEP, 0, 0
        again = True
        while again:
            again = False
            for part in self._parts:
                first = last = None
                for picture in part.pictures(report, watch):
                    first = picture.pts_seconds if first is None else first
                    pts = offset + picture.pts_seconds - first
                    step = pts - last if last is not None else step
                    last = pts
                    epoch = base + picture.epoch
                    yield replace(picture, pts_seconds=pts, epoch=epoch)
                base = epoch
                if last is not None:
                    offset = last + step
                    again = self._repeat  # a round without a single picture is the last
