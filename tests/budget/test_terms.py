from __future__ import annotations

import pytest

from streamexit.budget.terms import Terms
from streamexit.errors import BudgetError
from streamexit.exits import Budget, CostTable

GFLOPS = CostTable("gflops", (1.0, 2.0, 4.0))
MILLISECONDS = CostTable("milliseconds", (5.0, 10.0, 20.0))


@pytest.mark.parametrize(
    ("budget", "costs", "expected"),
    [
        (Budget(0.4), GFLOPS, Terms(0.4)),
        (Budget(1.0, "gflops_per_frame"), GFLOPS, Terms(0.25)),
        (Budget(10.0, "gflops_per_second"), GFLOPS, Terms(2.5, "second")),
        (Budget(5.0, "milliseconds_per_frame"), MILLISECONDS, Terms(0.25)),
        (Budget(100.0, "milliseconds_per_second"), MILLISECONDS, Terms(5.0, "second")),
    ],
)
def test_a_budget_in_any_unit_is_a_share_of_the_full_network(
    budget: Budget, costs: CostTable, expected: Terms
) -> None:
    """Per frame or per second, in the unit of the costs that it is held by."""
    assert Terms.of(budget, costs) == expected


def test_the_window_and_strictness_come_along() -> None:
    """As they were asked for; together with a window in seconds strict is refused."""
    assert Terms.of(Budget(0.5), GFLOPS, window=50, strict=True) == Terms(
        0.5, window=50, strict=True
    )
    assert Terms.of(Budget(0.5), GFLOPS, window_seconds=9.0).window_seconds == 9.0
    with pytest.raises(BudgetError, match="strict: true counts frames"):
        Terms.of(Budget(0.5), GFLOPS, window_seconds=9.0, strict=True)
