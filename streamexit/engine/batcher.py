"""Which rows of which stage run next. Pure: no clock, no thread, no tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Batch(Generic[Row]):
    """Rows that go through one stage together, in the order in which they came."""

    stage: int
    rows: Sequence[Row]


class Batcher(Generic[Row]):
    """A queue per stage; rows of all streams share it, and survivors are regrouped.

    A stage is due when it has a full batch, or when its first row has waited for `max_wait`. Of
    the due stages the deepest goes first: it frees the most memory and answers the oldest frames.

    Args:
        num_stages: K.
        max_batch: Rows per batch.
        max_wait: Seconds; the wait clock of a stage starts with its first row.
    """

    def __init__(self, *, num_stages: int, max_batch: int, max_wait: float) -> None:
        self._queues: list[deque[tuple[float, Row]]] = [deque() for _ in range(num_stages)]
        self._max_batch = max_batch
        self._max_wait = max_wait

    def add(self, stage: int, row: Row, now: float) -> None:
        """Queue a row for a stage."""
        self._queues[stage].append((now, row))

    def next_batch(self, now: float, *, flush: bool = False) -> Batch[Row] | None:
        """The batch that is due at `now`, if any; with `flush`, any that could run."""
        for stage in range(len(self._queues) - 1, -1, -1):
            if self._due(stage, now) or (flush and self._queues[stage]):
                return self._take(stage)
        return None

    def next_due(self) -> float | None:
        """When the first waiting row's time is up; None when nothing waits."""
        return min((q[0][0] + self._max_wait for q in self._queues if q), default=None)

    def clear(self) -> None:
        """Forget all rows."""
        for queue in self._queues:
            queue.clear()

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def _due(self, stage: int, now: float) -> bool:
        queue = self._queues[stage]
        if len(queue) >= self._max_batch:
            return True
        return bool(queue) and now >= queue[0][0] + self._max_wait

    def _take(self, stage: int) -> Batch[Row]:
        queue = self._queues[stage]
        size = min(len(queue), self._max_batch)
        return Batch(stage, [queue.popleft()[1] for _ in range(size)])
