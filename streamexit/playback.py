"""Replaying recordings: the node's own engine under virtual time, so that runs are reproducible.

Time is the frames' timestamps. Frames enter in the order of (timestamp, stream), batches form by
that order and that time, and no clock of this machine is asked: the same input gives the same
batches, hence the same numbers, however the decode threads happen to run.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streamexit.backends.opening import BackendOptions, open_backend
from streamexit.budget.controller import BudgetController
from streamexit.budget.terms import Terms
from streamexit.engine.engine import Engine
from streamexit.engine.lanes import PipelineLane, StreamLane
from streamexit.errors import InputError
from streamexit.exits import DEFAULT_WINDOW, Budget, ExitRecord
from streamexit.frame import Frame
from streamexit.metrics import StreamCounters
from streamexit.models.pipeline import Pipeline, load_pipeline
from streamexit.models.shipped import find_pipeline
from streamexit.prediction import Prediction
from streamexit.queues import FrameBuffer
from streamexit.recordings import open_recordings
from streamexit.replay_report import Findings, Judgement, StreamReport, report
from streamexit.scheduling.policy import ExitPolicy, load_policy
from streamexit.sources.life import StreamState
from streamexit.sources.reader import Reader
from streamexit.sources.source import Source

MAX_WAIT_SECONDS = 2.0
"""Virtual. Latency does not matter in a replay, so batches may take their time to fill."""

REPLAY_OPTIONS = BackendOptions(batch=4)
"""Of a fixed batch size: a measured one could change from run to run, and with it the last bits."""

DEPTH = 2
"""Batches in flight at most, also where there are more cores: decisions come later the more there are."""

BUFFER_FRAMES = 64
JOIN_SECONDS = 0.5


def _ignore(record: ExitRecord) -> None:
    """Nobody wants to hear of it."""


@dataclass(slots=True)
class _Stream:
    """A stream while it is replayed, and its results so far."""

    buffer: FrameBuffer
    reader: Reader
    lane: StreamLane
    full_lane: StreamLane | None
    controller: BudgetController
    findings: Findings
    waiting: dict[int, Prediction] = field(default_factory=dict)


class Replay:
    """One replay of recorded sources through one pipeline.

    Args:
        sources: Stream id -> recording.
        pipeline: Loaded pipeline.
        policy: Which exit policy.
        budget: Of each stream.
        window: In frames.
        window_seconds: In seconds instead.
        strict: See `Terms`.
        shadow: See `BudgetController`.
        options: Where the network runs, and with how many rows at a time.
        agreement: Also run every frame to the last exit, outside the budget, and compare.

    Attributes:
        seconds: That `run` took.
        interrupted: Whether it was stopped.

    Raises:
        InputError: A live source.
    """

    def __init__(
        self,
        sources: dict[str, Source],
        *,
        pipeline: Pipeline,
        policy: ExitPolicy,
        budget: Budget,
        options: BackendOptions = REPLAY_OPTIONS,
        window: int = DEFAULT_WINDOW,
        window_seconds: float | None = None,
        strict: bool = False,
        shadow: float = 0.0,
        agreement: bool = False,
    ) -> None:
        for stream_id, source in sources.items():
            if source.live:
                raise InputError(f"{stream_id}: a live source cannot be replayed; record it first")
        if budget.cost_unit != pipeline.costs.unit:
            raise InputError(
                f"budget.{budget.unit}: a replay counts GFLOPs, which are the same everywhere; give "
                "fraction or gflops_per_frame"
            )
        self._pipeline = pipeline
        self._task = pipeline.build_task()
        self._terms = Terms.of(
            budget,
            pipeline.costs,
            window=window,
            window_seconds=window_seconds,
            strict=strict,
        )
        self._shadow = shadow
        self._table = policy.table
        self._on_record: Callable[[ExitRecord], None] = _ignore
        backend = open_backend(pipeline, policy.scorer, options)
        self._now = 0.0
        self._engine = Engine(self._record, clock=lambda: self._now)
        self._full_engine = Engine(self._compare, clock=lambda: self._now) if agreement else None
        self._overall = Judgement(self._task)
        self.interrupted = False
        self._lane = PipelineLane(backend, self._task, pipeline.costs, depth=DEPTH)
        self._full = PipelineLane(backend, self._task, pipeline.costs, depth=DEPTH)
        self._streams = {name: self._stream(name, source) for name, source in sources.items()}
        self.seconds = 0.0

    def run(self, on_record: Callable[[ExitRecord], None] = _ignore) -> None:
        """Play everything to its end, or until `stop`; what was taken in is answered.

        Args:
            on_record: Called with each answer, in frame order per stream.
        """
        self._on_record = on_record
        started = time.perf_counter()
        for stream in self._streams.values():
            stream.reader.start()
        try:
            self._play()
        finally:
            self._close_sources()
        ended = [s.lane for s in self._streams.values() if s.reader.join(JOIN_SECONDS)]
        self._advance(flush=True)
        self._engine.check_integrity(ended=ended)
        self.seconds = time.perf_counter() - started

    def stop(self) -> None:
        """End `run` soon. May be called from a signal handler."""
        self.interrupted = True
        self._close_sources()

    def _close_sources(self) -> None:
        for stream in self._streams.values():
            stream.reader.stop()
            stream.buffer.close()

    def _play(self) -> None:
        for stream, frame in _merged(list(self._streams.values())):
            self._now = max(self._now, frame.info.pts_seconds)
            self._advance()
            self._engine.admit(stream.lane, frame)
            if self._full_engine and stream.full_lane:
                self._full_engine.admit(stream.full_lane, frame)

    def stream_reports(self) -> dict[str, StreamReport]:
        """Per stream."""
        return {
            name: self._report([stream], stream.findings.judgement)
            for name, stream in self._streams.items()
        }

    def total(self) -> StreamReport:
        """All streams together; the worst window is the worst of any stream."""
        return self._report(list(self._streams.values()), self._overall)

    def _report(self, streams: Sequence[_Stream], judgement: Judgement) -> StreamReport:
        return report(
            [stream.findings for stream in streams],
            judgement,
            costs=self._pipeline.costs,
            terms=self._terms,
            state=streams[0].controller.status.state if len(streams) == 1 else None,
        )

    def _advance(self, *, flush: bool = False) -> None:
        for engine in (self._engine, self._full_engine):
            while engine is not None and engine.step(
                flush=flush, wait="always" if flush else "when_full"
            ):
                pass

    def _stream(self, name: str, source: Source) -> _Stream:
        counters = StreamCounters()
        buffer = FrameBuffer(capacity=BUFFER_FRAMES, live=False, counters=counters)
        controller = BudgetController(self._table, self._terms, shadow=self._shadow, stream_id=name)
        full_lane = None
        if self._full_engine:
            endless = BudgetController(self._table, Terms(1.0))
            full_lane = self._full_engine.add_stream(
                name, self._full, endless, StreamCounters(), max_wait=MAX_WAIT_SECONDS
            )
        lane = self._engine.add_stream(
            name, self._lane, controller, counters, max_wait=MAX_WAIT_SECONDS
        )
        reader = Reader(
            name,
            source,
            buffer,
            on_state=self._watch(name),
            wall_clock=None,
            preprocessing=self._pipeline.network.preprocessing,
        )
        findings = Findings(counters, lane.shadow, Judgement(self._task))
        return _Stream(buffer, reader, lane, full_lane, controller, findings)

    def _watch(self, name: str) -> Callable[[StreamState], None]:
        def on_state(state: StreamState) -> None:
            if state.state == "error":
                self._streams[name].findings.error = state.message

        return on_state

    def _record(self, record: ExitRecord) -> None:
        stream = self._streams[record.frame.stream_id]
        stream.findings.exits.append(record.exit)
        target = self._task.as_target(record.frame.label)
        if target is not None:
            for judgement in (stream.findings.judgement, self._overall):
                judgement.with_truth(record.prediction, target)
        self._pair(stream, record)
        self._on_record(record)

    def _compare(self, record: ExitRecord) -> None:
        self._pair(self._streams[record.frame.stream_id], record)

    def _pair(self, stream: _Stream, record: ExitRecord) -> None:
        """Meet the other engine's answer to the same frame."""
        if self._full_engine is None:
            return
        other = stream.waiting.pop(record.frame.index, None)
        if other is None:
            stream.waiting[record.frame.index] = record.prediction
        else:
            for judgement in (stream.findings.judgement, self._overall):
                judgement.with_full(record.prediction, self._task.target(other))


@dataclass(frozen=True)
class Replayed:
    """What `replay` found.

    Attributes:
        total: All streams together.
        streams: Per stream.
        seconds: That it took.
    """

    total: StreamReport
    streams: dict[str, StreamReport]
    seconds: float


def replay(
    sources: str | Sequence[str] | Mapping[str, Source],
    *,
    pipeline: str | Path | Pipeline,
    budget: Budget | str,
    policy: ExitPolicy | str | None = None,
    window: int = DEFAULT_WINDOW,
    strict: bool = False,
    shadow: float = 0.0,
    agreement: bool = False,
    on_record: Callable[[ExitRecord], None] = _ignore,
) -> Replayed:
    """Play recordings through a pipeline at a budget: the same input gives the same answers.

    Args:
        sources: One or several as on the command line (files, images:FOLDER, synthetic:seed=1), or
            stream id -> source. Each is a stream.
        pipeline: A folder, the name of one that ships, or what `load_pipeline` returned.
        budget: Of each stream; text as in "fraction=0.4".
        policy: A name of the pipeline's; its default when left out.
        window: Frames that a mean is taken over.
        strict: No window may exceed the budget.
        shadow: Share of the frames to estimate agreement from.
        agreement: Compare every answer with the full network's.
        on_record: Called with each answer, in frame order per stream.

    Raises:
        InputError: Something of it cannot be read or does not fit; its subclass says what.
    """
    loaded = pipeline if isinstance(pipeline, Pipeline) else load_pipeline(find_pipeline(pipeline))
    if not isinstance(policy, ExitPolicy):
        policy = load_policy(loaded.policy_file(policy), loaded.costs.fractions)
    if not isinstance(sources, Mapping):
        texts = [sources] if isinstance(sources, str) else list(sources)
        sources = open_recordings(texts, loaded)
    run = Replay(
        dict(sources),
        pipeline=loaded,
        policy=policy,
        budget=budget if isinstance(budget, Budget) else Budget.parse(budget),
        window=window,
        strict=strict,
        shadow=shadow,
        agreement=agreement,
    )
    run.run(on_record)
    return Replayed(run.total(), run.stream_reports(), run.seconds)


def _merged(streams: Sequence[_Stream]) -> Iterator[tuple[_Stream, Frame]]:
    """Frames of all streams by (timestamp, stream), whichever thread is ahead."""
    heads: list[tuple[float, int, Frame]] = []

    def push(i: int) -> None:
        frame = streams[i].buffer.wait()
        if frame is not None:
            heapq.heappush(heads, (frame.info.pts_seconds, i, frame))

    for i in range(len(streams)):
        push(i)
    while heads:
        _, i, frame = heapq.heappop(heads)
        yield streams[i], frame
        push(i)
