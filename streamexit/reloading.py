"""The streams of a running node beside its configuration: taken in, let go of, and compared with the file again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from streamexit.attached import AttachedStream
from streamexit.config.load import load_configuration
from streamexit.config.schema import NodeConfiguration, StreamSection
from streamexit.documents import Document
from streamexit.errors import BudgetError, CommandError, StreamExitError
from streamexit.governor.governor import Governor
from streamexit.models.pipeline import Pipeline
from streamexit.planning.streams import (
    PlannedDevice,
    PlannedStream,
    load_pipelines,
    plan_stream,
)
from streamexit.reporter import Reporter
from streamexit.roster import Roster

log = logging.getLogger(__name__)

TAKEN_OVER = ("id", "budget", "window", "window_s", "enabled", "frame_rate")
"""Keys of a stream that take effect without it being opened anew."""


class Reloading:
    """See the module.

    Args:
        document: The configuration as it was read.
        pipelines: Loaded, by name.
        device: What streams are planned for; another one takes a restart.
        roster: The streams.
        governor: Their budgets.
        reporter: Hears of what changes.
        on_reload: Called with a configuration that was read again; says what of it takes a restart.

    Attributes:
        document: The configuration as it was read last.
        pipelines: Its pipelines.
        device: See above.
    """

    def __init__(
        self,
        document: Document[NodeConfiguration],
        pipelines: Mapping[str, Pipeline],
        device: PlannedDevice,
        *,
        roster: Roster,
        governor: Governor,
        reporter: Reporter,
        on_reload: Callable[[NodeConfiguration], list[str]],
    ) -> None:
        self.document = document
        self.pipelines = pipelines
        self.device = device
        self._roster = roster
        self._governor = governor
        self._reporter = reporter
        self._on_reload = on_reload

    async def attach(self, plan: PlannedStream, *, added: bool) -> None:
        """Take another stream in, and say so.

        Args:
            plan: Of the stream.
            added: By a command, and not by the file.

        Raises:
            StreamExitError: Its network cannot be opened, or the device has no room.
        """
        await self._take_in(plan, added)
        self._governor.give_back()
        self._reporter.say_info()

    async def _take_in(self, plan: PlannedStream, added: bool) -> None:
        refused = await self._roster.attach(plan)
        if refused:
            raise CommandError("unavailable", f"{plan.section.id} is refused: {refused}")
        self._roster.streams[plan.section.id].added = added

    async def detach(self, stream_id: str) -> None:
        """Let go of a stream for good, and say so.

        Raises:
            OperationError: Its frames do not leave the engine.
        """
        await self._roster.detach(stream_id, for_good=True)
        self._reporter.forget(stream_id)
        self._reporter.say_info()

    async def reload(self, cause: str) -> dict[str, Any]:
        """Read the file again; everything is checked, and networks are opened, before anything is changed.

        Raises:
            StreamExitError: Something is wrong with the file, or a network cannot be opened.
        """
        document = await asyncio.to_thread(load_configuration, self.document.path)
        have, sections = self._roster.streams, document.value.streams
        pipelines = self.pipelines
        if any(section.pipeline not in pipelines for section in sections):
            pipelines = await asyncio.to_thread(load_pipelines, document)
        plans = [
            await asyncio.to_thread(plan_stream, document, i, pipelines, self.device)
            for i in range(len(sections))
        ]
        anew = {
            plan.section.id: (plan, ("streams", i) in document.elsewhere)
            for i, plan in enumerate(plans)
            if self._needs_opening(have.get(plan.section.id), plan.section)
        }
        await self._roster.open_networks(plan for plan, _ in anew.values())
        restart = self._on_reload(document.value)
        self.document, self.pipelines = document, pipelines
        wanted = {section.id for section in sections}
        gone = [name for name in have if name not in wanted]
        staying = [section for section in sections if section.id not in anew]
        changes = await self._replace(gone, staying, anew)
        changes["needs_restart"] = restart
        changes["from_overlay"] = sorted(document.elsewhere.values())
        self._reporter.note(None, f"configuration read again by {cause}: {_summary(changes)}")
        return changes

    def _needs_opening(self, stream: AttachedStream | None, section: StreamSection) -> bool:
        """Whether it is not there, or something differs that cannot change while the source is read."""
        if stream is None:
            return True
        if not stream.plan.source.live and stream.schedule.enabled != section.enabled:
            return True
        if stream.told_once and stream.frame_rate != section.frame_rate:
            return True
        return _opened_with(stream.section) != _opened_with(section)

    async def _replace(
        self,
        gone: list[str],
        staying: list[StreamSection],
        anew: Mapping[str, tuple[PlannedStream, bool]],
    ) -> dict[str, list[str]]:
        """Let streams go, change those that stay, and let others come.

        In this order, so that on a device that is shared out there is room for whoever wants more. One
        that fails leaves the others alone, and is tried next time.
        """
        have, problems = self._roster.streams, list[str]()
        before = dict(have)
        replaced = [name for name in anew if name in have]
        leaving = [*gone, *replaced]
        for name in leaving:
            with _collecting(problems, name):
                await self._roster.detach(name, for_good=name not in anew)
        problems += self._take_over(staying)
        for name, (plan, added) in anew.items():
            if name not in have:
                with _collecting(problems, name):
                    await self._take_in(plan, added)
        self._governor.give_back()
        for name in leaving:
            if name not in have:
                self._reporter.forget(name)
        self._reporter.say_info()
        return {
            "added": [name for name in anew if name in have and name not in replaced],
            "removed": [name for name in gone if name not in have],
            "reopened": [
                name for name in replaced if have.get(name, before[name]) is not before[name]
            ],
            "problems": problems,
        }

    def _take_over(self, sections: list[StreamSection]) -> list[str]:
        """What changes in streams that stay as they are."""
        problems: list[str] = []
        for section in self._governor.lowered_first(sections):
            stream = self._roster.streams[section.id]
            with _collecting(problems, section.id):
                if stream.frame_rate != section.frame_rate:
                    self._roster.set_frame_rate(stream, section.frame_rate)
                try:
                    self._governor.take_over(section)
                    stream.section = section
                except BudgetError as error:
                    problems.append(f"{section.id}: {error}")
                if stream.plan.source.live:
                    self._roster.set_enabled(stream, section.enabled)
        return problems


@contextmanager
def _collecting(problems: list[str], stream_id: str) -> Iterator[None]:
    """What goes wrong with one stream becomes a sentence."""
    try:
        yield
    except StreamExitError as error:
        problems.append(str(error))
    except Exception as error:  # a defect of ours must not take the other streams along
        log.exception("stream %s: the reload failed", stream_id)
        problems.append(
            f"{stream_id}: {type(error).__name__}: a defect of the node; its log has more"
        )


def _opened_with(section: StreamSection) -> dict[str, Any]:
    return {
        name: getattr(section, name)
        for name in type(section).model_fields
        if name not in TAKEN_OVER
    }


def _summary(changes: Mapping[str, Any]) -> str:
    said = [f"{name}: {', '.join(items)}" for name, items in changes.items() if items]
    return "; ".join(said) or "budgets only, or nothing"
