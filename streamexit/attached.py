"""A stream that is attached to a running node, and what there is to tell about it."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field

from streamexit.budget.status import BudgetStatus
from streamexit.budget.terms import Terms
from streamexit.config.schema import StreamSection
from streamexit.engine.worker import Feed
from streamexit.exits import ExitRecord
from streamexit.frame import Decoder, Media
from streamexit.metrics import Histogram, StreamCounters
from streamexit.planning.streams import PlannedStream
from streamexit.preprocessing import Image
from streamexit.queues import FrameBuffer
from streamexit.schedule import Schedule
from streamexit.sources.demand import Demand
from streamexit.sources.life import StreamState
from streamexit.sources.reader import Reader
from streamexit.wire.encoding import ResultEncoder, encode_state, wire_thresholds
from streamexit.wire.messages import Agreement, Budget, Cost, MediaInfo, State, Status, timestamp
from streamexit.wire.thinning import Thinning

AVAILABILITY = {
    "connecting": "connecting",
    "online": "online",
    "stalled": "offline",
    "reconnecting": "offline",
    "offline": "offline",
    "disabled": "disabled",
    "ended": "offline",
    "error": "error",
}
"""Stream state -> payload of its availability topic."""

FPS_TICKS = 11
"""Of half a second, over which frames per second are counted."""


@dataclass(frozen=True)
class BudgetView:
    """What there is to say of a stream's budget besides its controller's status; see `Budget`."""

    last_change: str | None = None
    changed_at: str | None = None
    shadow_frames: int = 0
    agreement: Agreement | None = None
    agreement_at: list[Agreement] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """A picture for people.

    Attributes:
        picture: uint8 [h, w, 3] RGB.
        record: Of its frame.
        seen_at: Monotonic seconds.
    """

    picture: Image
    record: ExitRecord
    seen_at: float


@dataclass
class AttachedStream:
    """One stream, seen from the event loop.

    Attributes:
        plan: See `PlannedStream`.
        section: Of the configuration, as it was last read.
        counters: Shared with reader and engine.
        buffer: Between them.
        reader: Of its source.
        schedule: When it is wanted.
        encode: Makes its result messages.
        state: Latest from the reader.
        since: Unix time of that change.
        before_stop: Latest but for "stopped", which the end of the node makes of all.
        fps: Answers per second over the last ticks: frames often come in bursts.
        last_label: Latest answer.
        last_result_at: Unix time of it.
        decoder: Of the latest answer's frame.
        media: Likewise.
        epoch: Likewise.
        exit_counts: How many frames left at each exit, since the start.
        feed: Its way into the engine.
        demand: What is asked of its source.
        thinning: Which of its answers become results.
        latest: Its latest answer in short.
        look: The latest picture for people, with its answer.
        latencies: How long answers took.
        added: By a command, and not by the configuration file.
    """

    plan: PlannedStream
    section: StreamSection
    counters: StreamCounters
    buffer: FrameBuffer
    reader: Reader
    schedule: Schedule
    encode: ResultEncoder
    feed: Feed
    demand: Demand
    thinning: Thinning
    state: StreamState = field(default_factory=lambda: StreamState("connecting"))
    since: float = 0.0
    before_stop: StreamState = field(default_factory=lambda: StreamState("connecting"))
    fps: float = 0.0
    last_label: str = ""
    last_result_at: float | None = None
    decoder: Decoder = "software"
    media: Media | None = None
    epoch: int = 0
    exit_counts: Counter[int] = field(default_factory=Counter)
    latest: State | None = None
    look: Look | None = None
    latencies: Histogram = field(default_factory=Histogram)
    added: bool = False
    _ticks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=FPS_TICKS))

    @property
    def id(self) -> str:
        """Of the stream."""
        return self.section.id

    @property
    def frame_rate(self) -> float | None:
        """Frames per second that are analysed at most, now."""
        asked = self.demand.sampling
        return asked.frame_rate if asked else self.section.frame_rate

    @property
    def told_once(self) -> bool:
        """Whether it is a recording in a process of its own: what is asked of that at its beginning holds."""
        return not self.plan.source.live and self.section.decode == "process"

    def look_after_source(self, now: float) -> None:
        """Let the reader do what is due; `now` is Unix time, for the schedule."""
        if self.finished:
            return
        unwanted = self.schedule.why_not(now)
        if unwanted:
            reason, why = unwanted
            if (self.state.state, self.state.reason) != ("disabled", reason):
                self.reader.disable(reason, f"stream {self.id}: {why}")
        elif self.state.state == "disabled":
            self.reader.enable()
        self.reader.tick()

    def tick(self, now: float) -> None:
        """Measure the frame rate over the last ticks."""
        self._ticks.append((now, self.counters.answered))
        then, answered = self._ticks[0]
        if now > then:
            self.fps = (self.counters.answered - answered) / (now - then)

    def change_state(self, state: StreamState, now: float) -> None:
        """Take over what the reader says."""
        self.state = state
        self.since = now
        if state.reason != "stopped":
            self.before_stop = state

    def note(self, record: ExitRecord, now: float) -> bool:
        """Take account of an answer; whether it differs from the one before."""
        self.last_result_at = now
        self.exit_counts[record.exit] += 1
        self.decoder, self.media = record.frame.decoder, record.frame.media
        self.epoch = record.frame.epoch
        self.latencies.add(record.latency_seconds)
        if record.frame.shown is not None:
            self.look = Look(record.frame.shown, record, time.monotonic())
        label, _ = record.prediction.headline
        changed = label != self.last_label
        self.last_label = label
        if changed:
            self.latest = encode_state(record.prediction, record.frame.captured_at)
        return changed

    @property
    def finished(self) -> bool:
        """Whether nothing more will come from the source."""
        return self.state.final

    @property
    def missing(self) -> bool:
        """Whether it is a recording that is not there, and tried again."""
        return not self.plan.source.live and self.state.state in ("reconnecting", "offline")

    @property
    def mean_fraction(self) -> float | None:
        """Mean cost since the start, as a share of the full network's."""
        total = self.exit_counts.total()
        fractions = self.plan.costs.fractions
        spent = sum(fractions[k] * n for k, n in self.exit_counts.items())
        return spent / total if total else None

    @property
    def availability(self) -> str:
        """Payload of the availability topic."""
        return AVAILABILITY[self.state.state]

    def status(self) -> Status:
        """The status message."""
        return Status(
            stream=self.id,
            state=self.state.state,
            reason=self.state.reason,
            message=self.state.message,
            since=timestamp(self.since),
            fps=round(self.fps, 2),
            decoder=self.decoder,
            reconnects=self.counters.reconnects,
            frames=self.counters.frames,
            answered=self.counters.answered,
            dropped={**self.counters.dropped},
            last_result_at=timestamp(self.last_result_at) if self.last_result_at else None,
            epoch=self.epoch,
            media=MediaInfo(**asdict(self.media)) if self.media else None,
            abandoned=self.counters.abandoned,
            hung=self.reader.hung,
        )

    def budget(self, status: BudgetStatus, terms: Terms, view: BudgetView) -> Budget:
        """The budget message."""
        costs = self.plan.costs
        per_second = terms.amount * costs.full if terms.per == "second" else None
        spent = status.per_second
        return Budget(
            stream=self.id,
            state=status.state,
            policy=self.plan.policy.name,
            target_fraction=status.target,
            mean_fraction=status.mean,
            window_frames=terms.window,
            window_s=terms.window_seconds,
            strict=terms.strict,
            frames_in_window=status.frames,
            exit_shares=list(status.exit_shares),
            thresholds=wire_thresholds(status.thresholds),
            thresholds_version=status.version,
            full_cost=Cost(value=costs.full, unit=costs.unit),
            target_per_second=Cost(value=per_second, unit=costs.unit) if per_second else None,
            mean_per_second=Cost(value=spent * costs.full, unit=costs.unit) if spent else None,
            shadow_frames=view.shadow_frames,
            agreement=view.agreement,
            agreement_at=view.agreement_at,
            last_change=view.last_change,
            changed_at=view.changed_at,
        )
