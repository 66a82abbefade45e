"""The budgets of a running node: changed, shared out, explained, and kept over a restart.

Everything here runs on the event loop. Controllers belong to the engine's thread, so whatever
touches one is handed over with `EngineWorker.call`; searching and writing have a thread of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from streamexit.attached import AttachedStream, BudgetView
from streamexit.budget.research import EVERY, FEWEST, Finding, search_again
from streamexit.budget.shadow import agreement_at, agreement_now
from streamexit.budget.sharing import Claim, DeviceShare, jain_index
from streamexit.budget.state_file import StateFile
from streamexit.budget.terms import Terms
from streamexit.config.schema import StreamSection
from streamexit.engine.lanes import StreamLane
from streamexit.engine.worker import EngineWorker
from streamexit.errors import BudgetError, DataError, InputError
from streamexit.exits import Budget
from streamexit.planning.streams import check_bounds, check_reach, terms_of
from streamexit.wire.messages import Agreement, Fairness, timestamp

SHARE_SECONDS = 10.0
"""Between two rounds of sharing the device out."""

KEEP_SECONDS = 30.0
"""Between two looks at what is to be kept."""

SMALLEST_CHANGE = 1e-3
"""Of a share that was given out, before a controller hears of it."""

OTHER_BUDGETS = (0.2, 0.4, 0.6, 0.8)
"""Where between the first exit's cost and the full one the agreement is estimated, too."""


@dataclass
class Governed:
    """A stream whose budget is looked after.

    Attributes:
        stream: It.
        lane: Its lane in the engine.
        budget: As it was asked for, now.
        terms: As it is held, now.
        rate: Frames per second that come, answered or not, since the device was last shared out.
        frames: How many had come then.
        view: What messages say of it.
        searched: Shadow frames when its shares were last searched.
        estimated: Shadow frames when its agreement was last estimated.
    """

    stream: AttachedStream
    lane: StreamLane
    budget: Budget
    terms: Terms
    rate: float
    frames: int = 0
    view: BudgetView = field(default_factory=BudgetView)
    searched: int = 0
    estimated: int = 0


class Governor:
    """See the module.

    Args:
        worker: Whose thread the controllers belong to.
        share: Shares the device out; None leaves every stream its own budget.
        file: Where budgets are kept; None keeps nothing.
        on_problem: Called with a sentence.
        on_change: Called with a stream's id and a sentence on what changed in its budget.
    """

    def __init__(
        self,
        worker: EngineWorker,
        *,
        share: DeviceShare | None,
        file: StateFile | None,
        on_problem: Callable[[str], None],
        on_change: Callable[[str, str], None] = lambda stream_id, sentence: None,
    ) -> None:
        self._on_change = on_change
        self._worker = worker
        self._share = share
        self._file = file
        self._on_problem = on_problem
        self._streams: dict[str, Governed] = {}
        self._kept = self._read()
        self._share_due = 0.0
        self._keep_due = 0.0
        self._collected: Future[dict[str, Any]] | None = None
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="governor")
        self._search: tuple[Governed, Future[Finding | None]] | None = None

    # --- streams come ---------------------------------------------------------------------------

    def attach(self, stream: AttachedStream, lane: StreamLane, now: float) -> str:
        """Look after a stream, before any of its frames is in the engine.

        Returns:
            Why it may not run; empty if it may.
        """
        plan = stream.plan
        governed = Governed(stream, lane, plan.budget, plan.terms, _declared_rate(plan.section))
        self._streams[plan.section.id] = governed
        kept = self._kept.get(plan.section.id)
        if kept:
            self._remember(governed, kept, now)
        refused, terms = self._admit(governed, plan.section, governed.terms, now)
        if not refused:
            governed.terms = terms
            lane.controller.change(terms=terms)
        return refused

    def detach(self, stream_id: str, memory: dict[str, Any] | None) -> None:
        """A stream is gone; what there is to remember of it is kept for when it comes back."""
        del self._streams[stream_id]
        if memory is not None:
            self._kept[stream_id] = memory
        if self._share:
            self._share.leave(stream_id)

    def budget(self, stream_id: str) -> Budget:
        """A stream's budget, as it was asked for."""
        return self._streams[stream_id].budget

    def _remember(self, governed: Governed, kept: Mapping[str, Any], now: float) -> None:
        plan = governed.stream.plan
        try:
            if kept["configured"] == _as_json(plan.budget) != kept["budget"]:
                budget = Budget(float(kept["budget"]["amount"]), kept["budget"]["unit"])
                governed.terms = _checked(governed, plan.section, budget)
                governed.budget = budget
                self._say(
                    governed, f"budget {_in_words(budget)}: kept from before the restart", now
                )
            if kept["made_by"] == _made_by(governed):
                governed.lane.controller.remember(kept["memory"])
        except (KeyError, TypeError, ValueError, InputError) as error:
            self._on_problem(
                f"state_file: what it holds of stream {plan.section.id} is not used: {error}"
            )

    def _admit(
        self, governed: Governed, section: StreamSection, terms: Terms, now: float
    ) -> tuple[str, Terms]:
        """Why a stream may not run under some terms (empty if it may), and what it gets."""
        if self._share is None:
            return "", terms
        claim = _claim(governed, section, terms)
        admitted = self._share.change(claim)
        if admitted.fraction is None:
            return admitted.reason, terms
        if admitted.reason:
            self._on_problem(f"{claim.stream_id}: {admitted.reason}")
            self._say(governed, f"budget shrunk: {admitted.reason}", now)
        return "", replace(terms, amount=admitted.fraction, per="frame")

    # --- budgets change -------------------------------------------------------------------------

    def set_budget(self, stream_id: str, budget: Budget, *, cause: str, now: float) -> None:
        """Give a running stream another budget.

        Raises:
            BudgetError: No such stream, or a budget that it cannot have.
        """
        governed = self._streams.get(stream_id)
        if governed is None:
            raise BudgetError(f"stream {stream_id!r} is unknown; there are {list(self._streams)}")
        self._change(governed, governed.stream.section, budget, cause, now)

    def take_over(self, section: StreamSection, *, now: float) -> None:
        """Budget and window of a stream, from a configuration that was read again.

        Raises:
            BudgetError: See `set_budget`.
        """
        governed = self._streams[section.id]
        if _held(section) != _held(governed.stream.section):
            budget = section.budget.build()
            self._change(governed, section, budget, "the configuration was read again", now)

    def _change(
        self, governed: Governed, section: StreamSection, budget: Budget, cause: str, now: float
    ) -> None:
        terms = _checked(governed, section, budget)
        if governed.stream.state.reason == "no_capacity":
            raise BudgetError("this stream was refused at the start; to admit it takes a restart")
        refused, terms = self._admit(governed, section, terms, now)
        if refused:
            raise BudgetError(f"budget {_in_words(budget)}: {refused}")
        before, held = governed.budget, governed.terms
        governed.budget = budget
        self._apply(governed, terms)
        if (before, held) != (budget, terms):
            self._say(governed, f"budget {_in_words(before)} -> {_in_words(budget)}: {cause}", now)

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

    def _say(self, governed: Governed, change: str, now: float) -> None:
        """Every change is told, and in the budget's message, with its cause."""
        governed.view = replace(governed.view, last_change=change, changed_at=timestamp(now))
        self._on_change(governed.stream.id, change)

    # --- what is lost ---------------------------------------------------------------------------

    def view(self, stream_id: str) -> BudgetView:
        """What there is to say of a stream's budget besides the controller's status."""
        governed = self._streams[stream_id]
        shadow = governed.lane.shadow
        if governed.estimated != shadow.total:
            governed.estimated = shadow.total
            fractions, frames = governed.stream.plan.costs.fractions, shadow.frames
            now = agreement_now(frames, fractions)
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

    def terms(self, stream_id: str) -> Terms:
        """How a stream's budget is held, now."""
        return self._streams[stream_id].terms

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
        return self._share.allocated if self._share else None

    # --- now and then ---------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Share out, search and keep what is due. Called a few times a second."""
        if self._share and now >= self._share_due:
            seconds = now - self._share_due + SHARE_SECONDS
            self._share_out(self._share, seconds)
            self._share_due = now + SHARE_SECONDS
        self._search_shares(now)
        self._keep(now)

    def _share_out(self, share: DeviceShare, seconds: float) -> None:
        """Demand is what comes in: what is answered falls when the device is overloaded."""
        running = {name: g for name, g in self._streams.items() if name in share.fractions}
        for name, governed in running.items():
            came, governed.frames = governed.frames, governed.stream.counters.frames
            if came:
                governed.rate = (governed.frames - came) / seconds
            share.measured(name, 0.0 if governed.stream.finished else governed.rate)
        share.rebalance(
            {name: governed.lane.shadow.frames for name, governed in running.items()},
            {name: governed.stream.plan.costs.fractions for name, governed in running.items()},
        )
        for name, governed in running.items():
            fraction = share.fractions[name]
            if abs(fraction - governed.terms.amount) > SMALLEST_CHANGE:
                self._apply(governed, replace(governed.terms, amount=fraction, per="frame"))

    def _search_shares(self, now: float) -> None:
        if self._search:
            governed, found = self._search
            if found.done():
                self._search = None
                if not self._complain_of(found):
                    self._adopt(governed, found.result(), now)
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

    def _adopt(self, governed: Governed, finding: Finding | None, now: float) -> None:
        if finding is None:
            return
        self._say(governed, finding.sentence(), now)
        if finding.table is not None:
            table, controller = finding.table, governed.lane.controller
            self._hand_over(lambda: controller.change(table=table))

    # --- kept over a restart --------------------------------------------------------------------

    def _read(self) -> dict[str, dict[str, Any]]:
        if self._file is None:
            return {}
        try:
            return self._file.read()
        except DataError as error:
            self._on_problem(f"{error}; it is now {self._file.set_aside()}, budgets start anew")
            return {}

    def _keep(self, now: float) -> None:
        if self._file is None:
            return
        if self._collected is None:
            if now >= self._keep_due:
                self._collected = self._worker.call(self._collect)
        elif self._collected.done():
            self._keep_due = now + KEEP_SECONDS
            collected, self._collected = self._collected, None
            if not self._complain_of(collected):
                self._aside.submit(self._write, collected.result())

    def close(self) -> None:
        """Keep what there is, once the engine has ended."""
        self._aside.shutdown(cancel_futures=True)
        if self._file is not None:
            self._write(self._collect())

    def _collect(self) -> dict[str, Any]:
        """On the engine's thread, or after its end. Streams that are not attached now are kept, too."""
        now = {name: _memory(governed) for name, governed in list(self._streams.items())}
        return {**self._kept, **now}

    def memory_of(self, stream_id: str) -> dict[str, Any]:
        """What there is to remember of a stream. On the engine's thread."""
        return _memory(self._streams[stream_id])

    def _write(self, kept: Mapping[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(kept)
        except OSError as error:
            self._on_problem(f"state_file: cannot be written: {error}")


def _memory(governed: Governed) -> dict[str, Any]:
    return {
        "configured": _as_json(governed.stream.section.budget.build()),
        "budget": _as_json(governed.budget),
        "made_by": _made_by(governed),
        "memory": governed.lane.controller.memory(),
    }


def _checked(governed: Governed, section: StreamSection, budget: Budget) -> Terms:
    """A budget as it would be held.

    Raises:
        BudgetError: The stream cannot have it.
    """
    costs = governed.stream.plan.costs
    if budget.cost_unit != costs.unit and budget.unit != "fraction":
        raise BudgetError(
            f"budget.{budget.unit}: this stream counts {costs.unit}; changing that takes a restart"
        )
    terms = terms_of(section, budget, costs)
    check_reach(terms, costs)
    check_bounds(section, terms)
    return terms


def _held(section: StreamSection) -> tuple[object, ...]:
    """What `Governor.take_over` takes over."""
    return section.budget, section.window, section.window_s


def _declared_rate(section: StreamSection) -> float:
    return section.frame_rate or section.rate


def _claim(governed: Governed, section: StreamSection, terms: Terms) -> Claim:
    plan = governed.stream.plan
    rate = governed.rate or _declared_rate(section)
    fraction = terms.amount / rate if terms.per == "second" else terms.amount
    first = plan.costs.fractions[0]
    fraction = min(fraction, 1.0)
    cap = min(section.budget.cap, fraction) if terms.strict else section.budget.cap
    return Claim(
        stream_id=section.id,
        rate=rate,
        full_ms=plan.costs.full,
        fraction=fraction,
        low=max(first, section.budget.floor or 0.0),
        cap=max(cap, first),
        weight=section.weight,
        limit=terms.amount if terms.per == "second" else math.inf,
    )


def _as_json(budget: Budget) -> dict[str, Any]:
    return {"unit": budget.unit, "amount": budget.amount}


def _in_words(budget: Budget) -> str:
    return f"{budget.unit}={budget.amount:g}"


def _made_by(governed: Governed) -> list[str]:
    plan = governed.stream.plan
    return [plan.pipeline.name, plan.policy.name, plan.policy.digest, plan.costs.unit]
