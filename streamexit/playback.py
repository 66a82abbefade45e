"""Replaying recordings: the node's own engine under virtual time, so that runs are reproducible.

Time is the frames' timestamps. Frames enter in the order of (timestamp, stream), batches form by
that order and that time, and no clock of this machine is asked: the same input gives the same
batches, hence the same numbers, however the decode threads happen to run.
"""

from __future__ import annotations

import heapq
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamexit.backends.opening import BackendOptions, open_backend
from streamexit.budget.controller import BudgetController, BudgetState
from streamexit.budget.shadow import Estimate, agreement_now
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
from streamexit.scheduling.policy import ExitPolicy, load_policy
from streamexit.sources.joined import JoinedSource
from streamexit.sources.life import StreamState
from streamexit.sources.opening import open_source
from streamexit.sources.reader import Reader
from streamexit.sources.source import Source
from streamexit.tasks.readout import Tally

MAX_WAIT_SECONDS = 2.0
"""Virtual. Latency does not matter in a replay, so batches may take their time to fill."""

REPLAY_OPTIONS = BackendOptions(batch=4)
"""Of a fixed batch size: a measured one could change from run to run, and with it the last bits."""

DEPTH = 2
"""Batches in flight at most, also where there are more cores: decisions come later the more there are."""

BUFFER_FRAMES = 64
JOIN_SECONDS = 0.5


@dataclass(slots=True)
class StreamReport:
    """What a replay found for one stream, or for all together.

    Costs are in the pipeline's unit. `against_truth` and `against_full` hold `Tally.figures` of the
    answers, compared with the true labels and with the full network's answers; None where there are
    no labels, and where the comparison was not asked for. `estimated` is what shadow frames say of the
    latter.
    """

    frames: int
    answered: int
    dropped: dict[str, int]
    mean_cost: float | None
    full_cost: float
    worst_window_error: float | None
    exit_shares: tuple[float, ...]
    against_truth: dict[str, Any] | None
    against_full: dict[str, Any] | None
    estimated: Estimate | None
    budget_state: BudgetState | None
    error: str | None


@dataclass(slots=True)
class _Judgement:
    """How good the answers were, as far as that can be known."""

    truth: Tally
    full: Tally
    labelled: int = 0
    compared: int = 0


@dataclass(slots=True)
class _Stream:
    """A stream while it is replayed, and its results so far."""

    stream_id: str
    counters: StreamCounters
    buffer: FrameBuffer
    reader: Reader
    lane: StreamLane
    full_lane: StreamLane | None
    controller: BudgetController
    judgement: _Judgement
    exits: list[int] = field(default_factory=list)
    waiting: dict[int, Prediction] = field(default_factory=dict)
    error: str | None = None


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
        on_record: Called with each answer, in frame order per stream.

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
        on_record: Callable[[ExitRecord], None] = lambda record: None,
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
        self._on_record = on_record
        backend = open_backend(pipeline, policy.scorer, options)
        self._now = 0.0
        self._engine = Engine(self._record, clock=lambda: self._now)
        self._full_engine = Engine(self._compare, clock=lambda: self._now) if agreement else None
        self._overall = self._judge()
        self.interrupted = False
        self._lane = PipelineLane(backend, self._task, pipeline.costs, depth=DEPTH)
        self._full = PipelineLane(backend, self._task, pipeline.costs, depth=DEPTH)
        self._streams = {name: self._stream(name, source) for name, source in sources.items()}
        self.seconds = 0.0

    def run(self) -> None:
        """Play everything to its end, or until `stop`; what was taken in is answered."""
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
        return {name: self._report([stream]) for name, stream in self._streams.items()}

    def total(self) -> StreamReport:
        """All streams together; the worst window is the worst of any stream."""
        return self._report(list(self._streams.values()))

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
        return _Stream(
            name,
            counters,
            buffer,
            Reader(
                name,
                source,
                buffer,
                on_state=self._watch(name),
                wall_clock=None,
                preprocessing=self._pipeline.network.preprocessing,
            ),
            self._engine.add_stream(
                name, self._lane, controller, counters, max_wait=MAX_WAIT_SECONDS
            ),
            full_lane,
            controller,
            self._judge(),
        )

    def _judge(self) -> _Judgement:
        return _Judgement(self._task.tally(), self._task.tally())

    def _watch(self, name: str) -> Callable[[StreamState], None]:
        def on_state(state: StreamState) -> None:
            if state.state == "error":
                self._streams[name].error = state.message

        return on_state

    def _record(self, record: ExitRecord) -> None:
        stream = self._streams[record.frame.stream_id]
        stream.exits.append(record.exit)
        target = self._task.as_target(record.frame.label)
        if target is not None:
            for judgement in (stream.judgement, self._overall):
                judgement.labelled += 1
                judgement.truth.add(record.prediction, target)
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
            for judgement in (stream.judgement, self._overall):
                judgement.compared += 1
                judgement.full.add(record.prediction, self._task.target(other))

    def _report(self, streams: Sequence[_Stream]) -> StreamReport:
        costs = self._pipeline.costs
        exits = [k for stream in streams for k in stream.exits]
        dropped: Counter[str] = Counter()
        for stream in streams:
            dropped.update(stream.counters.dropped)
        one = streams[0] if len(streams) == 1 else None
        judgement = one.judgement if one else self._overall
        windows = [e for e in (self._worst_window(s.exits) for s in streams) if e is not None]
        n = len(exits)
        return StreamReport(
            frames=sum(stream.counters.frames for stream in streams),
            answered=n,
            dropped=dict(sorted(dropped.items())),
            mean_cost=sum(costs.per_exit[k] for k in exits) / n if n else None,
            full_cost=costs.full,
            worst_window_error=max(windows, default=None),
            exit_shares=tuple(exits.count(k) / n if n else 0.0 for k in range(len(costs.per_exit))),
            against_truth=judgement.truth.figures() if judgement.labelled else None,
            against_full=judgement.full.figures() if judgement.compared else None,
            estimated=self._estimate(streams),
            budget_state=one.controller.status.state if one else None,
            error="; ".join(s.error for s in streams if s.error) or None,
        )

    def _estimate(self, streams: Sequence[_Stream]) -> Estimate | None:
        frames = [frame for stream in streams for frame in stream.lane.shadow.frames]
        return agreement_now(frames, self._pipeline.costs.fractions)

    def _worst_window(self, exits: Sequence[int]) -> float | None:
        """Of budgets per frame with a window in frames."""
        if self._terms.per == "second" or self._terms.window_seconds is not None:
            return None
        costs = [self._pipeline.costs.fractions[k] for k in exits]
        return worst_window_error(costs, self._terms.amount, self._terms.window)


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
    on_record: Callable[[ExitRecord], None] = lambda record: None,
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
        on_record=on_record,
    )
    run.run()
    return Replayed(run.total(), run.stream_reports(), run.seconds)


def open_recordings(
    sources: list[str], pipeline: Pipeline, *, join: bool = False, own_size: bool = False
) -> dict[str, Source]:
    """Stream id -> source; with `join` one stream of all sources.

    Raises:
        SourceError: One cannot be understood.
    """
    opened: list[Source] = [
        open_source(
            text,
            preprocessing=pipeline.network.preprocessing,
            labels=pipeline.labels,
            own_size=own_size,
        )
        for text in sources
    ]
    if join:
        return {"joined": JoinedSource(opened)}
    return dict(zip(stream_ids(sources), opened, strict=True))


def stream_ids(sources: list[str]) -> list[str]:
    """An id for each source, from its file name; numbered where two would be the same."""
    ids: list[str] = []
    for text in sources:
        stem = Path(text.partition("?")[0]).stem or text
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:56] or "stream"
        candidates = (name, *(f"{name}-{n}" for n in range(2, len(sources) + 2)))
        ids.append(next(c for c in candidates if c not in ids))
    return ids


def worst_window_error(costs: Sequence[float], budget: float, window: int) -> float | None:
    """Largest |mean - budget| / budget over any `window` consecutive costs.

    Over all of them when there are fewer than `window`; None when there are none.
    """
    if not costs:
        return None
    size = min(window, len(costs))
    current = sum(costs[:size])
    worst = abs(current / size - budget)
    for i in range(size, len(costs)):
        current += costs[i] - costs[i - size]
        worst = max(worst, abs(current / size - budget))
    return worst / budget


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
