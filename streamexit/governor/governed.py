"""A stream whose budget is looked after, and what budget it may have."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamexit.attached import AttachedStream, BudgetView
from streamexit.budget.terms import Terms
from streamexit.config.schema import StreamSection
from streamexit.engine.lanes import StreamLane
from streamexit.errors import BudgetError
from streamexit.exits import Budget
from streamexit.planning.streams import check_bounds, check_reach, terms_of


@dataclass
class Governed:
    """See the module.

    Attributes:
        stream: It.
        lane: Its lane in the engine.
        budget: As it was asked for, now.
        terms: As it is held, now.
        view: What messages say of it.
        searched: Shadow frames when its shares were last searched.
        estimated: Shadow frames, and terms, when its agreement was last estimated.
        refused: Whether the device had no room for it.
        kept: The budget that it had before, until it is given back.
    """

    stream: AttachedStream
    lane: StreamLane
    budget: Budget
    terms: Terms
    view: BudgetView = field(default_factory=BudgetView)
    searched: int = 0
    estimated: tuple[int, Terms | None] = (0, None)
    refused: bool = False
    kept: Budget | None = None

    def checked(self, section: StreamSection, budget: Budget) -> Terms:
        """A budget as it would be held.

        Raises:
            BudgetError: The stream cannot have it.
        """
        costs = self.stream.plan.costs
        if budget.cost_unit != costs.unit and budget.unit != "fraction":
            raise BudgetError(
                f"budget.{budget.unit}: this stream counts {costs.unit}; changing that takes a "
                "restart"
            )
        terms = terms_of(section, budget, costs)
        check_reach(terms, costs)
        check_bounds(section, terms)
        return terms


def in_words(budget: Budget) -> str:
    """As on the command line."""
    return f"{budget.unit}={budget.amount:g}"
