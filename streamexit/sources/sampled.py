"""Fewer pictures of a source whose pictures cost nothing until they are analysed."""

from __future__ import annotations

from collections.abc import Iterator

from streamexit.sources.demand import Choice
from streamexit.sources.sampling import Sampling
from streamexit.sources.source import DropReport, Picture, Source, Watch


class SampledSource:
    """Another source's pictures, fewer of them.

    Args:
        source: Each of its pictures is its own key frame.
        sampling: Which are wanted.
    """

    def __init__(self, source: Source, sampling: Sampling) -> None:
        self.live = source.live
        self._source = source
        self._sampling = sampling

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`."""
        watch = watch or Watch()
        choice = Choice(self._sampling, watch.demand)
        for picture in self._source.pictures(report, watch):
            if choice.sampler.wants(picture.pts_seconds):
                yield picture
            else:
                watch.alive()
