"""Several sources played one after the other as one, once or for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streamexit.errors import SourceError
from streamexit.sources.source import DropReport, Picture, Source, Watch
from streamexit.sources.splice import Splice


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
        splice = Splice(counted=False)
        again = True
        while again:
            before = splice.pictures
            for part in self._parts:
                yield from splice.play(part.pictures(report, watch))
            again = self._repeat and splice.pictures > before  # a round without any is the last
