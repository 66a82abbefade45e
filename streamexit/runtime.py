"""The composition root: a checked configuration becomes a running node.

Threads: one per source (decode), one for the engine, and the event loop for MQTT and timers. They
meet in `queues` only.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from streamexit.attached import AttachedStream
from streamexit.backends.opening import open_backend, quietly
from streamexit.budget.controller import BudgetController, BudgetStatus
from streamexit.budget.sharing import DeviceShare
from streamexit.budget.state_file import StateFile
from streamexit.config.schema import EngineSection, MqttSection, NodeConfiguration
from streamexit.documents import Document
from streamexit.engine.engine import Engine, PipelineLane
from streamexit.engine.worker import EngineWorker, Feed
from streamexit.errors import BudgetError, OperationError
from streamexit.exits import ExitRecord
from streamexit.governor import Governor
from streamexit.metrics import StreamCounters
from streamexit.planning.source import max_age, plan_patience
from streamexit.planning.streams import PlannedStream, plan_backend, plan_streams
from streamexit.queues import FrameBuffer, Outbox
from streamexit.schedule import Schedule
from streamexit.sinks.broker import EmbeddedBroker
from streamexit.sinks.jsonl import JsonlSink
from streamexit.sinks.mqtt import BrokerAddress, MqttSession
from streamexit.sources.life import StreamState
from streamexit.sources.reader import Reader
from streamexit.wire.encoding import ResultEncoder
from streamexit.wire.messages import MESSAGES, Info, Message, NetworkLoad, Stats, timestamp
from streamexit.wire.topics import Topics

PATIENT_SECONDS = 1.0
"""How long a frame of a recording that is read as fast as possible waits for a full batch: nobody
waits for it, and half-empty batches would cost everybody."""

PUMP_SECONDS = 0.01
"""Between two looks for results: under load they go out several at a time, and the threads that make
them are disturbed a hundred times a second at most."""

AUTO_SHARE = 900.0
"""Of the 1000 ms per second that a device has by its profiles; decoding and peaks need the rest."""

OUTBOX_RESULTS = 4000
TICK_SECONDS = 0.5

WATCH_SECONDS = 0.2
"""Between two looks at the sources: what is lost is tried again, what hangs is abandoned."""

PATIENCE_SECONDS = 2.0
"""How long the streams wait for the broker at the start."""

ANSWER_SECONDS = 0.5
"""How long the engine goes on answering what it holds, once it is to stop."""

LAST_BATCH_SECONDS = 10.0
"""How long the end waits for the batch that is running then: nothing can interrupt it, and a process
that ends with a thread inside PyTorch is aborted."""

LAST_WORDS_SECONDS = 1.0
"""From the engine's end to the node's, whatever hangs."""


class Node:
    """A running node.

    Args:
        document: The configuration.
        on_problem: Called with one sentence for each stream or broker that fails.
        on_preparation: Called with one sentence before a preparation that takes seconds.

    Attributes:
        boot_id: Of this run.
        topics: Where it publishes.
        session: With the broker; None without one.
        broker: Its address; None without one, and before `run`.
        streams: Attached, by id.
        lanes: Of the engine, by pipeline and policy.
        governor: Looks after the budgets.
        outbox: Between the engine and the sinks.
        device: Where the networks run.
        stopping: Whether the end has begun; a broker of the node's own ends with it.

    Raises:
        ConfigurationError: Before anything is started.
    """

    def __init__(
        self,
        document: Document[NodeConfiguration],
        *,
        on_problem: Callable[[str], None],
        on_preparation: Callable[[str], None] = quietly,
    ) -> None:
        self._configuration = document.value
        self._base = document.path.parent
        self._on_problem = on_problem
        self._on_preparation = on_preparation
        self.boot_id = uuid.uuid4().hex[:16]
        self.topics = Topics(self._configuration.node.prefix, self._configuration.node.id)
        self.session: MqttSession | None = None
        self.broker: BrokerAddress | None = None
        self._jsonl: JsonlSink | None = None
        self._started_at = time.time()
        self._failure: BaseException | None = None
        self.stopping = False
        self._said: dict[str, str] = {}
        self._engine = Engine(self._deliver, clock=time.monotonic)
        self.streams: dict[str, AttachedStream] = {}
        self._feeds: list[Feed] = []
        self._worker = EngineWorker(
            self._engine,
            self._feeds,
            hold_recordings=lambda: self.outbox.crowded,
            clock=time.monotonic,
            on_failure=self._fail,
        )
        self.outbox = Outbox(capacity=OUTBOX_RESULTS, wake=self._wake_pump)
        self.device = ""
        engine, kept = self._configuration.engine, self._configuration.state_file
        self.governor = Governor(
            self._worker,
            share=_device_share(engine),
            file=StateFile(self._base / kept) if kept else None,
            on_problem=on_problem,
        )
        plans = plan_streams(document)
        self._backend_options = plan_backend(document)
        self._build(plans)

    @property
    def budgets(self) -> dict[str, BudgetStatus]:
        """Latest budget status per stream."""
        return self._worker.snapshot.budgets

    async def run(
        self, *, duration: float | None = None, ready: Callable[[], None] = lambda: None
    ) -> None:
        """Run until every recording has ended, `duration` seconds are over, or cancelled.

        Args:
            duration: In seconds.
            ready: Called once everything has been started.

        Raises:
            OperationError: The engine failed.
        """
        self._loop = asyncio.get_running_loop()
        self._pump_wanted = asyncio.Event()
        self._finished = asyncio.Event()
        async with AsyncExitStack() as stack:
            await self._open_sinks(stack)
            session = self._task(self.session.run(), "mqtt") if self.session else None
            pump = self._task(self._pump(), "pump")
            ticker: asyncio.Task[None] | None = None
            watcher: asyncio.Task[None] | None = None
            try:
                await self._first_attempt_to_connect()
                ticker = self._task(self._tick_for_ever(), "ticker")
                self._start()
                watcher = self._task(self._watch_sources(), "sources")
                ready()
                async with asyncio.timeout(duration):
                    await self._finished.wait()
            except TimeoutError:
                pass
            finally:
                await _end(watcher, time.monotonic() + LAST_WORDS_SECONDS)
                await self._shut_down(ticker, pump, session)
        if self._failure:
            raise OperationError(f"the node failed: {self._failure}") from self._failure

    def stop(self) -> None:
        """End `run` soon; everything in the engine is still answered. Call it on the loop."""
        self._finished.set()

    def take_over(self, configuration: NodeConfiguration) -> None:
        """Budgets and windows from a configuration that was read again; the rest takes a restart."""
        sections = {section.id: section for section in configuration.streams}
        for stream_id in self.streams.keys() & sections.keys():
            try:
                self.governor.take_over(sections[stream_id], now=time.time())
            except BudgetError as error:
                self._on_problem(f"{stream_id}: {error}")
        if _without_budgets(configuration) != _without_budgets(self._configuration):
            self._on_problem(
                "the configuration changed in more than budgets; the rest takes a restart"
            )

    # --- building -------------------------------------------------------------------------------

    def _build(self, plans: list[PlannedStream]) -> None:
        lanes: dict[tuple[Path, str], PipelineLane] = {}
        for plan in plans:
            key = _lane_key(plan)
            if key not in lanes:
                lanes[key] = self._lane(plan)
            self._add(plan, lanes[key])
        self.lanes = {(p.pipeline.name, p.policy.name): lanes[_lane_key(p)] for p in plans}

    def _lane(self, plan: PlannedStream) -> PipelineLane:
        backend = open_backend(
            plan.pipeline,
            plan.policy.scorer,
            self._backend_options,
            say=lambda sentence: self._on_preparation(f"{plan.pipeline.name}: {sentence}"),
        )
        self.device = backend.device
        return PipelineLane(backend, plan.pipeline.build_task(), plan.pipeline.costs)

    def _add(self, plan: PlannedStream, lane: PipelineLane) -> None:
        stream_id = plan.section.id
        counters = StreamCounters()
        buffer = FrameBuffer(
            capacity=plan.section.buffer,
            live=plan.source.live,
            counters=counters,
            wake=self._worker.wake,
        )
        section, settings = plan.section, self._configuration.engine
        controller = BudgetController(
            plan.table, plan.terms, shadow=section.shadow, stream_id=stream_id
        )
        hurried = plan.source.live or section.pace == "realtime"
        engine_lane = self._engine.add_stream(
            stream_id,
            lane,
            controller,
            counters,
            max_wait=settings.max_wait_ms / 1000 if hurried else PATIENT_SECONDS,
            costs=plan.costs,
            weight=section.weight,
            deadline=section.deadline_ms / 1000 if hurried else math.inf,
        )
        self._feeds.append(Feed(engine_lane, buffer, section.weight))
        reader = Reader(
            stream_id,
            plan.source,
            buffer,
            on_state=lambda state: self._on_loop(self._change_state, stream_id, state),
            pace=section.pace,
            patience=plan_patience(section),
            max_age=max_age(section, live=plan.source.live),
            fallback=plan.fallback,
        )
        zone = self._configuration.node.timezone
        schedule = Schedule(section.enabled, section.active_hours or (), zone)
        encode = ResultEncoder(
            node=self.topics.node,
            boot_id=self.boot_id,
            pipeline=plan.pipeline.name,
            num_exits=len(plan.pipeline.costs.per_exit),
            maps=plan.maps,
            cost_unit=plan.costs.unit,
        )
        stream = AttachedStream(
            plan, counters, buffer, reader, schedule, encode, since=self._started_at
        )
        self.streams[stream_id] = stream
        refused = self.governor.attach(stream, engine_lane, self._started_at)
        if refused:
            stream.change_state(StreamState("error", "no_capacity", refused), self._started_at)
            self._on_problem(f"{stream_id} is refused: {refused}")
            buffer.close()

    async def _open_sinks(self, stack: AsyncExitStack) -> None:
        if self._configuration.results_file:
            self._jsonl = JsonlSink(self._base / self._configuration.results_file)
            stack.callback(self._jsonl.close)
        settings = self._configuration.mqtt
        if settings is None:
            return
        self.broker = await self._broker_address(settings, stack)
        self.session = MqttSession(
            self.broker,
            client_id=f"streamexit-{self.topics.node}-{self.boot_id}",
            availability_topic=self.topics.availability,
            qos=settings.qos,
            prefer_v5=settings.url != "embedded",
            on_problem=self._on_problem,
        )
        await self.session.set_retained(self.topics.info, self._info().encode())

    async def _broker_address(self, settings: MqttSection, stack: AsyncExitStack) -> BrokerAddress:
        if settings.url == "embedded":
            embedded = await stack.enter_async_context(EmbeddedBroker())
            return BrokerAddress("127.0.0.1", embedded.port)
        password = settings.password.get_secret_value() if settings.password else None
        return BrokerAddress.parse(settings.url, username=settings.username, password=password)

    # --- start and stop -------------------------------------------------------------------------

    def _start(self) -> None:
        self._worker.start()
        now = time.time()
        for stream in self.streams.values():
            unwanted = stream.schedule.why_not(now)
            if not stream.finished and not unwanted:
                stream.reader.start()
            elif unwanted and unwanted[0] == "disabled":
                stream.buffer.finish()  # nothing will come before a restart

    async def _watch_sources(self) -> None:
        while True:
            now = time.time()
            for stream in self.streams.values():
                stream.look_after_source(now)
            await asyncio.sleep(WATCH_SECONDS)

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a background task whose failure ends the run."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                self._fail(error)

        task = asyncio.create_task(work, name=name)
        task.add_done_callback(ended)
        return task

    async def _first_attempt_to_connect(self) -> None:
        """So that the first results find a broker, if there is one that answers soon."""
        if self.session is None:
            return
        waits = [
            asyncio.create_task(event.wait()) for event in (self.session.attempted, self._finished)
        ]
        try:
            await asyncio.wait(waits, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _shut_down(
        self,
        ticker: asyncio.Task[None] | None,
        pump: asyncio.Task[None],
        session: asyncio.Task[None] | None,
    ) -> None:
        """Sources first, then engine, then what it answered, then the broker; each has its time."""
        for stream in self.streams.values():
            stream.reader.stop()
            stream.buffer.close()
        self._worker.stop()
        if not await asyncio.to_thread(self._worker.join, ANSWER_SECONDS):
            self._worker.give_up()
            await asyncio.to_thread(self._worker.join, LAST_BATCH_SECONDS)
        await _end(ticker, time.monotonic() + LAST_WORDS_SECONDS)
        await asyncio.to_thread(self.governor.close)
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        await asyncio.to_thread(self._join_readers, time.monotonic() + LAST_WORDS_SECONDS / 8)
        self.stopping = True
        self._pump_wanted.set()
        await asyncio.wait([pump], timeout=(deadline - time.monotonic()) / 2)
        await _end(pump, deadline)
        if self.session:
            await self._say_last_words(self.session, deadline - 0.3)
            self.session.finish(meant=self._failure is None)
        if session:
            await asyncio.wait([session], timeout=max(0.1, deadline - time.monotonic()))
        await _end(session, deadline)

    async def _say_last_words(self, session: MqttSession, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._publish_state(time.time())
                await session.drained()
        except TimeoutError:
            self._on_problem("the broker did not take the last results in time; they are counted")

    def _join_readers(self, deadline: float) -> None:
        """A decode thread that hangs is left behind: it is a daemon and its buffer is closed."""
        for stream in self.streams.values():
            stream.reader.join(max(0.0, deadline - time.monotonic()))

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._on_loop(self._finished.set)

    # --- results out ----------------------------------------------------------------------------

    def _deliver(self, record: ExitRecord) -> None:
        """On the engine's thread."""
        self.outbox.put(record)

    def _wake_pump(self) -> None:
        self._on_loop(self._pump_wanted.set)

    async def _pump(self) -> None:
        while True:
            await self._pump_wanted.wait()
            self._pump_wanted.clear()
            while record := self.outbox.take():
                await self._publish(record)
            self._worker.wake()
            if self.stopping:
                return
            await asyncio.sleep(PUMP_SECONDS)

    async def _publish(self, record: ExitRecord) -> None:
        stream_id, now = record.frame.stream_id, time.time()
        stream = self.streams[stream_id]
        changed = stream.note(record, now)
        if not (self._jsonl or self.session):
            return
        message = stream.encode(record, now)
        if self._jsonl:
            self._jsonl.write(message)
        if self.session is None:
            return
        topic = self.topics.stream(stream_id, "result")
        await self.session.publish_result(topic, message.encode())
        if changed:
            await self._retain(stream_id, "state", stream.latest_answer(record))

    # --- status out -----------------------------------------------------------------------------

    async def _tick_for_ever(self) -> None:
        stats_due = 0.0
        while True:
            now = time.time()
            for stream in self.streams.values():
                stream.tick(now)
            self.governor.tick(now)
            await self._publish_state(now)
            if self.session and now >= stats_due:
                stats_due = now + self._configuration.stats_every_s
                await self.session.publish_passing(self.topics.stats, self._stats(now).encode())
            if self._everything_done():
                self._finished.set()
            await asyncio.sleep(TICK_SECONDS)

    def _everything_done(self) -> bool:
        """Whether every recording has ended and all its results have been passed on."""
        streams = self.streams.values()
        ended = all(s.finished or s.state.reason == "disabled" for s in streams)
        passed_on = not self.outbox.statistics().length and not (
            self.session and self.session.backlog
        )
        return ended and self._worker.snapshot.idle and passed_on

    async def _publish_state(self, now: float) -> None:
        if self.session is None:
            return
        for stream_id, stream in self.streams.items():
            await self._retain(stream_id, "status", stream.status())
            status = self.budgets.get(stream_id)
            if status:
                terms, view = self.governor.terms(stream_id), self.governor.view(stream_id)
                await self._retain(stream_id, "budget", stream.budget(status, terms, view))
            topic = self.topics.stream(stream_id, "availability")
            await self.session.set_retained(topic, stream.availability.encode())

    async def _retain(self, stream_id: str, leaf: str, message: Message) -> None:
        assert self.session
        await self.session.set_retained(self.topics.stream(stream_id, leaf), message.encode())

    def _change_state(self, stream_id: str, state: StreamState) -> None:
        self.streams[stream_id].change_state(state, time.time())
        wanted = state.state != "disabled"  # else it is as it should be
        if wanted and state.message and state.message != self._said.get(stream_id):
            self._on_problem(state.message)
        self._said[stream_id] = state.message or self._said.get(stream_id, "")

    def _info(self) -> Info:
        return Info(
            node=self.topics.node,
            boot_id=self.boot_id,
            version=version("streamexit"),
            started_at=timestamp(self._started_at),
            device=self.device,
            pipelines=sorted({s.plan.pipeline.name for s in self.streams.values()}),
            streams=list(self.streams),
            schemas=[m.model_fields["format"].default for m in MESSAGES.values()],
        )

    def _stats(self, now: float) -> Stats:
        counters = [stream.counters for stream in self.streams.values()]
        dropped: Counter[str] = Counter()
        for one in counters:
            for reason, count in list(one.dropped.items()):  # decode threads go on counting
                dropped[reason] += count
        return Stats(
            node=self.topics.node,
            boot_id=self.boot_id,
            at=timestamp(now),
            uptime_s=now - self._started_at,
            frames=sum(c.frames for c in counters),
            answered=sum(c.answered for c in counters),
            dropped=dict(dropped),
            rows_waiting=self._worker.snapshot.rows_waiting,
            outbox_length=self.outbox.statistics().length,
            results_lost=self.results_lost(),
            networks=[_network_load(*names, lane) for names, lane in self.lanes.items()],
            fairness=self.governor.fairness(),
            allocated_ms_per_s=self.governor.allocated,
        )

    def results_lost(self) -> dict[str, int]:
        """Results that did not reach the broker, by reason."""
        lost: Counter[str] = Counter(self.session.lost if self.session else {})
        outbox = self.outbox.statistics()
        lost["queue_full"] += outbox.dropped
        if self.stopping:
            lost["not_sent"] += outbox.length
        return {reason: count for reason, count in lost.items() if count}

    def _on_loop(self, callback: Callable[..., None], *args: object) -> None:
        """From any thread; after the loop has ended nobody is left to care."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)


def _lane_key(plan: PlannedStream) -> tuple[Path, str]:
    """Streams with the same key share batches."""
    return plan.pipeline.folder, plan.policy.name


def _without_budgets(configuration: NodeConfiguration) -> dict[str, Any]:
    """What a restart is needed for."""
    content = configuration.model_dump()
    for stream in content["streams"]:
        for key in ("budget", "window", "window_s"):
            del stream[key]
    return content


def _device_share(engine: EngineSection) -> DeviceShare | None:
    """What budgets share, if the device is shared out."""
    asked = engine.milliseconds_per_second
    if asked is None:
        return None
    return DeviceShare(AUTO_SHARE if asked == "auto" else asked, engine.admission)


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


async def _end(task: asyncio.Task[None] | None, deadline: float) -> None:
    """Cancel a task and wait for its end, but not for ever."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task], timeout=max(0.1, deadline - time.monotonic()))
