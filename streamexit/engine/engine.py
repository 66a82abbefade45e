"""The engine: frames in, exit records out. Knows no thread, and no clock but the one it is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from streamexit.backends.backend import Pending, StageResult
from streamexit.budget.controller import BudgetController
from streamexit.budget.shadow import ShadowFrame
from streamexit.engine.batcher import Batch
from streamexit.engine.lanes import Answer, PipelineLane, Row, StreamLane
from streamexit.errors import EngineError
from streamexit.exits import CostTable, ExitRecord
from streamexit.frame import Frame
from streamexit.metrics import StreamCounters
from streamexit.tasks.readout import Task

Wait = Literal["always", "unless_busy", "when_full"]
"""For a batch in flight: always; unless all still run and the device, or another network, has something to
do; or, whatever runs, only when the device has as many as it takes, which does not depend on how fast it is."""


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """A batch on the device."""

    lane: PipelineLane
    batch: Batch[Row]
    pending: Pending


class Engine:
    """Runs all pipelines of one device for all streams.

    Frames of a stream are handed out in order, whatever exit each left from. Pipelines share the
    device by cost: of those with a batch that is due, the one goes next that has had the least per
    weight of its streams (start-time fair queueing, Goyal et al., SIGCOMM 1996), so a stream with a small network
    does not wait its turn behind every batch of a large one.

    Args:
        deliver: Called with each answer, on the engine's thread.
        clock: Seconds that never go back: of this machine in a node, virtual in a replay.

    Attributes:
        busy_seconds: In which the device had a batch.
    """

    def __init__(
        self, deliver: Callable[[ExitRecord], None], *, clock: Callable[[], float]
    ) -> None:
        self._deliver = deliver
        self._clock = clock
        self._lanes: list[PipelineLane] = []
        self._streams: list[StreamLane] = []
        self._in_flight: deque[_Flight] = deque()
        self._served_last = 0.0
        self._busy_since = 0.0
        self.busy_seconds = 0.0

    def add_stream(
        self,
        stream_id: str,
        pipeline: PipelineLane,
        controller: BudgetController,
        counters: StreamCounters,
        *,
        max_wait: float,
        deadline: float = float("inf"),
        costs: CostTable | None = None,
        weight: float = 1.0,
    ) -> StreamLane:
        """Attach a stream; frames are admitted through the lane that is returned."""
        if pipeline not in self._lanes:
            self._lanes.append(pipeline)
        pipeline.weight += weight
        lane = StreamLane(
            stream_id,
            pipeline,
            controller,
            counters,
            costs or pipeline.costs,
            max_wait,
            deadline,
            weight,
        )
        self._streams.append(lane)
        return lane

    def remove_stream(self, stream: StreamLane) -> bool:
        """Detach a stream to which no frame is admitted any more; False while some are inside.

        Its pipeline's network stays.
        """
        if stream.open_rows:
            return False
        if stream in self._streams:
            self._streams.remove(stream)
            stream.pipeline.weight -= stream.weight
        return True

    def admit(self, stream: StreamLane, frame: Frame) -> None:
        """Take a frame in; its picture belongs to the network from here."""
        now = self._clock()
        passage = stream.controller.enter(now)
        row = Row(frame.info, stream, now, passage, frame.image)
        stream.open_rows.append(row)
        lane = stream.pipeline
        if not lane.inside:  # what it did not use while it was idle is not owed to it
            lane.served = max(lane.served, self._served_last)
        lane.came(now)
        lane.batcher.add(0, row, stream=stream.stream_id, due=stream.due(row, now))

    def step(self, *, flush: bool = False, wait: Wait = "always") -> bool:
        """Keep the device busy and take one batch from it.

        Args:
            flush: Run batches that are not due, too.
            wait: When to wait for a batch in flight.

        Returns:
            Whether anything was done.
        """
        worked = False
        while (lane := self._next_lane(flush=flush)) is not None:
            self._submit(lane, flush=flush)
            worked = True
        flight = self._next_flight(wait)
        if flight is None:
            return worked
        result = flight.pending.result()
        self._in_flight.remove(flight)
        now = self._clock()
        self.busy_seconds += now - self._busy_since
        self._busy_since = now
        self._decide(flight.lane, flight.batch, result)
        return True

    @property
    def in_flight(self) -> int:
        """Batches on the device."""
        return len(self._in_flight)

    def next_due(self) -> float | None:
        """When the next waiting batch is due, in engine time."""
        dues = (lane.batcher.next_due() for lane in self._lanes)
        return min((due for due in dues if due is not None), default=None)

    @property
    def load(self) -> int:
        """Rows that wait for a stage or are in one."""
        in_flight = sum(len(flight.batch.rows) for flight in self._in_flight)
        return in_flight + sum(len(lane.batcher) for lane in self._lanes)

    def drop_rest(self, *, wait: bool = True) -> None:
        """Give up on every frame that has not been handed out; they count as dropped, `stopped`.

        A batch that is on the device is forgotten.

        Args:
            wait: For that batch, first.
        """
        for flight in self._in_flight if wait else ():
            flight.pending.result()
        self._in_flight.clear()
        for lane in self._lanes:
            lane.batcher.clear()
            lane.inside = 0
        for stream in self._streams:
            if stream.open_rows:
                stream.counters.drop("stopped", len(stream.open_rows))
                stream.open_rows.clear()

    def check_integrity(self, *, ended: Collection[StreamLane] = ()) -> None:
        """Every frame admitted is answered, dropped or in flight. Call it when idle.

        Args:
            ended: Streams of which no frame is on its way to the engine: theirs are all in here.

        Raises:
            EngineError: The books do not balance; a defect of ours.
        """
        unanswered = sum(
            row.gone_at is None for stream in self._streams for row in stream.open_rows
        )
        inside = sum(lane.inside for lane in self._lanes)
        if not unanswered == self.load == inside:
            raise EngineError(
                f"{unanswered} frames have no answer, but {self.load} rows wait for a stage and "
                f"{inside} are counted"
            )
        for stream in self._streams:
            outside = stream.counters.in_flight - len(stream.open_rows)
            if outside < 0 or (outside and stream in ended):
                raise EngineError(
                    f"stream {stream.stream_id}: {stream.counters} but "
                    f"{len(stream.open_rows)} frames are open"
                )

    def _next_lane(self, *, flush: bool) -> PipelineLane | None:
        """The pipeline whose batch goes to the device next, if there is one and room for it."""
        now = self._clock()
        ready = [
            lane
            for lane in self._lanes
            if not self._full(lane) and lane.batcher.due_stage(now, flush=flush) is not None
        ]
        return min(ready, key=lambda lane: lane.served, default=None)

    def _full(self, lane: PipelineLane) -> bool:
        return len(self._in_flight) >= lane.depth

    def _next_flight(self, wait: Wait) -> _Flight | None:
        """The batch whose result is taken now; it may still run."""
        if not self._in_flight:
            return None
        oldest = self._in_flight[0]
        if wait == "unless_busy":
            if done := next((f for f in self._in_flight if f.pending.done), None):
                return done
            if len(self._lanes) > 1:  # to wait for one network would hold up the others
                return None
        return oldest if wait == "always" or self._full(oldest.lane) else None

    def _submit(self, lane: PipelineLane, *, flush: bool) -> None:
        batch = lane.batcher.next_batch(self._clock(), flush=flush)
        assert batch is not None
        k, rows = batch.stage, len(batch.rows)
        self._served_last = lane.served
        lane.served += lane.costs.of_stage(k) * rows / lane.weight
        if not self._in_flight:
            self._busy_since = self._clock()
        lane.loads[k].batches += 1
        lane.loads[k].rows += rows
        pending = lane.backend.submit(k, [row.state for row in batch.rows])
        self._in_flight.append(_Flight(lane, batch, pending))

    def _decide(self, lane: PipelineLane, batch: Batch[Row], result: StageResult) -> None:
        now = self._clock()
        if len(result.scores) != len(batch.rows):
            raise EngineError(f"{len(batch.rows)} rows went in, {len(result.scores)} came out")
        leaving = []
        for i, row in enumerate(batch.rows):
            stays = not row.stream.controller.leaves(row.passage, batch.stage, result.scores[i])
            if row.passage.shadow:
                row.seen = (*row.seen, lane.task.prediction(result.answer, i, row.frame.size))
            if now > row.frame.expires_at:
                self._expire(row, batch.stage)
                leaving.append(i)
            elif not stays:
                self._leave(lane, row, batch.stage, result, i, now)
                leaving.append(i)
            else:
                row.state = result.states[i]
                due = row.stream.due(row, now)
                lane.batcher.add(batch.stage + 1, row, stream=row.stream.stream_id, due=due)
        if leaving:
            lane.left(len(leaving), now)
        if result.states and leaving:
            lane.backend.release([result.states[i] for i in leaving])

    def _leave(
        self, lane: PipelineLane, row: Row, k: int, result: StageResult, i: int, now: float
    ) -> None:
        row.state = None
        if row.passage.shadow:
            _learn(lane.task, row)
        prediction = (
            row.seen[-1] if row.seen else lane.task.prediction(result.answer, i, row.frame.size)
        )
        row.answer = Answer(k, result.scores[i], prediction, now)
        self._hand_out(row.stream)

    def _expire(self, row: Row, k: int) -> None:
        """Give up a row whose answer would be too old; what it has spent stays spent."""
        row.state, row.expired_at = None, k
        row.stream.controller.withdrawn(row.passage, k)
        self._hand_out(row.stream)

    def _hand_out(self, stream: StreamLane) -> None:
        while stream.open_rows and (k := stream.open_rows[0].gone_at) is not None:
            row = stream.open_rows.popleft()
            stream.controller.settled(row.passage, k)
            if row.answer is None:
                stream.counters.drop("too_old")
                stream.owed_drops += row.frame.dropped_before + 1
            else:
                self._deliver(_record(row, row.answer))


def _record(row: Row, answer: Answer) -> ExitRecord:
    """A row's turn in its stream has come: its record, entered into the books."""
    stream = row.stream
    row.frame.dropped_before += stream.owed_drops
    record = ExitRecord(
        frame=row.frame,
        seq=stream.next_seq,
        exit=answer.exit,
        score=answer.score,
        cost=stream.costs.per_exit[answer.exit],
        prediction=answer.prediction,
        answered_at=answer.at,
        latency_seconds=answer.at - row.admitted_at,
    )
    stream.owed_drops = 0
    stream.next_seq += 1
    stream.counters.answered += 1
    return record


def _learn(task: Task, row: Row) -> None:
    """Compare each exit's answer to a shadow frame with the last one's."""
    last, passage = row.seen[-1], row.passage
    target = task.target(last)
    assert passage.leaves_at is not None
    row.stream.shadow.add(
        ShadowFrame(
            scores=passage.scores,
            agreement=tuple(task.judge(seen, target).quality for seen in row.seen),
            leaves_at=passage.leaves_at,
            elsewhere=passage.elsewhere,
            budget=passage.assumed,
        )
    )
