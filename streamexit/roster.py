"""The streams of a node: attached, detached, let go of and taken up again, with the networks they need.

Lives on the event loop. What belongs to the engine's thread is handed over with `EngineWorker.call`.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from streamexit.attached import AttachedStream
from streamexit.backends.opening import BackendOptions, open_backend
from streamexit.budget.controller import BudgetController
from streamexit.config.schema import EngineSection, PublishEvery, StreamSection
from streamexit.engine.engine import Engine
from streamexit.engine.lanes import PipelineLane
from streamexit.engine.worker import EngineWorker, Feed
from streamexit.errors import OperationError
from streamexit.governor.governor import Governor
from streamexit.metrics import StreamCounters
from streamexit.planning.source import max_age, plan_patience
from streamexit.planning.streams import PlannedStream
from streamexit.queues import FrameBuffer, Outbox
from streamexit.schedule import Schedule
from streamexit.sources.demand import Demand
from streamexit.sources.life import StreamState
from streamexit.sources.reader import Reader
from streamexit.sources.sampling import Sampling
from streamexit.wire.encoding import ResultEncoder
from streamexit.wire.thinning import Rule, Thinning

Result = TypeVar("Result")
LaneKey = tuple[Path, str, str]

PATIENT_SECONDS = 1.0
"""How long a frame of a recording that is read as fast as possible waits for a full batch: nobody
waits for it, and half-empty batches would cost everybody."""

WAY_OUT_SECONDS = 10.0
"""How long the frames of a stream that is detached may take to leave the engine."""

LOOK_SECONDS = 0.02
"""Between two looks whether they have."""


class Roster:
    """See the module.

    Args:
        engine: Owned by the worker's thread once that has started.
        worker: Runs it.
        governor: Looks after budgets.
        settings: Of the engine.
        backend: What networks run on.
        node: Id.
        boot_id: Of this run.
        timezone: Of active hours.
        on_state: Called with a stream's id, its reader and the reader's state, from any thread.
        outbox: Its answers go there.
        on_preparation: Called with a sentence before something that takes seconds.

    Attributes:
        streams: Attached, by id.
        device: Where the networks run.
        stopped: Whether the end has begun.
    """

    def __init__(
        self,
        engine: Engine,
        worker: EngineWorker,
        governor: Governor,
        outbox: Outbox,
        *,
        settings: EngineSection,
        backend: BackendOptions,
        node: str,
        boot_id: str,
        timezone: str | None,
        on_state: Callable[[str, Reader, StreamState], None],
        on_preparation: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._worker = worker
        self._governor = governor
        self._outbox = outbox
        self._settings = settings
        self._backend = backend
        self._node = node
        self._boot_id = boot_id
        self._timezone = timezone
        self._on_state = on_state
        self._on_preparation = on_preparation
        self.streams: dict[str, AttachedStream] = {}
        self._lanes: dict[LaneKey, tuple[str, PipelineLane]] = {}
        self._departed: dict[str, tuple[int, int]] = {}
        self.device = ""
        self.stopped = False

    def networks(self) -> list[tuple[tuple[str, str], PipelineLane]]:
        """((pipeline, policy), its lane in the engine) of every network that is loaded.

        A policy that was fitted anew since another stream took it is told from that by its digest.
        """
        found: dict[tuple[str, str], PipelineLane] = {}
        for (_, policy, digest), (name, lane) in self._lanes.items():
            again = (name, policy) in found
            found[name, f"{policy}@{digest}" if again else policy] = lane
        return list(found.items())

    # --- before the engine runs -----------------------------------------------------------------

    def build(self, plans: Iterable[PlannedStream], on_refused: Callable[[str], None]) -> None:
        """Attach the first streams, none of which is read yet."""
        for plan in plans:
            if lane_key(plan) not in self._lanes:
                self._lanes[lane_key(plan)] = self._open_lane(plan)
            stream = self._assemble(plan)
            self._worker.add(stream.feed)
            refused = self._enter(stream)
            if refused:
                state = StreamState("error", "no_capacity", refused)
                stream.change_state(state, time.time())
                on_refused(f"{plan.section.id} is refused: {refused}")
                stream.buffer.close()
        self._governor.give_back()

    def start(self) -> None:
        """Read what is to be read."""
        for stream in self.streams.values():
            self._begin(stream)

    def stop(self) -> None:
        """Read nothing more, and take nothing in."""
        self.stopped = True
        for stream in self.streams.values():
            stream.reader.stop()
            stream.buffer.close()

    def join(self, deadline: float) -> None:
        """Wait for decode threads. One that hangs is left behind: it is a daemon and its buffer is closed."""
        for stream in list(self.streams.values()):
            stream.reader.join(max(0.0, deadline - time.monotonic()))

    # --- while it runs --------------------------------------------------------------------------

    async def open_networks(self, plans: Iterable[PlannedStream]) -> None:
        """Load the networks of streams that are to come: all, or none.

        Raises:
            StreamExitError: One cannot be loaded.
        """
        missing = {lane_key(plan): plan for plan in plans if lane_key(plan) not in self._lanes}
        if missing:
            self._lanes |= await _in_thread(
                lambda: {key: self._open_lane(plan) for key, plan in missing.items()}
            )

    async def attach(self, plan: PlannedStream) -> str:
        """Take another stream in; see `Governor.give_back` for the budget that it had before.

        Returns:
            Why it may not come; empty if it has.

        Raises:
            StreamExitError: Its network cannot be opened, or the node is being stopped.
        """
        await self.open_networks([plan])
        if self.stopped:
            raise OperationError(f"stream {plan.section.id}: the node is being stopped")
        stream = await self._on_engine(lambda: self._assemble(plan))
        refused = self._enter(stream)
        if refused:
            del self.streams[plan.section.id]
            self._governor.detach(plan.section.id, None)
            await self._on_engine(lambda: self._engine.remove_stream(stream.feed.lane))
            return refused
        await self._on_engine(lambda: self._worker.add(stream.feed))
        self._begin(stream)
        return ""

    async def detach(self, stream_id: str, *, for_good: bool) -> AttachedStream:
        """Let a stream go; its frames that are in the engine are still answered.

        Args:
            stream_id: Which.
            for_good: Whether it is not to come back, so that nothing but its numbers is remembered.

        Raises:
            OperationError: They do not come out.
        """
        stream = self.streams[stream_id]
        stream.reader.stop()
        stream.buffer.close()
        deadline = time.monotonic() + WAY_OUT_SECONDS
        while not await self._on_engine(lambda: self._worker.remove(stream.feed)):
            if time.monotonic() > deadline:
                raise OperationError(
                    f"stream {stream_id}: its frames have not left the engine in {WAY_OUT_SECONDS:g} s"
                )
            await asyncio.sleep(LOOK_SECONDS)
        came = self._outbox.came
        while self._outbox.gone < came:  # noqa: ASYNC110 - threads fill it
            await asyncio.sleep(LOOK_SECONDS)  # its last answers are on their way
        seq = stream.feed.lane.next_seq - stream.thinning.left_out
        self._departed[stream_id] = seq, stream.reader.epoch + 1
        memory = await self._on_engine(lambda: self._governor.memory_of(stream_id))
        self._governor.detach(stream_id, memory)
        if for_good:
            self._governor.forget(stream_id)
        del self.streams[stream_id]
        return stream

    def set_enabled(self, stream: AttachedStream, enabled: bool) -> bool:
        """Let go of a live source, or take it up again; whether that is a change."""
        changed = stream.schedule.enabled != enabled
        stream.schedule.enabled = enabled
        stream.look_after_source(time.time())
        return changed

    def set_frame_rate(self, stream: AttachedStream, frame_rate: float | None) -> None:
        """Have at most so many frames per second analysed; all for None. Not of one that is told once."""
        stream.demand.sampling = Sampling(frame_rate)
        in_process = stream.section.decode == "process" or stream.reader.falls_back
        if in_process:  # it is told at each opening
            stream.reader.reopen()

    async def _on_engine(self, work: Callable[[], Result]) -> Result:
        future: Future[Result] = self._worker.call(work)
        return await asyncio.wrap_future(future)

    # --- parts ----------------------------------------------------------------------------------

    def _open_lane(self, plan: PlannedStream) -> tuple[str, PipelineLane]:
        backend = open_backend(
            plan.pipeline,
            plan.policy.scorer,
            self._backend,
            say=lambda sentence: self._on_preparation(f"{plan.pipeline.name}: {sentence}"),
        )
        self.device = backend.device
        lane = PipelineLane(backend, plan.pipeline.build_task(), plan.pipeline.costs)
        return plan.pipeline.name, lane

    def _assemble(self, plan: PlannedStream) -> AttachedStream:
        """The parts of a stream, on the engine's thread where that runs; nothing is read yet."""
        section, stream_id = plan.section, plan.section.id
        counters = StreamCounters()
        buffer = FrameBuffer(
            capacity=section.buffer,
            live=plan.source.live,
            counters=counters,
            wake=self._worker.wake,
        )
        controller = BudgetController(
            plan.table, plan.terms, shadow=section.shadow, stream_id=stream_id
        )
        hurried = plan.source.live or section.pace == "realtime"
        lane = self._engine.add_stream(
            stream_id,
            self._lanes[lane_key(plan)][1],
            controller,
            counters,
            max_wait=self._settings.max_wait_ms / 1000 if hurried else PATIENT_SECONDS,
            costs=plan.costs,
            weight=section.weight,
            deadline=section.deadline_ms / 1000 if hurried else math.inf,
        )
        # (boot, stream, epoch, seq) is unique for ever
        lane.next_seq, first_epoch = self._departed.get(stream_id, (0, 0))
        demand = Demand(unasked=True)
        reader = Reader(
            stream_id,
            plan.source,
            buffer,
            on_state=lambda state: self._on_state(stream_id, reader, state),
            pace=section.pace,
            patience=plan_patience(section),
            max_age=max_age(section, live=plan.source.live),
            fallback=plan.fallback,
            demand=demand,
            first_epoch=first_epoch,
            await_missing=True,
            preprocessing=plan.pipeline.network.preprocessing,
        )
        encode = ResultEncoder(
            node=self._node,
            boot_id=self._boot_id,
            pipeline=plan.pipeline.name,
            num_exits=len(plan.pipeline.costs.per_exit),
            maps=plan.maps,
            cost_unit=plan.costs.unit,
        )
        return AttachedStream(
            plan=plan,
            section=section,
            counters=counters,
            buffer=buffer,
            reader=reader,
            schedule=Schedule(section.enabled, section.active_hours or (), self._timezone),
            encode=encode,
            feed=Feed(lane, buffer),
            demand=demand,
            thinning=Thinning(_rule(section)),
            since=time.time(),
        )

    def _enter(self, stream: AttachedStream) -> str:
        """Into the books; why it may not run, if it may not."""
        self.streams[stream.id] = stream
        return self._governor.attach(stream, stream.feed.lane)

    def _begin(self, stream: AttachedStream) -> None:
        unwanted = stream.schedule.why_not(time.time())
        if not stream.finished and not unwanted:
            stream.reader.start()
        elif unwanted and unwanted[0] == "disabled":
            stream.buffer.finish()  # a node whose recordings have ended does not wait for it


async def _in_thread(work: Callable[[], Result]) -> Result:
    """Like `asyncio.to_thread`, but nothing waits for the thread's end: a conversion may take minutes."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # it is the caller's
            future.set_exception(error)

    threading.Thread(target=run, name="networks", daemon=True).start()
    return await asyncio.wrap_future(future)


def lane_key(plan: PlannedStream) -> LaneKey:
    """Streams with the same key share batches, hence the scorer that their thresholds are for."""
    return plan.pipeline.folder, plan.policy.name, plan.policy.digest


def _rule(section: StreamSection) -> Rule:
    publish = section.publish
    return publish.seconds if isinstance(publish, PublishEvery) else publish
