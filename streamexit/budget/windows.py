"""How far windows were off their budget."""

from __future__ import annotations

from collections.abc import Sequence


def worst_window_error(costs: Sequence[float], budget: float, window: int) -> float | None:
    """Largest |mean - budget| / budget over any `window` consecutive costs.

    Over all of them when there are fewer than `window`; None when there are none.
    """
    if not costs:
        return None
    size = min(window, len(costs))
    current = sum(costs[:size])
    worst = abs(current / size - budget)
    for i in range(size, len(costs)):
        current += costs[i] - costs[i - size]
        worst = max(worst, abs(current / size - budget))
    return worst / budget
