"""Numbers for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from streamexit.durations import parse_duration
from streamexit.errors import InputError

if TYPE_CHECKING:
    from streamexit.budget.terms import Terms
    from streamexit.exits import CostTable

SHADES = "█▓▒░"


def duration(seconds: float) -> str:
    """90 as "1m30s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def duration_option(text: str) -> float:
    """Seconds of the option --duration.

    Raises:
        InputError: It is none.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InputError(f"--duration: {error}") from error


def stacked(shares: Sequence[float], *, width: int = 12) -> str:
    """Exit shares as one bar, a shade per exit, and as per cent: "███▓▓▒ 50 33 17%"."""
    ends = [round(sum(shares[: k + 1]) * width) for k in range(len(shares))]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    bar = "".join(SHADES[k % len(SHADES)] * length for k, length in enumerate(lengths))
    numbers = " ".join(f"{100 * share:.0f}" for share in shares)
    return f"{bar:<{width}} {numbers}%"


def budget_in_words(terms: Terms, costs: CostTable) -> str:
    """40.0%, of the full network per frame, or 12.5 GFLOPs/s."""
    from streamexit.planning.streams import UNIT_WORDS

    if terms.per == "frame":
        return f"{terms.amount:.1%}"
    return f"{terms.amount * costs.full:.4g} {UNIT_WORDS[costs.unit]}/s"


def budget_as_json(terms: Terms, costs: CostTable) -> dict[str, Any]:
    """The keys `budget` and `budget_fraction` of a report."""
    per_frame = terms.per == "frame"
    budget = {"value": terms.amount * costs.full, "unit": costs.unit, "per": terms.per}
    return {"budget": budget, "budget_fraction": terms.amount if per_frame else None}


def plain_table(*columns: str) -> Table:
    """A table without lines; a column whose name starts with ">" is flush right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        right = name.startswith(">")
        justify: Literal["right", "left"] = "right" if right else "left"
        table.add_column(name.removeprefix(">"), justify=justify, no_wrap=True)
    return table
