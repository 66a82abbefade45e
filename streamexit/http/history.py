"""The recent past of each stream, for charts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

EVERY_SECONDS = 2.0
POINTS = 900


@dataclass(frozen=True, slots=True)
class Point:
    """A stream at one time.

    Attributes:
        at: Unix seconds.
        mean_fraction: Of the full network's cost, over the window.
        target_fraction: The budget.
        exit_shares: Over the window.
        agreement: With the full network, estimated.
        fps: Answers per second.
    """

    at: float
    mean_fraction: float | None
    target_fraction: float | None
    exit_shares: tuple[float, ...] | None
    agreement: float | None
    fps: float


class History:
    """Half an hour of every stream."""

    def __init__(self) -> None:
        self._streams: dict[str, deque[Point]] = {}

    def add(self, points: Iterable[tuple[str, Point]]) -> None:
        """A point for each stream there is; the others are forgotten."""
        now = dict(points)
        self._streams = {name: self._streams.get(name) or deque(maxlen=POINTS) for name in now}
        for name, point in now.items():
            self._streams[name].append(point)

    def of(self, stream_id: str, *, since: float) -> dict[str, Any]:
        """Columns of the points after `since`, Unix seconds."""
        points = [asdict(p) for p in self._streams.get(stream_id, ()) if p.at > since]
        names = Point.__dataclass_fields__
        return {"every_s": EVERY_SECONDS, **{name: [p[name] for p in points] for name in names}}
