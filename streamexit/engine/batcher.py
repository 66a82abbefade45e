"""Which rows of which stage run next. Pure: no clock, no thread, no tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Batch(Generic[Row]):
    """Rows that go through one stage together.

    Attributes:
        stage: From 0.
        rows: Rows of one stream in the order in which they came.
    """

    stage: int
    rows: Sequence[Row]


class Batcher(Generic[Row]):
    """A queue per stage; rows of all streams share it, and survivors are regrouped.

    A stage is due when it has a full batch, or when one of its rows has waited long enough. Of the
    due stages the deepest goes first: it frees the most memory and answers the oldest frames.
    Within a stage streams take turns, row by row, so a stream that waits with one row among S
    streams gets into one of the next ceil(S / size) batches, however many rows the others have.

    Args:
        sizes: Rows of a full batch, per stage.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self._queues: list[_StageQueue[Row]] = [_StageQueue() for _ in sizes]

    def add(self, stage: int, row: Row, *, stream: Hashable, due: float) -> None:
        """Queue a row for a stage; at `due` it is not to wait for others any longer."""
        self._queues[stage].add(row, stream, due)

    def next_batch(self, now: float, *, flush: bool = False) -> Batch[Row] | None:
        """The batch that is due at `now`, if any; with `flush`, any that could run."""
        stage = self.due_stage(now, flush=flush)
        if stage is None:
            return None
        return Batch(stage, self._queues[stage].take(self.sizes[stage]))

    def due_stage(self, now: float, *, flush: bool = False) -> int | None:
        """The stage whose batch `next_batch` would give."""
        for stage in range(len(self._queues) - 1, -1, -1):
            queue = self._queues[stage]
            full = queue.length >= self.sizes[stage]
            if full or (queue.length and (flush or now >= queue.due)):
                return stage
        return None

    def next_due(self) -> float | None:
        """When the first waiting row's time is up; None when nothing waits."""
        return min((queue.due for queue in self._queues if queue.length), default=None)

    def clear(self) -> None:
        """Forget all rows."""
        self._queues = [_StageQueue() for _ in self.sizes]

    def __len__(self) -> int:
        return sum(queue.length for queue in self._queues)


class _StageQueue(Generic[Row]):
    """Rows that wait for one stage: a line per stream, and the streams in the order of their turn."""

    def __init__(self) -> None:
        self.length = 0
        self.due = float("inf")
        self._lines: dict[Hashable, deque[tuple[float, Row]]] = {}

    def add(self, row: Row, stream: Hashable, due: float) -> None:
        self._lines.setdefault(stream, deque()).append((due, row))
        self.length += 1
        self.due = min(self.due, due)

    def take(self, most: int) -> list[Row]:
        rows: list[Row] = []
        while self._lines and len(rows) < most:
            stream = next(iter(self._lines))
            line = self._lines.pop(stream)
            rows.append(line.popleft()[1])
            if line:
                self._lines[stream] = line  # to the end of the turn
        self.length -= len(rows)
        waiting = (due for line in self._lines.values() for due, _ in line)
        self.due = min(waiting, default=float("inf"))
        return rows
