"""The engine: frames in, exit records out. Knows no thread, and no clock but the one it is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from streamexit.backends.backend import Backend, Pending, RowState, StageResult
from streamexit.budget.controller import BudgetController
from streamexit.engine.batcher import Batch, Batcher
from streamexit.errors import EngineError
from streamexit.exits import CostTable, ExitRecord
from streamexit.frame import Frame, FrameInfo
from streamexit.metrics import StreamCounters
from streamexit.tasks.readout import Task


@dataclass(slots=True, eq=False)
class Row:
    """A frame on its way through the network.

    Attributes:
        frame: Which frame.
        stream: Its stream's lane.
        seq: Position among the stream's answers, in frame order.
        admitted_at: Engine time.
        state: See `RowState`; handed from stage to stage, cleared when the row leaves.
        record: Filled by the engine when the row leaves.
    """

    frame: FrameInfo
    stream: StreamLane
    seq: int
    admitted_at: float
    state: RowState
    record: ExitRecord | None = field(default=None, init=False)


@dataclass(slots=True, eq=False)
class StreamLane:
    """What the engine keeps per stream.

    Attributes:
        stream_id: Which.
        pipeline: Index of its pipeline lane.
        controller: Decides who leaves.
        counters: Shared with the stream's source.
        open_rows: Admitted and not yet handed out, in frame order; some may have an answer and
            wait for an earlier frame.
        next_seq: Of the next frame admitted.
    """

    stream_id: str
    pipeline: PipelineLane
    controller: BudgetController
    counters: StreamCounters
    open_rows: deque[Row] = field(default_factory=deque, init=False)
    next_seq: int = field(default=0, init=False)


class PipelineLane:
    """A pipeline's network on the device, with the batches that wait for it.

    Args:
        backend: Runs the stages.
        task: Reads the answers.
        costs: Per exit.
        max_wait: Seconds that a row may wait for a full batch.
    """

    def __init__(self, backend: Backend, task: Task, costs: CostTable, *, max_wait: float) -> None:
        self.backend = backend
        self.task = task
        self.costs = costs
        self.batcher: Batcher[Row] = Batcher(
            num_stages=backend.num_stages, max_batch=backend.max_batch, max_wait=max_wait
        )
        self.in_flight: deque[tuple[Batch[Row], Pending]] = deque()

    def submit(self, batch: Batch[Row]) -> Pending:
        """Hand a batch to the device."""
        return self.backend.submit(batch.stage, [row.state for row in batch.rows])

    def clear(self) -> None:
        """Forget all rows."""
        self.batcher.clear()
        self.in_flight.clear()

    @property
    def load(self) -> int:
        """Rows that wait for a stage or are in one."""
        return len(self.batcher) + sum(len(batch.rows) for batch, _ in self.in_flight)


class Engine:
    """Runs all pipelines of one device for all streams.

    Frames of a stream are handed out in order, whatever exit each left from.

    Args:
        deliver: Called with each answer, on the engine's thread.
        clock: Seconds that never go back: of this machine in a node, virtual in a replay.
    """

    def __init__(
        self, deliver: Callable[[ExitRecord], None], *, clock: Callable[[], float]
    ) -> None:
        self._deliver = deliver
        self._clock = clock
        self._lanes: list[PipelineLane] = []
        self._streams: list[StreamLane] = []

    def add_stream(
        self,
        stream_id: str,
        pipeline: PipelineLane,
        controller: BudgetController,
        counters: StreamCounters,
    ) -> StreamLane:
        """Attach a stream; frames are admitted through the lane that is returned."""
        if pipeline not in self._lanes:
            self._lanes.append(pipeline)
        lane = StreamLane(stream_id, pipeline, controller, counters)
        self._streams.append(lane)
        return lane

    def admit(self, stream: StreamLane, frame: Frame) -> None:
        """Take a frame in; its picture belongs to the network from here."""
        now = self._clock()
        row = Row(frame.info, stream, stream.next_seq, now, frame.image)
        stream.next_seq += 1
        stream.open_rows.append(row)
        stream.pipeline.batcher.add(0, row, now)

    def step(self, *, flush: bool = False) -> bool:
        """Run one due batch per pipeline; False when nothing was due and nothing is in flight."""
        worked = False
        for lane in self._lanes:
            while len(lane.in_flight) < lane.backend.depth:
                batch = lane.batcher.next_batch(self._clock(), flush=flush)
                if batch is None:
                    break
                lane.in_flight.append((batch, lane.submit(batch)))
            if lane.in_flight:
                worked = True
                batch, pending = lane.in_flight.popleft()
                self._decide(lane, batch, pending.result())
        return worked

    def next_due(self) -> float | None:
        """When the next waiting batch is due, in engine time."""
        dues = (lane.batcher.next_due() for lane in self._lanes)
        return min((due for due in dues if due is not None), default=None)

    @property
    def load(self) -> int:
        """Rows of all pipelines that wait for a stage or are in one."""
        return sum(lane.load for lane in self._lanes)

    def drop_rest(self) -> None:
        """Give up on every frame that has not been handed out; they count as dropped, `stopped`."""
        for lane in self._lanes:
            lane.clear()
        for stream in self._streams:
            if stream.open_rows:
                stream.counters.drop("stopped", len(stream.open_rows))
                stream.open_rows.clear()

    def check_integrity(self) -> None:
        """Every frame admitted is answered, dropped or in flight. Call it when idle.

        Raises:
            EngineError: The books do not balance; a defect of ours.
        """
        unanswered = sum(row.record is None for stream in self._streams for row in stream.open_rows)
        if unanswered != self.load:
            raise EngineError(
                f"{unanswered} frames have no answer, but {self.load} rows wait for a stage"
            )
        for stream in self._streams:
            if stream.counters.in_flight < len(stream.open_rows):
                raise EngineError(
                    f"stream {stream.stream_id}: {stream.counters} but "
                    f"{len(stream.open_rows)} frames are open"
                )

    def _decide(self, lane: PipelineLane, batch: Batch[Row], result: StageResult) -> None:
        now = self._clock()
        if len(result.scores) != len(batch.rows):
            raise EngineError(f"{len(batch.rows)} rows went in, {len(result.scores)} came out")
        for i, row in enumerate(batch.rows):
            if row.stream.controller.leaves(batch.stage, result.scores[i]):
                self._leave(lane, row, batch.stage, result, i, now)
            else:
                row.state = result.states[i]
                lane.batcher.add(batch.stage + 1, row, now)

    def _leave(
        self, lane: PipelineLane, row: Row, k: int, result: StageResult, i: int, now: float
    ) -> None:
        row.state = None
        row.record = ExitRecord(
            frame=row.frame,
            seq=row.seq,
            exit=k,
            score=result.scores[i],
            cost=lane.costs.per_exit[k],
            prediction=lane.task.prediction(result.answer, i, row.frame.size),
            answered_at=now,
            latency_seconds=now - row.admitted_at,
        )
        self._hand_out(row.stream)

    def _hand_out(self, stream: StreamLane) -> None:
        while stream.open_rows and stream.open_rows[0].record is not None:
            record = stream.open_rows.popleft().record
            assert record is not None
            stream.counters.answered += 1
            stream.controller.answered(record.exit)
            self._deliver(record)
