"""What a running node can be asked to do: the effects of the commands, wherever they come from."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import cv2

from streamexit.attached import AttachedStream, Look
from streamexit.config.load import load_configuration
from streamexit.config.overlay import (
    OverlayFile,
    overlay_path,
    parse_section,
    with_stream,
)
from streamexit.config.schema import NodeConfiguration, StreamSection
from streamexit.documents import Document, did_you_mean
from streamexit.drawing import draw_headline, draw_scaled
from streamexit.errors import BudgetError, CommandError, ConfigurationError
from streamexit.governor.governor import Governor
from streamexit.models.pipeline import Pipeline
from streamexit.planning.streams import PlannedStream, load_pipelines, plan_stream
from streamexit.redact import redact
from streamexit.reporter import Reporter
from streamexit.roster import Roster
from streamexit.wire import commands as wire
from streamexit.wire.messages import timestamp

USUAL_WIDTH = 1280
PICTURE_SECONDS = 3.0
"""How long a picture may take to come."""

LOOK_SECONDS = 0.02
FRESH_SECONDS = 1.0
JPEG_QUALITY = 80

RELOADED = ("id", "budget", "window", "window_s", "enabled", "frame_rate")
"""Keys of a stream that take effect without it being opened anew."""

Effect = Callable[[Any, str], Awaitable[Any]]


class NodeOperations:
    """See the module. Commands that change something come one at a time.

    Args:
        document: The configuration as it was read.
        pipelines: Loaded, by name.
        roster: The streams.
        governor: Their budgets.
        reporter: Hears of what changes.
        on_reload: Called with a configuration that was read again; says what of it takes a restart.

    Attributes:
        roster: See above.
        reporter: See above.
    """

    def __init__(
        self,
        document: Document[NodeConfiguration],
        pipelines: Mapping[str, Pipeline],
        *,
        roster: Roster,
        governor: Governor,
        reporter: Reporter,
        on_reload: Callable[[NodeConfiguration], list[str]],
    ) -> None:
        self._document = document
        self._pipelines = pipelines
        self.roster = roster
        self._governor = governor
        self.reporter = reporter
        self._on_reload = on_reload
        self._overlay = OverlayFile(overlay_path(document.path, document.value))
        self._effects: dict[str, Effect] = {
            "info": self._info,
            "list_streams": self._list_streams,
            "add_stream": self._add_stream,
            "remove_stream": self._remove_stream,
            "enable_stream": self._enable_stream,
            "disable_stream": self._disable_stream,
            "set_budget": self._set_budget,
            "set_frame_rate": self._set_frame_rate,
            "reload": self._reload,
            "snapshot": self._snapshot,
        }

    async def carry_out(self, verb: str, command: wire.Command, *, cause: str) -> Any:
        """See `Operations` in `control`."""
        return await self._effects[verb](command, cause)

    # --- what there is --------------------------------------------------------------------------

    async def _info(self, command: wire.Info, cause: str) -> dict[str, Any]:
        session = self.reporter.session
        return {
            "info": self.reporter.info().model_dump(mode="json"),
            "stats": self.reporter.stats(time.time()).model_dump(mode="json"),
            "broker": {
                "state": session.state if session else "none",
                "message": session.problem if session else "",
                "url": repr(session.address) if session else "",
            },
        }

    async def _list_streams(self, command: wire.ListStreams, cause: str) -> dict[str, Any]:
        return {"streams": [self.described(one) for one in self.roster.streams.values()]}

    def described(self, stream: AttachedStream) -> dict[str, Any]:
        """A stream with everything that there is to say of it; no secrets."""
        section = stream.section
        budget = self.reporter.budget(section.id)
        exits = range(len(stream.plan.costs.per_exit))
        return {
            "id": section.id,
            "source": redact(section.source.url),
            "pipeline": stream.plan.pipeline.name,
            "policy": stream.plan.policy.name,
            "exits": len(exits),
            "enabled": stream.schedule.enabled,
            "frame_rate": stream.frame_rate,
            "added": stream.added,
            "status": stream.status().model_dump(mode="json"),
            "budget": budget.model_dump(mode="json") if budget else None,
            "state": stream.latest.model_dump(mode="json") if stream.latest else None,
            "exit_counts": [stream.exit_counts[k] for k in exits],
        }

    def _stream(self, stream_id: str) -> AttachedStream:
        streams = self.roster.streams
        if stream_id not in streams:
            hint = did_you_mean(stream_id, streams) if streams else "there is none"
            raise CommandError("unknown_stream", f"stream {stream_id!r} is unknown; {hint}")
        return streams[stream_id]

    # --- streams come and go --------------------------------------------------------------------

    async def _add_stream(self, command: wire.AddStream, cause: str) -> dict[str, Any]:
        section = parse_section(command.stream, "stream")
        present = self.roster.streams.get(section.id)
        if present is not None and present.section != section:
            raise CommandError(
                "conflict",
                f"stream.id: {section.id!r} is another stream already; remove that first",
            )
        if present is None:
            await self._attach(await self._planned(section), added=True)
            self.reporter.note(section.id, f"added by {cause}")
        if command.persist:
            self._overlay.note_added(dict(command.stream), configured=self._configured(section.id))
        return {"changed": present is None}

    def _configured(self, stream_id: str) -> bool:
        """Whether the user's file has the stream, as far as it was read."""
        sections = enumerate(self._document.value.streams)
        return any(
            section.id == stream_id and ("streams", i) not in self._document.elsewhere
            for i, section in sections
        )

    async def _planned(self, section: StreamSection) -> PlannedStream:
        if section.pipeline not in self._pipelines:
            hint = did_you_mean(section.pipeline, self._pipelines)
            raise ConfigurationError(
                f"stream.pipeline: {section.pipeline!r} is not under pipelines; {hint}"
            )
        document = with_stream(self._document, section, "stream")
        last = len(document.value.streams) - 1
        return await asyncio.to_thread(plan_stream, document, last, self._pipelines)

    async def _attach(self, plan: PlannedStream, *, added: bool) -> None:
        refused = await self.roster.attach(plan)
        if refused:
            raise CommandError("unavailable", f"{plan.section.id} is refused: {refused}")
        self.roster.streams[plan.section.id].added = added
        self.reporter.say_info()

    async def _remove_stream(self, command: wire.RemoveStream, cause: str) -> dict[str, Any]:
        self._stream(command.stream)
        if command.persist:  # first: what cannot be kept is not done
            configured = self._configured(command.stream)
            self._overlay.note_removed(command.stream, configured=configured)
        await self._detach(command.stream)
        self.reporter.note(command.stream, f"removed by {cause}")
        return {"changed": True}

    async def _detach(self, stream_id: str) -> None:
        await self.roster.detach(stream_id)
        self.reporter.forget(stream_id)
        self.reporter.say_info()

    # --- streams change -------------------------------------------------------------------------

    async def _enable_stream(self, command: wire.EnableStream, cause: str) -> dict[str, Any]:
        return self._switch(command.stream, True, command.persist, cause)

    async def _disable_stream(self, command: wire.DisableStream, cause: str) -> dict[str, Any]:
        return self._switch(command.stream, False, command.persist, cause)

    def _switch(self, stream_id: str, enabled: bool, persist: bool, cause: str) -> dict[str, Any]:
        stream = self._stream(stream_id)
        if not stream.plan.source.live:
            raise CommandError(
                "invalid", f"stream {stream_id!r} is a recording; remove_stream ends it for good"
            )
        changed = self.roster.set_enabled(stream, enabled)
        if changed:
            word = "enabled" if enabled else "disabled"
            self.reporter.note(stream_id, f"{word} by {cause}")
        if persist:
            self._overlay.note_changed(stream_id, "enabled", enabled)
        return {"changed": changed, "enabled": enabled}

    async def _set_budget(self, command: wire.SetBudget, cause: str) -> dict[str, Any]:
        stream_id, budget = command.stream, command.build()
        stream = self._stream(stream_id)
        changed = budget != self._governor.budget(stream_id)
        if changed:
            self._governor.set_budget(stream_id, budget, cause=f"by {cause}")
            self.reporter.say_figures(stream_id, stream)
        if command.persist:
            self._overlay.note_changed(stream_id, "budget", self._kept_budget(stream, command))
        terms = self._governor.terms(stream_id)
        return {
            "changed": changed,
            "budget": command.budget,
            "fraction": terms.amount if terms.per == "frame" else None,
        }

    def _kept_budget(self, stream: AttachedStream, command: wire.SetBudget) -> dict[str, Any]:
        """As in a configuration file, with what else is said of it there."""
        held = stream.section.budget
        rest = {"strict", "floor", "cap"} & held.model_fields_set
        return {**command.budget, **{name: getattr(held, name) for name in sorted(rest)}}

    async def _set_frame_rate(self, command: wire.SetFrameRate, cause: str) -> dict[str, Any]:
        stream = self._stream(command.stream)
        self._check_frame_rate(stream.section)
        now = stream.frame_rate
        if now != command.frame_rate:
            self.roster.set_frame_rate(stream, command.frame_rate)
            rate = f"{command.frame_rate:g}" if command.frame_rate else "all"
            self.reporter.note(command.stream, f"frame rate {rate}: by {cause}")
        if command.persist:
            self._overlay.note_changed(command.stream, "frame_rate", command.frame_rate)
        return {"changed": now != command.frame_rate, "frame_rate": command.frame_rate}

    def _check_frame_rate(self, section: StreamSection) -> None:
        if section.every != 1 or section.key_frames:
            key = "key_frames" if section.key_frames else "every"
            raise CommandError(
                "conflict", f"frame_rate: stream {section.id!r} has {key}, which excludes it"
            )

    # --- the configuration again ----------------------------------------------------------------

    async def _reload(self, command: wire.Reload, cause: str) -> dict[str, Any]:
        """Everything is checked before anything is changed."""
        document = await asyncio.to_thread(load_configuration, self._document.path)
        wanted = {section.id: (i, section) for i, section in enumerate(document.value.streams)}
        have = self.roster.streams
        gone = [stream_id for stream_id in have if stream_id not in wanted]
        anew = [
            i
            for stream_id, (i, section) in wanted.items()
            if stream_id not in have or self._needs_opening(have[stream_id], section)
        ]
        pipelines = self._pipelines
        if any(section.pipeline not in pipelines for section in document.value.streams):
            pipelines = await asyncio.to_thread(load_pipelines, document)
        planned = [
            await asyncio.to_thread(plan_stream, document, i, pipelines)
            for i in range(len(document.value.streams))
        ]
        plans = [planned[i] for i in anew]
        restart = self._on_reload(document.value)
        self._document, self._pipelines = document, pipelines
        replaced = [plan.section.id for plan in plans if plan.section.id in have]
        for stream_id in gone:
            await self._detach(stream_id)
        for stream_id in replaced:
            await self.roster.detach(stream_id)
        problems = []
        for plan in plans:
            try:
                i = wanted[plan.section.id][0]
                await self._attach(plan, added=("streams", i) in document.elsewhere)
            except CommandError as error:
                problems.append(str(error))
        problems += self._take_over(document.value, {plan.section.id for plan in plans})
        changes = {
            "added": [plan.section.id for plan in plans if plan.section.id not in replaced],
            "removed": gone,
            "reopened": replaced,
            "problems": problems,
            "needs_restart": restart,
            "from_overlay": sorted(document.elsewhere.values()),
        }
        self.reporter.note(None, f"configuration read again by {cause}: {_summary(changes)}")
        return changes

    def _needs_opening(self, stream: AttachedStream, section: StreamSection) -> bool:
        """Whether something differs that cannot change while the source is read."""
        now = stream.section
        if not stream.plan.source.live and stream.schedule.enabled != section.enabled:
            return True
        return _without(now, RELOADED) != _without(section, RELOADED)

    def _take_over(self, configuration: NodeConfiguration, fresh: set[str]) -> list[str]:
        """What changes in streams that stay as they are."""
        problems = []
        for section in configuration.streams:
            stream = self.roster.streams.get(section.id)
            if stream is None or section.id in fresh:
                continue
            try:
                self._governor.take_over(section)
                stream.section = section
            except BudgetError as error:
                problems.append(f"{section.id}: {error}")
            if stream.plan.source.live:
                self.roster.set_enabled(stream, section.enabled)
            if stream.frame_rate != section.frame_rate:
                self.roster.set_frame_rate(stream, section.frame_rate)
        return problems

    # --- pictures -------------------------------------------------------------------------------

    async def _snapshot(self, command: wire.Snapshot, cause: str) -> dict[str, Any]:
        stream = self._stream(command.stream)
        look = await self.look(stream)
        jpeg, (width, height) = await asyncio.to_thread(
            draw, stream, look, command.width or USUAL_WIDTH
        )
        frame = look.record.frame
        return {
            "jpeg": base64.b64encode(jpeg).decode(),
            "width": width,
            "height": height,
            "frame": frame.index,
            "captured_at": timestamp(frame.captured_at),
            "exit": look.record.exit + 1,
        }

    async def look(self, stream: AttachedStream, *, after: Look | None = None) -> Look:
        """The latest picture with its answer, newer than another if one is given.

        Raises:
            CommandError: None has come in time.
        """
        stream.demand.show_for(PICTURE_SECONDS)
        begun = time.monotonic()
        while True:
            look = stream.look
            if look is not None and look is not after and _is_fresh(look, after, begun):
                return look
            if time.monotonic() - begun > PICTURE_SECONDS or stream.finished:
                break
            await asyncio.sleep(LOOK_SECONDS)
        if stream.look is not None and after is None:
            return stream.look  # of a stream that stands still: the last there was
        state = stream.state
        raise CommandError(
            "unavailable",
            f"stream {stream.id!r} has no picture now: {state.state} "
            f"{state.message or state.reason}".strip(),
        )


def draw(stream: AttachedStream, look: Look, width: int) -> tuple[bytes, tuple[int, int]]:
    """A JPEG of a picture with its answer drawn in, and its width and height. Any thread."""
    preprocessing = stream.plan.pipeline.network.preprocessing
    record, costs = look.record, stream.plan.costs
    drawn = draw_scaled(look.picture, record.prediction, preprocessing, width=width)
    headline = (
        f"{record.frame.stream_id} #{record.frame.index}   exit {record.exit + 1}/{len(costs.per_exit)}   "
        f"{costs.fractions[record.exit]:.0%} of full"
    )
    draw_headline(drawn, headline)
    bgr = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return encoded.tobytes(), (drawn.shape[1], drawn.shape[0])


def _is_fresh(look: Look, after: Look | None, begun: float) -> bool:
    """Newer than another, or, without one, of about now."""
    return after is not None or look.seen_at > begun - FRESH_SECONDS


def _without(section: StreamSection, keys: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(section, name) for name in type(section).model_fields if name not in keys}


def _summary(changes: Mapping[str, Any]) -> str:
    said = [f"{name}: {', '.join(items)}" for name, items in changes.items() if items]
    return "; ".join(said) or "budgets only, or nothing"
