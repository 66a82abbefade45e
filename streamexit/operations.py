"""What a running node can be asked to do: the effects of the commands, wherever they come from."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from typing import Any

from streamexit.attached import AttachedStream
from streamexit.config.overlay import (
    OverlayFile,
    changed_section,
    overlay_path,
    parse_section,
    with_stream,
)
from streamexit.config.schema import StreamSection
from streamexit.control.dispatch import HARMLESS
from streamexit.documents import did_you_mean
from streamexit.errors import CommandError, ConfigurationError
from streamexit.governor.governor import Governor
from streamexit.pictures import draw, latest_look
from streamexit.planning.streams import PlannedStream, plan_stream
from streamexit.redact import redact
from streamexit.reloading import Reloading
from streamexit.reporter import Reporter
from streamexit.roster import Roster
from streamexit.wire import commands as wire
from streamexit.wire.messages import timestamp

USUAL_WIDTH = 1280

Effect = Callable[[Any, str], Awaitable[Any]]


class NodeOperations:
    """See the module. Commands that change something come one at a time.

    Args:
        reloading: The streams beside their configuration.
        roster: The streams.
        governor: Their budgets.
        reporter: Hears of what changes.

    Attributes:
        roster: See above.
        reporter: See above.
    """

    def __init__(
        self, reloading: Reloading, *, roster: Roster, governor: Governor, reporter: Reporter
    ) -> None:
        self._reloading = reloading
        self.roster = roster
        self._governor = governor
        self.reporter = reporter
        document = reloading.document
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
        if self.roster.stopped and verb not in HARMLESS:
            raise CommandError("unavailable", "the node is being stopped")
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
            await self._reloading.attach(await self._planned(section), added=True)
            self.reporter.note(section.id, f"added by {cause}")
        if command.persist:
            self._overlay.note_added(dict(command.stream), configured=self._configured(section.id))
        return {"changed": present is None}

    def _configured(self, stream_id: str) -> bool:
        """Whether the user's file has the stream, as far as it was read."""
        document = self._reloading.document
        return any(
            section.id == stream_id and ("streams", i) not in document.elsewhere
            for i, section in enumerate(document.value.streams)
        )

    async def _planned(self, section: StreamSection) -> PlannedStream:
        pipelines = self._reloading.pipelines
        if section.pipeline not in pipelines:
            hint = did_you_mean(section.pipeline, pipelines)
            raise ConfigurationError(
                f"stream.pipeline: {section.pipeline!r} is not under pipelines; {hint}"
            )
        document = with_stream(self._reloading.document, section, "stream")
        last = len(document.value.streams) - 1
        device = self._reloading.device
        return await asyncio.to_thread(plan_stream, document, last, pipelines, device, there=True)

    async def _remove_stream(self, command: wire.RemoveStream, cause: str) -> dict[str, Any]:
        self._stream(command.stream)
        if command.persist:  # first: what cannot be kept is not done
            configured = self._configured(command.stream)
            self._overlay.note_removed(command.stream, configured=configured)
        await self._reloading.detach(command.stream)
        self.reporter.note(command.stream, f"removed by {cause}")
        return {"changed": True}

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
            kept = self._kept_budget(stream, command)
            self._overlay.note_changed(stream_id, "budget", kept)
            # it is what the configuration says now, for a reload and for the state file
            stream.section = changed_section(stream.section, {"budget": kept}, "stream")
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
        self._check_frame_rate(stream)
        now = stream.frame_rate
        if now != command.frame_rate:
            self.roster.set_frame_rate(stream, command.frame_rate)
            rate = f"{command.frame_rate:g}" if command.frame_rate else "all"
            self.reporter.note(command.stream, f"frame rate {rate}: by {cause}")
        if command.persist:
            self._overlay.note_changed(command.stream, "frame_rate", command.frame_rate)
        return {"changed": now != command.frame_rate, "frame_rate": command.frame_rate}

    def _check_frame_rate(self, stream: AttachedStream) -> None:
        section = stream.section
        if stream.told_once:
            raise CommandError(
                "conflict",
                f"frame_rate: stream {section.id!r} is a recording with decode: process, which hears "
                "of it when it is opened only; change it in the configuration file and reload, which "
                "plays it from the beginning",
            )
        if section.every != 1 or section.key_frames:
            key = "key_frames" if section.key_frames else "every"
            raise CommandError(
                "conflict", f"frame_rate: stream {section.id!r} has {key}, which excludes it"
            )

    async def _reload(self, command: wire.Reload, cause: str) -> dict[str, Any]:
        return await self._reloading.reload(cause)

    # --- pictures -------------------------------------------------------------------------------

    async def _snapshot(self, command: wire.Snapshot, cause: str) -> dict[str, Any]:
        stream = self._stream(command.stream)
        look = await latest_look(stream)
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
