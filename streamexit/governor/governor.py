"""Looks after the budgets of a node's streams.

Everything here runs on the event loop. Controllers belong to the engine's thread, so whatever
touches one is handed over with `EngineWorker.call`; searching and writing have a thread of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from streamexit.attached import AttachedStream, BudgetView
from streamexit.budget.research import EVERY, FEWEST, Finding, search_again
from streamexit.budget.shadow import agreement_at, agreement_now
from streamexit.budget.sharing import DeviceShare, jain_index
from streamexit.budget.terms import Terms
from streamexit.config.schema import StreamSection
from streamexit.engine.lanes import StreamLane
from streamexit.engine.worker import EngineWorker
from streamexit.errors import BudgetError, InputError
from streamexit.exits import Budget
from streamexit.governor.device import DeviceSharing
from streamexit.governor.governed import Governed, in_words
from streamexit.governor.keeper import Keeper, memory_of
from streamexit.governor.state_file import StateFile
from streamexit.wire.messages import Agreement, Fairness, timestamp

OTHER_BUDGETS = (0.2, 0.4, 0.6, 0.8)
"""Where between the first exit's cost and the full one the agreement is estimated, too."""


class Governor:
    """See the module.

    Args:
        worker: Whose thread the controllers belong to.
        share: Shares the device out; None leaves every stream its own budget.
        file: Where budgets are kept; None keeps nothing.
        on_problem: Called with a sentence.
        on_change: Called with a stream's id and a sentence on what changed in its budget.
        wall_clock: Unix time, for when something changed.
    """

    def __init__(
        self,
        worker: EngineWorker,
        *,
        share: DeviceShare | None,
        file: StateFile | None,
        on_problem: Callable[[str], None],
        on_change: Callable[[str, str], None] = lambda stream_id, sentence: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._worker = worker
        self._on_problem = on_problem
        self._on_change = on_change
        self._wall_clock = wall_clock
        self._streams: dict[str, Governed] = {}
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="governor")
        self._sharing = DeviceSharing(share) if share else None
        self._keeper = Keeper(file, worker=worker, aside=self._aside, on_problem=on_problem)
        self._search: tuple[Governed, Future[Finding | None]] | None = None

    # --- streams come and go --------------------------------------------------------------------

    def attach(self, stream: AttachedStream, lane: StreamLane) -> str:
        """Look after a stream under its configured budget, before any of its frames is in the engine.

        Once all that come at the same time are attached, `give_back` is to be called.

        Returns:
            Why it may not run; empty if it may.
        """
        plan = stream.plan
        governed = self._streams[stream.id] = Governed(stream, lane, plan.budget, plan.terms)
        refused, terms = self._admit(governed, plan.section, governed.terms)
        governed.refused = bool(refused)
        if not refused:
            governed.terms = terms
            lane.controller.change(terms=terms)
            with self._not_using(stream.id):
                governed.kept = self._keeper.restore(governed)
        return refused

    def give_back(self) -> None:
        """Let streams that were attached have the budgets that commands had given them, if there were any.

        Not before all are there: what one had must not take the room of others that are still to come.
        """
        returning = [(one, one.kept) for one in self._streams.values() if one.kept is not None]
        for governed, budget in sorted(
            returning, key=lambda pair: self._rise(pair[0], pair[0].stream.section, pair[1])
        ):
            governed.kept = None
            with self._not_using(governed.stream.id):
                self._change(
                    governed, governed.stream.section, budget, "kept from before the restart"
                )

    @contextmanager
    def _not_using(self, stream_id: str) -> Iterator[None]:
        """What was kept and cannot be used is said, and ends nothing."""
        try:
            yield
        except InputError as error:
            self._on_problem(
                f"state_file: what it holds of stream {stream_id} is not used: {error}"
            )

    def detach(self, stream_id: str, memory: dict[str, Any] | None) -> None:
        """A stream is gone; what there is to remember of it is kept for when it comes back.

        None adds nothing to what was kept of it before.
        """
        del self._streams[stream_id]
        if memory is not None:
            self._keeper.note(stream_id, memory)
        if self._sharing:
            self._sharing.leave(stream_id)

    def forget(self, stream_id: str) -> None:
        """A stream that was detached does not come back: another of its name begins anew."""
        self._keeper.forget(stream_id)

    def memory_of(self, stream_id: str) -> dict[str, Any]:
        """What there is to remember of a stream. On the engine's thread."""
        return memory_of(self._streams[stream_id])

    def _admit(self, governed: Governed, section: StreamSection, terms: Terms) -> tuple[str, Terms]:
        """Why a stream may not run under some terms (empty if it may), and what it gets."""
        if self._sharing is None:
            return "", terms
        admitted = self._sharing.admit(governed, section, terms)
        if admitted.fraction is None:
            return admitted.reason, terms
        if admitted.reason:
            self._on_problem(f"{section.id}: {admitted.reason}")
            self._say(governed, f"budget shrunk: {admitted.reason}")
        return "", self._sharing.held(section.id, terms)

    # --- budgets change -------------------------------------------------------------------------

    def budget(self, stream_id: str) -> Budget:
        """A stream's budget, as it was asked for."""
        return self._streams[stream_id].budget

    def terms(self, stream_id: str) -> Terms:
        """How a stream's budget is held, now."""
        return self._streams[stream_id].terms

    def set_budget(self, stream_id: str, budget: Budget, *, cause: str) -> None:
        """Give a running stream another budget.

        Raises:
            BudgetError: No such stream, or a budget that it cannot have.
        """
        governed = self._streams.get(stream_id)
        if governed is None:
            raise BudgetError(f"stream {stream_id!r} is unknown; there are {list(self._streams)}")
        self._change(governed, governed.stream.section, budget, cause)

    def take_over(self, section: StreamSection) -> None:
        """Budget and window of a stream, from a configuration that was read again.

        Raises:
            BudgetError: See `set_budget`.
        """
        governed = self._streams[section.id]
        budget = _asked(governed, section)
        if budget is not None:
            self._change(governed, section, budget, "the configuration was read again")

    def lowered_first(self, sections: Iterable[StreamSection]) -> list[StreamSection]:
        """Sections in the order in which they can be taken over: who asks for less makes room for the others."""

        def rise(section: StreamSection) -> float:
            governed = self._streams[section.id]
            budget = _asked(governed, section)
            return 0.0 if budget is None else self._rise(governed, section, budget)

        return sorted(sections, key=rise)

    def _rise(self, governed: Governed, section: StreamSection, budget: Budget) -> float:
        """How much more of a device that is shared out a stream would be promised, in ms/s."""
        if self._sharing is None:
            return 0.0
        try:
            return self._sharing.rise(governed, section, governed.checked(section, budget))
        except BudgetError:  # which is said when it is given the budget
            return 0.0

    def _change(
        self, governed: Governed, section: StreamSection, budget: Budget, cause: str
    ) -> None:
        terms = governed.checked(section, budget)
        if governed.refused:
            raise BudgetError("this stream was refused at the start; to admit it takes a restart")
        refused, terms = self._admit(governed, section, terms)
        if refused:
            raise BudgetError(f"budget {in_words(budget)}: {refused}")
        before, held = governed.budget, governed.terms
        governed.budget = budget
        self._apply(governed, terms)
        if (before, held) != (budget, terms):
            self._say(governed, f"budget {in_words(before)} -> {in_words(budget)}: {cause}")

    def _apply(self, governed: Governed, terms: Terms) -> None:
        governed.terms = terms
        controller = governed.lane.controller
        self._hand_over(lambda: controller.change(terms=terms))

    def _hand_over(self, work: Callable[[], None]) -> None:
        """To the engine's thread; an error there is said, and ends nothing."""
        self._worker.call(work).add_done_callback(self._complain_of)

    def _complain_of(self, future: Future[Any]) -> bool:
        """Whether work in another thread failed."""
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._on_problem(f"budgets: {error!r}")
        return error is not None or future.cancelled()

    def _say(self, governed: Governed, change: str) -> None:
        """Every change is told, and in the budget's message, with its cause."""
        now = timestamp(self._wall_clock())
        governed.view = replace(governed.view, last_change=change, changed_at=now)
        self._on_change(governed.stream.id, change)

    # --- what is lost ---------------------------------------------------------------------------

    def view(self, stream_id: str) -> BudgetView:
        """What there is to say of a stream's budget besides the controller's status."""
        governed = self._streams[stream_id]
        shadow, terms = governed.lane.shadow, governed.terms
        if shadow.total and governed.estimated != (shadow.total, terms):
            governed.estimated = shadow.total, terms
            fractions, frames = governed.stream.plan.costs.fractions, shadow.frames
            held = terms.amount if terms.per == "frame" else frames[-1].budget
            now = agreement_now(frames, fractions, held)
            low = fractions[0]
            others = [low + place * (1 - low) for place in OTHER_BUDGETS]
            governed.view = replace(
                governed.view,
                shadow_frames=len(frames),
                agreement=Agreement.model_validate(now, from_attributes=True),
                agreement_at=[
                    Agreement.model_validate(at, from_attributes=True)
                    for at in agreement_at(frames, fractions, others)
                ],
            )
        return governed.view

    def fairness(self) -> Fairness | None:
        """How evenly the streams are served; None without shadow frames."""
        found = {
            name: view.agreement.value
            for name in self._streams
            if (view := self.view(name)).agreement is not None
        }
        if not found:
            return None
        worst = min(found, key=found.__getitem__)
        return Fairness(
            jain=jain_index(list(found.values())),
            worst_stream=worst,
            worst_agreement=found[worst],
        )

    @property
    def allocated(self) -> float | None:
        """Milliseconds of the device per second that budgets add up to, if it is shared out."""
        return self._sharing.allocated if self._sharing else None

    # --- now and then ---------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Share out, search and keep what is due at `now`, in monotonic seconds.

        Called a few times a second.
        """
        self._share_out(now)
        self._search_shares()
        self._keeper.tick(now, self._streams)

    def close(self) -> None:
        """Keep what there is, once the engine has ended."""
        self._aside.shutdown(cancel_futures=True)
        self._keeper.close(self._streams)

    def _share_out(self, now: float) -> None:
        changed = self._sharing.round(self._streams, now) if self._sharing else {}
        for name, terms in changed.items():
            governed = self._streams[name]
            before = governed.terms.amount
            self._apply(governed, terms)
            per = " per second" if terms.per == "second" else ""
            self._say(
                governed,
                f"budget {before:.1%} -> {terms.amount:.1%} of the full network{per}: the device was "
                "shared out anew",
            )

    def _search_shares(self) -> None:
        if self._search:
            governed, found = self._search
            if found.done():
                self._search = None
                if not self._complain_of(found):
                    self._adopt(governed, found.result())
            return
        for governed in self._streams.values():
            shadow, terms = governed.lane.shadow, governed.terms
            table = governed.lane.controller.table
            due = shadow.total >= max(FEWEST, governed.searched + EVERY)
            if due and terms.per == "frame" and table.low < terms.amount < table.high:
                governed.searched = shadow.total
                work = self._aside.submit(search_again, shadow.frames, table, terms.amount)
                self._search = governed, work
                return

    def _adopt(self, governed: Governed, finding: Finding | None) -> None:
        if finding is None:
            return
        self._say(governed, finding.sentence())
        if finding.table is not None:
            table, controller = finding.table, governed.lane.controller
            self._hand_over(lambda: controller.change(table=table))


def _asked(governed: Governed, section: StreamSection) -> Budget | None:
    """The budget that a stream is to have by a section that was read again; None if nothing changes."""
    had = governed.stream.section
    if _held(section) != _held(had):
        return section.budget.build()
    return governed.budget if section.frame_rate != had.frame_rate else None  # for other frames


def _held(section: StreamSection) -> tuple[object, ...]:
    return section.budget, section.window, section.window_s
