"""Keeping over a restart what budgets were changed to, and what was learned of the streams.

It is collected on the engine's thread, and written on another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from streamexit.engine.worker import EngineWorker
from streamexit.errors import BudgetError, DataError
from streamexit.exits import Budget
from streamexit.governor.governed import Governed
from streamexit.governor.state_file import StateFile

KEEP_SECONDS = 30.0
"""Between two looks at what is to be kept."""

Memory = dict[str, Any]
"""Of one stream, for JSON."""


class Keeper:
    """See the module. Streams that were detached are remembered, too.

    Args:
        file: Where to; None keeps nothing over a restart.
        worker: Whose thread the controllers belong to.
        aside: Writes.
        on_problem: Called with a sentence.
    """

    def __init__(
        self,
        file: StateFile | None,
        *,
        worker: EngineWorker,
        aside: ThreadPoolExecutor,
        on_problem: Callable[[str], None],
    ) -> None:
        self._file = file
        self._worker = worker
        self._aside = aside
        self._on_problem = on_problem
        self._due = 0.0
        self._collected: Future[dict[str, Memory]] | None = None
        self._kept = self._read()

    def note(self, stream_id: str, memory: Memory) -> None:
        """A stream is gone, but may come back."""
        self._kept[stream_id] = memory

    def forget(self, stream_id: str) -> None:
        """A stream is gone for good; another of its name is not it."""
        self._kept.pop(stream_id, None)

    def restore(self, governed: Governed) -> Budget | None:
        """Let a stream go on with what was learned of it, before any of its frames is in the engine.

        Returns:
            The budget that it had, if that is not the one that is configured.

        Raises:
            InputError: What was kept cannot be used; nothing has changed then.
        """
        kept, plan = self._kept.get(governed.stream.id), governed.stream.plan
        if kept is None:
            return None
        budget = None
        try:
            if kept["configured"] == _as_json(plan.budget) != kept["budget"]:
                budget = Budget(float(kept["budget"]["amount"]), kept["budget"]["unit"])
                governed.checked(plan.section, budget)
            if kept["made_by"] == _made_by(governed):
                governed.lane.controller.remember(kept["memory"])
        except (KeyError, TypeError, ValueError) as error:
            raise BudgetError(repr(error)) from error
        return budget

    def tick(self, now: float, streams: Mapping[str, Governed]) -> None:
        """Keep what is due; `now` in monotonic seconds."""
        if self._file is None:
            return
        if self._collected is None:
            if now >= self._due:
                self._collected = self._worker.call(lambda: self._collect(streams))
        elif self._collected.done():
            self._due = now + KEEP_SECONDS
            collected, self._collected = self._collected, None
            error = collected.exception()
            if error is None:
                self._aside.submit(self._write, self._file, collected.result())
            else:
                self._on_problem(f"state_file: {error!r}")

    def close(self, streams: Mapping[str, Governed]) -> None:
        """Keep what there is, once the engine has ended."""
        if self._file is not None:
            self._write(self._file, self._collect(streams))

    def _read(self) -> dict[str, Memory]:
        if self._file is None:
            return {}
        try:
            return self._file.read()
        except DataError as error:
            self._on_problem(f"{error}; it is now {self._file.set_aside()}, budgets start anew")
            return {}

    def _collect(self, streams: Mapping[str, Governed]) -> dict[str, Memory]:
        """On the engine's thread, or after its end. Streams that do not run now are kept, too."""
        running = [one for one in list(streams.values()) if not one.refused]
        return {**self._kept, **{one.stream.id: memory_of(one) for one in running}}

    def _write(self, file: StateFile, kept: Mapping[str, Memory]) -> None:
        try:
            file.write(kept)
        except OSError as error:
            self._on_problem(f"state_file: cannot be written: {error}")
        except Exception as error:  # a defect of ours must not vanish, nor hold up the node's end
            self._on_problem(f"state_file: {error!r}")


def memory_of(governed: Governed) -> Memory:
    """What there is to remember of a stream. On the engine's thread."""
    return {
        "configured": _as_json(governed.stream.section.budget.build()),
        "budget": _as_json(governed.budget),
        "made_by": _made_by(governed),
        "memory": governed.lane.controller.memory(),
    }


def _as_json(budget: Budget) -> dict[str, Any]:
    return {"unit": budget.unit, "amount": budget.amount}


def _made_by(governed: Governed) -> list[str]:
    plan = governed.stream.plan
    return [plan.pipeline.name, plan.policy.name, plan.policy.digest, plan.costs.unit]
