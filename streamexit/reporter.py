"""What a node says: results as they come, and how it and its streams are doing. Lives on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from importlib.metadata import version

from streamexit.attached import AttachedStream
from streamexit.engine.lanes import PipelineLane
from streamexit.engine.worker import EngineSnapshot, EngineWorker
from streamexit.exits import ExitRecord
from streamexit.governor.governor import Governor
from streamexit.health import Pulse
from streamexit.outlets import Outlets
from streamexit.queues import Outbox
from streamexit.roster import Roster
from streamexit.sinks.delivery import Delivery
from streamexit.sinks.mqtt import MqttSession
from streamexit.sinks.publication import DeliveryBooks
from streamexit.wire.messages import (
    MESSAGES,
    Budget,
    Info,
    Message,
    NetworkLoad,
    OutboxLoad,
    Stats,
    timestamp,
)
from streamexit.wire.topics import RETAINED_OF_STREAM, Topics

log = logging.getLogger(__name__)

PUMP_SECONDS = 0.01
"""Between two looks for results: under load they go out several at a time, and the threads that make
them are disturbed a hundred times a second at most."""

TURN_RESULTS = 50
"""After so many results others have their turn on the event loop."""

FIGURES_SECONDS = 0.5
"""Between two messages with a stream's figures; of many streams so many fewer."""

MESSAGES_PER_SECOND = 100
"""With figures, of all streams together."""


class Reporter:
    """See the module.

    Args:
        topics: Where to publish.
        boot_id: Of this run.
        outbox: Results come from there.
        roster: The streams.
        governor: Their budgets.
        worker: The engine's thread.
        stats_every: Seconds.

    Attributes:
        wanted: Set when there may be results.
        outlets: What all of it goes out by; none until the node runs.
        started_at: Unix seconds.
        log: Changes, newest last: Unix seconds, stream or None, sentence.
    """

    def __init__(
        self,
        topics: Topics,
        boot_id: str,
        *,
        outbox: Outbox,
        roster: Roster,
        governor: Governor,
        worker: EngineWorker,
        stats_every: float,
    ) -> None:
        self.topics = topics
        self._boot_id = boot_id
        self._outbox = outbox
        self._roster = roster
        self._governor = governor
        self._worker = worker
        self._stats_every = stats_every
        self._stats_due = self._figures_due = 0.0
        self._ending = False
        self.wanted = asyncio.Event()
        self.outlets = Outlets()
        self.started_at = time.time()
        self.log: deque[tuple[float, str | None, str]] = deque(maxlen=200)

    @property
    def session(self) -> MqttSession | None:
        """With the broker, if there is one."""
        return self.outlets.session

    @property
    def delivery(self) -> Delivery | None:
        """Of results to the broker, if there is one."""
        return self.outlets.delivery

    # --- results --------------------------------------------------------------------------------

    async def pump(self) -> None:
        """Pass results on as they come, until `end`."""
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            count = 0
            while record := self._outbox.take():
                self._pass_on(record)
                count += 1
                if count % TURN_RESULTS == 0:
                    await asyncio.sleep(0)
            self._worker.wake()
            if self._ending:
                return
            await asyncio.sleep(PUMP_SECONDS)

    def end(self) -> None:
        """Let `pump` return once it has passed on what there is."""
        self._ending = True
        self.wanted.set()

    @property
    def snapshot(self) -> EngineSnapshot:
        """The engine, a moment ago."""
        return self._worker.snapshot

    def pulse(self) -> Pulse:
        """What the node has done so far."""
        counters = [stream.counters for stream in self._roster.streams.values()]
        books = self.delivery.books if self.delivery else DeliveryBooks()
        session = self.session
        away = "" if session is None or session.connected else session.problem or "connecting"
        return Pulse(
            frames=sum(c.frames - c.dropped.total() for c in counters),
            answered=sum(c.answered for c in counters),
            seen=sum(c.frames for c in counters),
            held=self.crowded,
            offered=books.offered,
            waiting=self.delivery.unconfirmed if self.delivery else 0,
            confirmed=books.confirmed + books.recovered,
            broker=away,
        )

    @property
    def crowded(self) -> bool:
        """Whether results go out more slowly than they come."""
        return self._outbox.crowded or (self.delivery is not None and self.delivery.crowded)

    def _pass_on(self, record: ExitRecord) -> None:
        stream_id, now = record.frame.stream_id, time.time()
        stream = self._roster.streams[stream_id]
        changed = stream.note(record, now)
        before = stream.thinning.pass_on(record, changed=changed, now=now)
        if before is not None and (self.outlets.sinks or self.delivery):
            message = stream.encode(record, now, unpublished=before)
            if self.delivery:
                self.delivery.offer(self.topics.stream(stream_id, "result"), message.encode())
            for sink in self.outlets.sinks:
                sink.write(message)
        if changed and stream.latest:
            self._retain(stream_id, "state", stream.latest)

    # --- how everybody is -----------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Say what is due; `now` is Unix time. Called twice a second."""
        moment = time.monotonic()
        figures = moment >= self._figures_due
        if figures:
            wait = 2 * len(self._roster.streams) / MESSAGES_PER_SECOND
            self._figures_due = moment + max(wait, FIGURES_SECONDS) - FIGURES_SECONDS / 2
        for stream_id, stream in self._roster.streams.items():
            if figures:
                self.say_figures(stream_id, stream)
            self._say_availability(stream_id, stream)
        if self.session and moment >= self._stats_due:
            self._stats_due = moment + self._stats_every
            self.session.publish_passing(self.topics.stats, self.stats(now).encode())

    def say_all(self) -> None:
        """Everything about the streams, whether it is due or not."""
        for stream_id, stream in self._roster.streams.items():
            self.say_figures(stream_id, stream)
            self._say_availability(stream_id, stream)

    def say_figures(self, stream_id: str, stream: AttachedStream) -> None:
        """Status and budget of a stream."""
        if self.session is None:
            return
        self._retain(stream_id, "status", stream.status())
        budget = self.budget(stream_id)
        if budget is not None:
            self._retain(stream_id, "budget", budget)

    def change_state(self, stream_id: str, stream: AttachedStream) -> None:
        """A stream is in another state: that is said at once."""
        state = stream.state
        sentence = f"{state.state} {state.message or state.reason}".strip()
        # a state with a message is a problem, which is said as one
        self.note(stream_id, sentence, logged=not state.message)
        self._retain(stream_id, "status", stream.status())
        self._say_availability(stream_id, stream)

    def note(self, stream_id: str | None, sentence: str, *, logged: bool = True) -> None:
        """Remember a change, and log it."""
        self.log.append((time.time(), stream_id, sentence))
        if logged:
            about = f"{stream_id}: " if stream_id else ""
            log.info("%s%s", about, sentence, extra={"stream": stream_id})

    def budget(self, stream_id: str) -> Budget | None:
        """The budget message of a stream; None before the engine has said something."""
        status = self._worker.snapshot.budgets.get(stream_id)
        stream = self._roster.streams.get(stream_id)
        if status is None or stream is None:
            return None
        terms, view = self._governor.terms(stream_id), self._governor.view(stream_id)
        return stream.budget(status, terms, view)

    def say_info(self) -> None:
        """What this node is and has, if that has changed."""
        if self.session is None:
            return
        self.session.set_retained(self.topics.info, self.info().encode())
        if self.outlets.discovery:
            self.session.set_retained(*self.outlets.discovery.of_node())
            for stream_id, stream in self._roster.streams.items():
                cheapest, live = stream.plan.costs.fractions[0], stream.plan.source.live
                self.session.set_retained(
                    *self.outlets.discovery.of_stream(stream_id, cheapest=cheapest, live=live)
                )

    def announce_again(self) -> None:
        """Home Assistant has started, and wants to hear of us."""
        if self.session and self.outlets.discovery:
            self.session.announce_again(self.outlets.discovery.own_topics)

    def forget(self, stream_id: str) -> None:
        """Clear the retained topics of a stream that is not here."""
        if self.session:
            for leaf in RETAINED_OF_STREAM:
                self.session.set_retained(self.topics.stream(stream_id, leaf), b"")
            if self.outlets.discovery:
                self.session.set_retained(*self.outlets.discovery.forget_stream(stream_id))

    def info(self) -> Info:
        """The info message."""
        streams = self._roster.streams
        return Info(
            node=self.topics.node,
            boot_id=self._boot_id,
            version=version("streamexit"),
            started_at=timestamp(self.started_at),
            device=self._roster.device,
            pipelines=sorted({s.plan.pipeline.name for s in streams.values()}),
            streams=list(streams),
            schemas=[m.model_fields["format"].default for m in MESSAGES.values()],
        )

    def stats(self, now: float) -> Stats:
        """The stats message; `now` is Unix time."""
        counters = [stream.counters for stream in self._roster.streams.values()]
        dropped: Counter[str] = Counter()
        for one in counters:
            for reason, count in list(one.dropped.items()):  # decode threads go on counting
                dropped[reason] += count
        books = self.delivery.books if self.delivery else None
        return Stats(
            node=self.topics.node,
            boot_id=self._boot_id,
            at=timestamp(now),
            uptime_s=max(0.0, now - self.started_at),
            frames=sum(c.frames for c in counters),
            answered=sum(c.answered for c in counters),
            dropped=dict(dropped),
            rows_waiting=self._worker.snapshot.rows_waiting,
            outbox_length=self._outbox.statistics().length,
            results_lost=self.results_lost(),
            results_confirmed=books.confirmed if books else 0,
            results_recovered=books.recovered if books else 0,
            outbox=self._outbox_load(),
            networks=[_network_load(*names, lane) for names, lane in self._roster.networks()],
            fairness=self._governor.fairness(),
            allocated_ms_per_s=self._governor.allocated,
        )

    def results_lost(self) -> dict[str, int]:
        """Results that did not reach the broker, by reason."""
        lost: Counter[str] = self.delivery.lost() if self.delivery else Counter()
        outbox = self._outbox.statistics()
        lost["queue_full"] += outbox.dropped
        lost["of_earlier_runs"] = self.delivery.books.lost_earlier if self.delivery else 0
        if self._ending:
            lost["not_sent"] += outbox.length
        return {reason: count for reason, count in lost.items() if count}

    def _outbox_load(self) -> OutboxLoad | None:
        if self.delivery is None:
            return None
        results, size = self.delivery.spooled
        return OutboxLoad(
            under_way=self.delivery.backlog,
            kept=self.delivery.kept,
            spool_results=results,
            spool_bytes=size,
            problem=self.delivery.problem,
        )

    def _say_availability(self, stream_id: str, stream: AttachedStream) -> None:
        if self.session:
            topic = self.topics.stream(stream_id, "availability")
            self.session.set_retained(topic, stream.availability.encode())

    def _retain(self, stream_id: str, leaf: str, message: Message) -> None:
        if self.session:
            self.session.set_retained(self.topics.stream(stream_id, leaf), message.encode())


def _network_load(pipeline: str, policy: str, lane: PipelineLane) -> NetworkLoad:
    backend = lane.backend
    return NetworkLoad(
        pipeline=pipeline,
        policy=policy,
        device=backend.device,
        batch=list(backend.sizes),
        fill=[
            load.rows / load.batches / size if load.batches else None
            for load, size in zip(lane.loads, backend.sizes, strict=True)
        ],
        notes=backend.notes,
    )
