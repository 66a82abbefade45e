"""What the engine keeps of each frame, each stream and each network."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from streamexit.backends.backend import Backend, RowState
from streamexit.budget.controller import BudgetController
from streamexit.budget.passage import Passage
from streamexit.budget.shadow import ShadowLog
from streamexit.engine.batcher import Batcher
from streamexit.exits import CostTable
from streamexit.frame import FrameInfo
from streamexit.metrics import StreamCounters
from streamexit.prediction import Prediction
from streamexit.tasks.readout import Task

INTERVAL_GAIN = 0.1
"""Weight of each row in the usual time between two that leave."""


class Answer(NamedTuple):
    """Where a row left, with what, and when."""

    exit: int
    score: float
    prediction: Prediction
    at: float


@dataclass(slots=True, eq=False)
class Row:
    """A frame on its way through the network.

    Attributes:
        frame: Which frame.
        stream: Its stream's lane.
        admitted_at: Engine time.
        passage: What its stream's controller knows of it.
        state: See `RowState`; handed from stage to stage, cleared when the row leaves.
        seen: Of a shadow frame: each exit's answer so far.
        answer: Where and when it left, with what; None before, and of one that expired.
        expired_at: Behind which exit it was given up, because its answer would have been too old.
    """

    frame: FrameInfo
    stream: StreamLane
    admitted_at: float
    passage: Passage
    state: RowState
    seen: tuple[Prediction, ...] = field(default=(), init=False)
    answer: Answer | None = field(default=None, init=False)
    expired_at: int | None = field(default=None, init=False)

    @property
    def gone_at(self) -> int | None:
        """Behind which exit it went, with an answer or without; None while it is on its way."""
        return self.expired_at if self.answer is None else self.answer.exit


@dataclass(slots=True, eq=False)
class StreamLane:
    """What the engine keeps per stream.

    Attributes:
        stream_id: Which.
        pipeline: Its pipeline's lane.
        controller: Decides who leaves.
        counters: Shared with the stream's source.
        costs: What its records say of an exit: the pipeline's, or those of the device.
        max_wait: Seconds that a row may wait for a full batch, at each stage.
        deadline: Seconds after admission from which a row waits for no other.
        weight: How much it counts where pipelines share the device.
        shadow: What its shadow frames showed.
        open_rows: Admitted and not yet handed out, in frame order; some may have an answer and
            wait for an earlier frame.
        next_seq: Of the next answer.
        owed_drops: Frames that were dropped in the engine since the last answer.
    """

    stream_id: str
    pipeline: PipelineLane
    controller: BudgetController
    counters: StreamCounters
    costs: CostTable
    max_wait: float
    deadline: float
    weight: float = 1.0
    shadow: ShadowLog = field(default_factory=ShadowLog, init=False)
    open_rows: deque[Row] = field(default_factory=deque, init=False)
    next_seq: int = field(default=0, init=False)
    owed_drops: int = field(default=0, init=False)

    def due(self, row: Row, now: float) -> float:
        """Until when a row that comes to a stage now waits there for others."""
        return min(now + self.max_wait, max(now, row.admitted_at + self.deadline))


@dataclass(slots=True)
class StageLoad:
    """How full a stage's batches were."""

    batches: int = 0
    rows: int = 0


class PipelineLane:
    """A pipeline's network on the device, with the batches that wait for it.

    Args:
        backend: Runs the stages.
        task: Reads the answers.
        costs: Per exit.
        depth: Batches in flight; the backend's when left out.

    Attributes:
        capacity: Rows that the lane takes: a full batch waiting at each stage, and the batches that
            may be in flight.
        loads: Per stage.
        inside: Rows that were admitted and have not left.
        served: What the lane has had of the device, in cost per stream; see `Engine`.
    """

    def __init__(
        self, backend: Backend, task: Task, costs: CostTable, *, depth: int | None = None
    ) -> None:
        self.backend = backend
        self.task = task
        self.costs = costs
        self.batcher: Batcher[Row] = Batcher(backend.sizes)
        self.depth = min(depth or backend.depth, backend.depth)
        self.capacity = sum(backend.sizes) + (backend.depth + 1) * max(backend.sizes)
        self.loads = [StageLoad() for _ in backend.sizes]
        self.weight = 0.0
        self.inside = 0
        self.served = 0.0
        self._interval = 0.0
        self._last_left = 0.0

    @property
    def has_room(self) -> bool:
        """Whether another frame may be admitted."""
        return self.inside < self.capacity

    @property
    def expected_latency(self) -> float:
        """Seconds until a row that came in now would leave: those before it, at the pace of late.

        Of an empty lane nothing is expected: a pace that was bad once must not keep all out for ever.
        """
        return self._interval * (self.inside + 1) if self.inside else 0.0

    def came(self, now: float) -> None:
        """Count a row in."""
        if not self.inside:
            self._last_left = now
        self.inside += 1

    def left(self, count: int, now: float) -> None:
        """Count the rows out that left with one batch: they share the time since the one before."""
        self.inside -= count
        weight = 1 - (1 - INTERVAL_GAIN) ** count
        self._interval += weight * ((now - self._last_left) / count - self._interval)
        self._last_left = now
