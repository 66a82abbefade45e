"""The composition root: a checked configuration becomes a running node.

Threads: one per source (decode), one for the engine, one for the spool, and the event loop for MQTT,
HTTP and timers. They meet in `queues` and in `Delivery` only.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from streamexit.attached import AttachedStream
from streamexit.backends.opening import quietly
from streamexit.budget.status import BudgetStatus
from streamexit.config.schema import NodeConfiguration
from streamexit.control.dispatch import Dispatcher
from streamexit.control.over_mqtt import MqttCommands
from streamexit.documents import Document
from streamexit.engine.engine import Engine
from streamexit.engine.lanes import PipelineLane
from streamexit.engine.worker import EngineWorker
from streamexit.errors import OperationError
from streamexit.exits import ExitRecord
from streamexit.governor.governor import Governor
from streamexit.governor.state_file import StateFile
from streamexit.health import Health
from streamexit.operations import NodeOperations
from streamexit.outlets import make_outlets, open_sinks
from streamexit.planning.sinks import broker_addresses, without_login
from streamexit.planning.streams import load_pipelines, plan_device, plan_share, plan_stream
from streamexit.queues import Outbox
from streamexit.reloading import Reloading
from streamexit.reporter import Reporter
from streamexit.roster import Roster
from streamexit.sinks.broker import EmbeddedBroker
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Delivery
from streamexit.sinks.mqtt import MqttSession
from streamexit.sources.life import StreamState
from streamexit.sources.reader import Reader
from streamexit.wire.incoming import Incoming
from streamexit.wire.messages import Response
from streamexit.wire.topics import Availability, Topics

if TYPE_CHECKING:
    from streamexit.http.server import HttpServer

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
"""From the engine's end to the node's, but for a disk that hangs and a connection that is being made."""


class Node:
    """A running node.

    Args:
        document: The configuration.
        on_problem: Called with one sentence for each stream or broker that fails.
        on_preparation: Called with one sentence before a preparation that takes seconds.

    Attributes:
        boot_id: Of this run.
        topics: Where it publishes.
        broker: The first broker's address; None without one, and before `run`.
        governor: Looks after the budgets.
        reporter: Says how everything is.
        outbox: Between the engine and the sinks.
        dispatcher: Takes commands; None before `run`.
        health: Whether it does its job.
        http: The server; None without one, and before `run`.
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
        self._document = document
        self._configuration = document.value
        self._base = document.path.parent
        self._on_problem = on_problem
        self.boot_id = uuid.uuid4().hex[:16]
        self.topics = Topics(self._configuration.node.prefix, self._configuration.node.id)
        self.broker: BrokerAddress | None = None
        self.dispatcher: Dispatcher | None = None
        self.http: HttpServer | None = None
        self.health = Health()
        self.stopping = False
        self._failure: BaseException | None = None
        self._said: dict[str, str] = {}
        self._commands: MqttCommands | None = None
        engine = Engine(self._deliver, clock=time.monotonic)
        self._worker = EngineWorker(
            engine,
            hold_recordings=lambda: self.reporter.crowded,
            clock=time.monotonic,
            on_failure=self._fail,
        )
        self.outbox = Outbox(capacity=OUTBOX_RESULTS, wake=self._wake_pump)
        settings, kept = self._configuration.engine, self._configuration.state_file
        self.governor = Governor(
            self._worker,
            share=plan_share(settings),
            file=StateFile(self._base / kept) if kept else None,
            on_problem=on_problem,
            on_change=lambda stream_id, sentence: self.reporter.note(stream_id, sentence),
        )
        self._device, self._pipelines = plan_device(document), load_pipelines(document)
        plans = [
            plan_stream(document, i, self._pipelines, self._device)
            for i in range(len(document.value.streams))
        ]
        self._roster = Roster(
            engine,
            self._worker,
            self.governor,
            self.outbox,
            settings=settings,
            backend=self._device.backend,
            node=self.topics.node,
            boot_id=self.boot_id,
            timezone=self._configuration.node.timezone,
            on_state=lambda *change: self._on_loop(self._change_state, *change),
            on_preparation=on_preparation,
        )
        self.reporter = Reporter(
            self.topics,
            self.boot_id,
            outbox=self.outbox,
            roster=self._roster,
            governor=self.governor,
            worker=self._worker,
            stats_every=self._configuration.stats_every_s,
        )
        self._roster.build(plans, on_problem)

    @property
    def streams(self) -> dict[str, AttachedStream]:
        """Attached, by id."""
        return self._roster.streams

    @property
    def lanes(self) -> dict[tuple[str, str], PipelineLane]:
        """Of the engine, by pipeline and policy."""
        return dict(self._roster.networks())

    @property
    def device(self) -> str:
        """Where the networks run."""
        return self._roster.device

    @property
    def session(self) -> MqttSession | None:
        """With the broker; None without one."""
        return self.reporter.session

    @property
    def delivery(self) -> Delivery | None:
        """Of results to the broker."""
        return self.reporter.delivery

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
            OperationError: The engine failed, or the HTTP port is taken.
        """
        self._loop = asyncio.get_running_loop()
        self._finished = asyncio.Event()
        async with AsyncExitStack() as stack:
            operations = self._make_operations()
            self.dispatcher = Dispatcher(self.topics.node, operations)
            await self._open_outlets(stack, self.dispatcher)
            session = self._task(self.session.run(), "mqtt") if self.session else None
            keeper = self._task(self.delivery.run(), "spool") if self.delivery else None
            pump = self._task(self.reporter.pump(), "pump")
            beside: list[asyncio.Task[None]] = []
            try:
                await self._first_attempt_to_connect()
                await self._open_http(stack, operations, self.dispatcher)
                beside.append(self._task(self._tick_for_ever(), "ticker"))
                self._worker.start()
                self._roster.start()
                beside.append(self._task(self._watch_sources(), "sources"))
                ready()
                async with asyncio.timeout(duration):
                    await self._finished.wait()
            except TimeoutError:
                pass
            finally:
                for task in beside:
                    await _end(task, time.monotonic() + LAST_WORDS_SECONDS)
                await self._shut_down(pump, session, keeper)
        if self._failure:
            raise OperationError(f"the node failed: {self._failure}") from self._failure

    def stop(self) -> None:
        """End `run` soon; everything in the engine is still answered. Call it on the loop."""
        self._finished.set()

    async def reload(self, *, cause: str) -> Response:
        """Read the configuration file again; what changed takes effect, or is said to take a restart."""
        assert self.dispatcher
        return await self.dispatcher.answer("reload", {}, cause=cause)

    # --- building -------------------------------------------------------------------------------

    def _make_operations(self) -> NodeOperations:
        roster, governor, reporter = self._roster, self.governor, self.reporter
        reloading = Reloading(
            self._document,
            self._pipelines,
            self._device,
            roster=roster,
            governor=governor,
            reporter=reporter,
            on_reload=self._take_over,
        )
        return NodeOperations(reloading, roster=roster, governor=governor, reporter=reporter)

    async def _open_outlets(self, stack: AsyncExitStack, dispatcher: Dispatcher) -> None:
        def on_problem(problem: str) -> None:  # from a sink's thread
            self._on_loop(self._on_problem, problem)

        sinks = open_sinks(self._document, on_problem)
        for sink in sinks:
            stack.callback(sink.close)
        addresses = await self._find_broker(stack)
        self.broker = next(iter(addresses), None)
        outlets = self.reporter.outlets = make_outlets(
            self._document,
            addresses,
            sinks=sinks,
            topics=self.topics,
            boot_id=self.boot_id,
            on_message=self._hear,
            on_spool_problem=self._on_problem,
            on_broker_problem=self._complain_of_broker,
        )
        settings = self._configuration.mqtt
        if outlets.session and settings and settings.commands:
            self._commands = MqttCommands(
                self.topics,
                dispatcher,
                outlets.session.reply,
                allowed=None if settings.commands is True else settings.commands,
            )
        self.reporter.say_info()

    async def _find_broker(self, stack: AsyncExitStack) -> list[BrokerAddress]:
        settings = self._configuration.mqtt
        if settings is None:
            return []
        if settings.url != "embedded":
            return broker_addresses(settings, self._base)
        embedded = await stack.enter_async_context(EmbeddedBroker())
        return [BrokerAddress("127.0.0.1", embedded.port)]

    async def _open_http(
        self, stack: AsyncExitStack, operations: NodeOperations, dispatcher: Dispatcher
    ) -> None:
        section = self._configuration.http
        if section is None:
            return
        from streamexit.http.server import HttpServer

        token = section.token.get_secret_value() if section.token else None
        self.http = HttpServer(
            operations,
            dispatcher,
            self.health,
            host=section.host,
            port=section.port,
            token=token,
        )
        await stack.enter_async_context(self.http)

    # --- what comes in --------------------------------------------------------------------------

    def _hear(self, message: Incoming) -> None:
        asked = self.topics.parse(message.topic)
        if isinstance(asked, Availability):
            if message.retained and message.payload and asked.stream not in self.streams:
                self.reporter.forget(asked.stream)  # of an earlier run
        elif asked is not None and self._commands:
            self._commands.take(asked, message)
        elif message.payload == b"online" and not message.retained:
            self.reporter.announce_again()  # Home Assistant has started

    def _take_over(self, configuration: NodeConfiguration) -> list[str]:
        """Another broker, or another way to log in; what else changed takes a restart, and is named.

        Raises:
            ConfigurationError: A certificate cannot be read; nothing has changed then.
        """
        asked, had = configuration.mqtt, self._configuration.mqtt
        restart = _takes_restart(self._document.value, configuration)
        if configuration.access != self._configuration.access:
            self.reporter.note(None, "access holds for streams that are opened from now on")
        if without_login(asked) != without_login(self._document.value.mqtt):
            restart.append("mqtt")
        elif asked is not None and asked != had and self.session:
            self.session.addresses = broker_addresses(asked, self._base)
            self.session.reconnect()
        self._configuration = configuration
        return restart

    # --- start and stop -------------------------------------------------------------------------

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
        pump: asyncio.Task[None],
        session: asyncio.Task[None] | None,
        keeper: asyncio.Task[None] | None,
    ) -> None:
        """Sources first, then engine, then what it answered, then the broker; each has its time."""
        self._roster.stop()
        self._worker.stop()
        if not await asyncio.to_thread(self._worker.join, ANSWER_SECONDS):
            self._worker.give_up()
            await asyncio.to_thread(self._worker.join, LAST_BATCH_SECONDS)
        await asyncio.to_thread(self.governor.close)
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        await asyncio.to_thread(self._roster.join, time.monotonic() + LAST_WORDS_SECONDS / 8)
        self.stopping = True
        self.reporter.end()
        await asyncio.wait([pump], timeout=(deadline - time.monotonic()) / 2)
        await _end(pump, deadline)
        if self.session:
            await self._say_last_words(self.session, deadline - 0.3)
            self.session.finish(meant=self._failure is None)
        if session:
            await asyncio.wait([session], timeout=max(0.1, deadline - time.monotonic()))
        await _end(session, deadline)
        if self.delivery and keeper:
            await self.delivery.close()  # which ends the keeper
            await asyncio.wait([keeper])

    async def _say_last_words(self, session: MqttSession, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                self.reporter.say_all()
                if self.delivery:
                    self.delivery.leave_late()
                await session.drained()
        except TimeoutError:
            self._on_problem("the broker did not take the last results in time")

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error  # what follows from the first is none
        self._on_loop(self._finished.set)

    # --- results out ----------------------------------------------------------------------------

    def _deliver(self, record: ExitRecord) -> None:
        """On the engine's thread."""
        self.outbox.put(record)

    def _wake_pump(self) -> None:
        self._on_loop(self.reporter.wanted.set)

    # --- status out -----------------------------------------------------------------------------

    async def _tick_for_ever(self) -> None:
        while True:
            now = time.time()
            self.health.look(self.reporter.pulse(), time.monotonic())
            for stream in self.streams.values():
                stream.tick(now)
            self.governor.tick(time.monotonic())
            self.reporter.tick(now)
            if self._everything_done():
                self._finished.set()
            await asyncio.sleep(TICK_SECONDS)

    def _everything_done(self) -> bool:
        """Whether every recording has ended and all its results have been passed on."""
        ended = all(
            s.finished or s.missing or s.state.reason == "disabled" for s in self.streams.values()
        )
        ended &= self._has_nothing_to_wait_for()
        on_the_way = self.delivery.backlog if self.delivery else 0
        passed_on = not self.outbox.statistics().length and not on_the_way
        return ended and self._worker.snapshot.idle and passed_on

    def _has_nothing_to_wait_for(self) -> bool:
        """Whether what was configured is over: a node that takes commands does not end for want of any."""
        mqtt = self._configuration.mqtt
        takes_commands = self._configuration.http is not None or bool(mqtt and mqtt.commands)
        recordings = [s for s in self.streams.values() if s.finished and not s.added]
        return bool(recordings) or not takes_commands

    def _change_state(self, stream_id: str, reader: Reader, state: StreamState) -> None:
        stream = self.streams.get(stream_id)
        if stream is None or stream.reader is not reader:  # it was detached a moment ago
            return
        stream.change_state(state, time.time())
        self.reporter.change_state(stream_id, stream)
        wanted = state.state != "disabled"  # else it is as it should be
        if wanted and state.message and state.message != self._said.get(stream_id):
            self._on_problem(state.message)
        self._said[stream_id] = state.message or self._said.get(stream_id, "")

    def _complain_of_broker(self, problem: str) -> None:
        assert self.delivery
        assert self.session
        self.reporter.note(None, problem, logged=False)
        if not self.session.connected:
            what = "kept until it is back" if self.delivery.keeps else "lost"
            problem = f"{problem}. Frames go on being answered; their results are {what}"
        self._on_problem(problem)

    def results_lost(self) -> dict[str, int]:
        """Results that did not reach the broker, by reason."""
        return self.reporter.results_lost()

    def _on_loop(self, callback: Callable[..., None], *args: object) -> None:
        """From any thread; after the loop has ended nobody is left to care."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)


def _takes_restart(before: NodeConfiguration, after: NodeConfiguration) -> list[str]:
    """Keys that differ, but for those that a reload sees to."""
    changed = [
        name
        for name in type(after).model_fields
        if name not in ("streams", "mqtt", "secrets", "access", "pipelines")
        and getattr(after, name) != getattr(before, name)
    ]
    known = before.pipelines
    if any(known.get(name, folder) != folder for name, folder in after.pipelines.items()):
        changed.append("pipelines")  # others are loaded when a stream names them
    return changed


async def _end(task: asyncio.Task[None] | None, deadline: float) -> None:
    """Cancel a task and wait for its end, but not for ever."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task], timeout=max(0.1, deadline - time.monotonic()))
