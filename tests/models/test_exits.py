from __future__ import annotations

import math

import pytest

from streamexit.errors import BudgetError, PipelineError
from streamexit.exits import Budget, CostTable


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("fraction=0.4", Budget(0.4, "fraction")),
        ("gflops_per_frame=5e-2", Budget(0.05, "gflops_per_frame")),
        (" fraction = 1 ", Budget(1.0, "fraction")),
    ],
)
def test_budget_is_read_from_text(text: str, budget: Budget) -> None:
    """A budget on the command line is a unit, an equals sign and a number."""
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.4", "of the form"),
        ("fraction", "of the form"),
        ("fraction=", "of the form"),
        ("fraction=lots", "of the form"),
        ("fraction=1=2", "of the form"),
        ("seconds=1", "'seconds' is unknown; use one of fraction, gflops_per_frame"),
        ("=1", "unknown"),
        ("fraction=0", "positive"),
        ("fraction=-1", "positive"),
        ("fraction=nan", "positive"),
        ("gflops_per_frame=inf", "positive"),
    ],
)
def test_wrong_budget_text_is_refused(text: str, expected: str) -> None:
    """Any other form, unit or number is refused with what would be right."""
    with pytest.raises(BudgetError, match=expected):
        Budget.parse(text)


def test_cost_table_gives_shares_of_the_full_network() -> None:
    """Shares are costs over the last exit's cost, and a GFLOPs budget converts by the same."""
    costs = CostTable("gflops", (1.0, 2.5, 4.0))
    assert costs.full == 4.0
    assert costs.fractions == (0.25, 0.625, 1.0)
    assert Budget(1.0, "gflops_per_frame").as_fraction(costs) == 0.25
    assert Budget(0.7, "fraction").as_fraction(costs) == 0.7


@pytest.mark.parametrize(
    "per_exit",
    [
        (),
        (0.0, 1.0),
        (-1.0, 1.0),
        (1.0, 1.0),
        (2.0, 1.0),
        (1.0, math.nan),
        (math.nan,),
        (1, math.inf),
    ],
)
def test_cost_table_must_rise_and_be_finite(per_exit: tuple[float, ...]) -> None:
    """Costs that are no positive, finite, strictly rising numbers are refused."""
    with pytest.raises(PipelineError, match="positive and strictly rising"):
        CostTable("gflops", per_exit)


def test_a_fraction_above_the_full_network_is_refused() -> None:
    """Whoever writes 40 means 40%, and is told how to write that; 1 is fine, and so are GFLOPs above it."""
    assert Budget(1.0).amount == 1.0
    assert Budget(40.0, "gflops_per_frame").amount == 40.0
    with pytest.raises(BudgetError, match=r"40 is above 1, .* 40% is 0\.4"):
        Budget(40.0)


@pytest.mark.parametrize(
    ("unit", "held_in", "per_second"),
    [
        ("fraction", "gflops", False),
        ("gflops_per_frame", "gflops", False),
        ("gflops_per_second", "gflops", True),
        ("milliseconds_per_frame", "milliseconds", False),
        ("milliseconds_per_second", "milliseconds", True),
    ],
)
def test_every_unit_knows_its_costs(unit: str, held_in: str, per_second: bool) -> None:
    """Which table it is held by, and whether it is per second."""
    budget = Budget(1.0, unit)
    assert (budget.cost_unit, budget.per_second) == (held_in, per_second)


def test_a_stage_costs_what_it_adds() -> None:
    """Stages sum up to the full network."""
    costs = CostTable("gflops", (1.0, 2.5, 4.0))
    assert [costs.of_stage(k) for k in range(3)] == [1.0, 1.5, 1.5]
