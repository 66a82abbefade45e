"""Commands take turns, and the table says what the best of them took."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.startup import UNIT, measure, table


def test_commands_take_turns_and_the_first_turn_is_forgotten() -> None:
    """Nobody's runs lie together, and a cold file cache is not counted."""
    ran: list[str] = []

    def run(command: Sequence[str]) -> float:
        ran.append(command[0])
        return float(len(ran))

    found = measure({"one": ("a",), "other": ("b",)}, 2, run=run)
    assert ran == ["a", "b"] * 3
    assert found == {"one": [3.0, 5.0], "other": [4.0, 6.0]}


def test_the_table_has_best_median_and_ratio() -> None:
    """The ratio is of the best times, and a row that is not the unit has its own."""
    rows = list(table({UNIT: [2.0, 1.0, 4.0], "ours": [0.3, 0.2, 0.25]}))
    assert rows[2:] == ["| import torch | 1000 | 2000 | 1.00 |", "| ours | 200 | 250 | 0.20 |"]
