from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamexit.budget.controller import DEBT_SHARE, BudgetController
from streamexit.budget.passage import Passage
from streamexit.budget.shadow import GRID, is_shadow
from streamexit.budget.terms import Terms
from streamexit.budget.windows import worst_window_error
from streamexit.errors import BudgetError
from streamexit.exits import ALWAYS
from streamexit.scheduling.thresholds import ThresholdTable
from tests.budget.rig import (
    COSTS,
    PATTERNS,
    TABLE,
    make_table,
    play,
    play_delayed,
    regimes,
    uniform,
)


def bound(budget: float, window: int) -> float:
    """The docstring's."""
    limit = max(1.0, DEBT_SHARE * window * budget)
    return (2 * limit + COSTS[-1] - COSTS[0]) / window / budget


@pytest.mark.parametrize("budget", [0.26, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_window_keeps_the_bound(pattern: str, budget: float) -> None:
    """Whatever the scores, any window's mean is within the proven bound of the budget."""
    costs = play(BudgetController(TABLE, Terms(budget)), PATTERNS[pattern], 3000)
    worst = worst_window_error(costs, budget, 300)
    assert worst is not None
    assert worst <= bound(budget, 300)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    budget=st.floats(0.255, 0.995),
    window=st.integers(20, 400),
    switch=st.integers(1, 200),
)
def test_adversary_cannot_break_the_bound(
    seed: int, budget: float, window: int, switch: int
) -> None:
    """Content that jumps between regimes at bad moments stays within the proven bound."""
    controller = BudgetController(TABLE, Terms(budget, window=window))
    costs = play(controller, regimes(seed, switch), 800)
    worst = worst_window_error(costs, budget, window)
    assert worst is not None
    assert worst <= bound(budget, window) + 1e-9


@pytest.mark.parametrize("budget", [0.4, 0.5, 0.8])
@pytest.mark.parametrize("pattern", ["as calibrated", "mostly sure", "drifting"])
def test_late_stages_do_not_spoil_the_budget(pattern: str, budget: float) -> None:
    """With stages that wait for batches of 32, windows are within 5% and the whole within 0.5%."""
    controller = BudgetController(TABLE, Terms(budget))
    costs = play_delayed(controller, PATTERNS[pattern], 3000, delay=32)
    worst = worst_window_error(costs, budget, 300)
    assert worst is not None
    assert worst <= 0.05
    assert sum(costs) / len(costs) == pytest.approx(budget, rel=0.005)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_delay_costs_what_the_docstring_says(pattern: str, budget: float) -> None:
    """With up to 64 frames in flight beyond exit 1, windows stay within 6%, well inside the bound."""
    costs = play_delayed(BudgetController(TABLE, Terms(budget)), PATTERNS[pattern], 2000, delay=32)
    worst = worst_window_error(costs, budget, 300)
    assert worst is not None
    assert worst <= 0.06 < bound(budget, 300) + 64 * (COSTS[2] - COSTS[1]) / 300 / budget


@pytest.mark.parametrize("pattern", ["as calibrated", "mostly sure", "never sure", "always sure"])
def test_cold_start_is_paid_back(pattern: str) -> None:
    """On a clip of 200 frames of unfamiliar content the mean is within 2% of the budget."""
    costs = play(BudgetController(TABLE, Terms(0.5)), PATTERNS[pattern], 200)
    assert sum(costs) / 200 == pytest.approx(0.5, rel=0.02)


def test_offset_does_not_remain_as_debt() -> None:
    """After a lasting change of content the debt returns to about zero, not to an offset."""
    controller = BudgetController(TABLE, Terms(0.5))
    play(controller, PATTERNS["mostly sure"], 3000)
    debts = []
    for i in range(300):
        play(controller, lambda _, k, i=i: PATTERNS["mostly sure"](i, k), 1)  # type: ignore[misc]
        debts.append(controller._debt)
    assert abs(float(np.mean(debts))) < 0.5


def test_unreachable_budget_does_not_wind_up() -> None:
    """Below the first exit's cost every frame leaves there, and no debt piles up."""
    controller = BudgetController(TABLE, Terms(0.1))
    assert set(play(controller, PATTERNS["as calibrated"], 500)) == {0.25}
    assert controller.status.state == "unreachable"
    assert controller._debt == 0


@pytest.mark.parametrize("budget", [1.0, 3.0])
def test_budget_that_does_not_bind(budget: float) -> None:
    """At the full cost or more every frame goes all the way."""
    controller = BudgetController(TABLE, Terms(budget))
    assert set(play(controller, PATTERNS["always sure"], 100)) == {1.0}
    assert controller.status.state == "not_binding"


def test_budget_at_the_first_exit() -> None:
    """Exactly the first exit's cost can be kept, and is."""
    controller = BudgetController(TABLE, Terms(0.25))
    costs = play(controller, PATTERNS["as calibrated"], 1000)
    assert sum(costs) / 1000 <= 0.25 * 1.02


def test_status_tells_the_window() -> None:
    """Mean, shares and count are over the last W frames; the version rises."""
    controller = BudgetController(TABLE, Terms(0.5, window=50))
    before = controller.status
    assert before.mean is None
    costs = play(controller, uniform(5), 120)
    status = controller.status
    assert status.frames == 50
    assert status.mean == pytest.approx(sum(costs[-50:]) / 50)
    assert sum(status.exit_shares) == pytest.approx(1)
    assert status.version > before.version
    assert status.state == "on_budget"


def test_broken_promise_is_owned_up_to() -> None:
    """While frames in flight turn out dearer than expected, the state says saturated."""
    controller = BudgetController(TABLE, Terms(0.5, window=50))
    passages: list[Passage] = [controller.enter(float(i)) for i in range(100)]
    scores = np.linspace(0.3, 0.7, 100)
    stayed = [
        p for p, score in zip(passages, scores, strict=True) if not controller.leaves(p, 0, score)
    ]
    for passage in stayed:
        assert controller.leaves(passage, 2, 0.0)
        controller.settled(passage, 2)
    assert controller.status.state == "saturated"


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_nonsense_budget_is_refused(budget: float) -> None:
    """A budget is a positive number."""
    with pytest.raises(BudgetError, match="positive number"):
        BudgetController(TABLE, Terms(budget))


def test_empty_window_is_refused() -> None:
    """A window has at least one frame."""
    with pytest.raises(BudgetError, match="at least 1 frame"):
        BudgetController(TABLE, Terms(0.5, window=0))


def test_single_exit_network() -> None:
    """With one exit there is nothing to decide."""
    table = ThresholdTable((1.0,), (), (), ())
    controller = BudgetController(table, Terms(1.0))
    passage = controller.enter(0.0)
    assert controller.leaves(passage, 0, 0.0)
    controller.settled(passage, 0)
    assert controller.status.state == "not_binding"


def test_a_debt_under_a_long_window_does_not_outlive_it() -> None:
    """What may be owed over many frames is more than what may be owed over few."""
    controller = BudgetController(TABLE, Terms(0.9, window=5000))
    play(controller, PATTERNS["alternating extremes"], 400)
    controller.change(terms=Terms(0.3, window=50))
    assert abs(controller._debt) <= 1.0
    costs = play(controller, PATTERNS["as calibrated"], 200, begin=400)
    assert sum(costs) / 200 == pytest.approx(0.3, rel=0.04)


@pytest.mark.parametrize("rate", [5.0, 0.1])
def test_a_gap_is_not_taken_for_a_new_rate(rate: float) -> None:
    """After a reconnect the state and the target are what they were, not what the gap would give."""
    controller = BudgetController(TABLE, Terms(5.0, "second", window_seconds=30))
    play(controller, PATTERNS["as calibrated"], 1000, seconds=lambda i: i / 10)
    play(controller, uniform(9), 20, seconds=lambda i: 160 / rate + i / 10)
    status = controller.status
    assert status.state == "on_budget"
    assert status.target == pytest.approx(0.5, rel=0.3)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_windows_of_a_frame_or_two(pattern: str, window: int) -> None:
    """No frame costs just a half, but the mean of many does."""
    controller = BudgetController(TABLE, Terms(0.5, window=window))
    costs = play(controller, PATTERNS[pattern], 1000)
    assert sum(costs) / 1000 == pytest.approx(0.5, rel=0.01)
    assert controller.status.frames == window


@pytest.mark.parametrize(("before", "after"), [(0.4, 0.8), (0.8, 0.4), (0.3, 0.31), (0.5, 1.0)])
@pytest.mark.parametrize("pattern", ["as calibrated", "mostly sure", "drifting"])
def test_budget_changed_at_run_time(pattern: str, before: float, after: float) -> None:
    """From the first frame under the new budget on, windows keep it."""
    controller = BudgetController(TABLE, Terms(before))
    play(controller, PATTERNS[pattern], 1000)
    controller.change(terms=Terms(after))
    costs = play(controller, PATTERNS[pattern], 1000, begin=1000)
    worst = worst_window_error(costs, after, 300)
    assert worst is not None
    assert worst <= bound(after, 300)
    assert controller.status.state == ("not_binding" if after == 1.0 else "on_budget")


@pytest.mark.parametrize("before", [1.0, 0.1])
@pytest.mark.parametrize("inside", [16, 128])
def test_frames_inside_when_a_budget_begins_to_bind_owe_nothing(before: float, inside: int) -> None:
    """They were charged nothing when they came, so nothing is given back for them: no phantom credit."""
    controller = BudgetController(TABLE, Terms(before))
    scores = PATTERNS["as calibrated"]
    play(controller, scores, 500)
    passages = [controller.enter(500.0 + i) for i in range(inside)]
    controller.change(terms=Terms(0.4))
    for i, passage in enumerate(passages):
        left = [k for k in range(3) if controller.leaves(passage, k, scores(500 + i, k))]
        controller.withdrawn(passage, left[0])
    assert controller._debt == 0.0
    costs = play(controller, scores, 600, begin=500 + inside)
    worst = worst_window_error(costs, 0.4, 300)
    assert worst is not None
    assert worst <= bound(0.4, 300)


@pytest.mark.parametrize("remembered", [False, True])
def test_staying_is_charged_at_the_present_budget(remembered: bool) -> None:
    """A budget per second comes to another one per frame once the pace is known, or remembered."""
    terms = Terms(8.0, "second", window_seconds=30)
    slow, alike = BudgetController(TABLE, terms), BudgetController(TABLE, Terms(0.8))
    if remembered:
        slow.remember({**slow.memory(), "pace": 0.1})
    else:
        play(slow, PATTERNS["never sure"], 600, seconds=lambda i: i / 10)
    charged = []
    for controller in (slow, alike):
        passage = controller.enter(60.0)
        assert not controller.leaves(passage, 0, 0.0)
        charged.append(passage.booked)
    assert charged[0] == pytest.approx(charged[1])


def test_state_is_judged_by_what_was_allowed_at_the_time() -> None:
    """Just after a change the window's mean is between two budgets, and nothing is wrong with that."""
    controller = BudgetController(TABLE, Terms(0.4))
    play(controller, PATTERNS["as calibrated"], 600)
    controller.change(terms=Terms(0.8))
    play(controller, PATTERNS["as calibrated"], 150, begin=600)
    assert controller.status.mean == pytest.approx(0.6, rel=0.03)
    assert controller.status.state == "on_budget"


def test_mix_of_exits_follows_drifted_scores() -> None:
    """When all scores rise, the shares of the exits stay what the policy wants at the budget."""
    squeezed = uniform(4)
    controller = BudgetController(TABLE, Terms(0.5))
    play(controller, lambda i, k: 0.9 + 0.1 * squeezed(i, k), 3000)
    wanted = TABLE.shares_at(0.5)
    assert controller.status.exit_shares == pytest.approx(wanted, abs=0.09)


@pytest.mark.parametrize("pattern", ["as calibrated", "mostly sure", "alternating extremes"])
@pytest.mark.parametrize("rate", [10, 20, 30])
def test_budget_per_second(pattern: str, rate: int) -> None:
    """Whatever the frame rate, a second costs what it may, if any mix of exits can."""
    controller = BudgetController(TABLE, Terms(8.0, "second", window_seconds=20))
    costs = play(controller, PATTERNS[pattern], 3000, seconds=lambda i: i / rate)
    expected = min(max(8.0, 0.25 * rate), rate)
    assert sum(costs[500:]) / 2500 * rate == pytest.approx(expected, rel=0.01)
    per_second = controller.status.per_second
    assert per_second == pytest.approx(expected, rel=0.05)
    assert controller.status.state == "on_budget"


@pytest.mark.parametrize(("rate", "state"), [(5, "not_binding"), (50, "unreachable")])
def test_budget_per_second_out_of_reach(rate: int, state: str) -> None:
    """Too slow a stream cannot spend it, too fast a one must overspend; neither is held against it."""
    controller = BudgetController(TABLE, Terms(8.0, "second", window_seconds=20))
    costs = play(controller, PATTERNS["as calibrated"], 1000, seconds=lambda i: i / rate)
    assert controller.status.state == state
    assert costs[-1] == (1.0 if state == "not_binding" else 0.25)
    later = play(controller, uniform(8), 1500, begin=1, seconds=lambda i: 1000 + i / 16)
    assert sum(later[300:]) / 1200 == pytest.approx(0.5, rel=0.02)


def test_a_stall_saves_nothing_up() -> None:
    """After an hour without frames no window is dearer than the bound allows."""
    controller = BudgetController(TABLE, Terms(5.0, "second", window_seconds=30))
    play(controller, PATTERNS["as calibrated"], 1000, seconds=lambda i: i / 10)
    costs = play(controller, uniform(9), 600, seconds=lambda i: 3700 + i / 10)
    limit = max(1.0, DEBT_SHARE * 300 * 0.5)
    assert sum(costs[:300]) <= 5.0 * 30 + 2 * limit + COSTS[2] - COSTS[0] + 1


def test_a_window_in_seconds_holds_so_many_frames() -> None:
    """The status is over the last seconds, however many frames that are."""
    controller = BudgetController(TABLE, Terms(0.5, window_seconds=10))
    play(controller, uniform(5), 400, seconds=lambda i: i / 20)
    assert controller.status.frames == 200
    costs = play(controller, uniform(6), 400, seconds=lambda i: 100 + i / 5)
    assert controller.status.frames == 50
    assert controller.status.mean == pytest.approx(sum(costs[-50:]) / 50)


@pytest.mark.parametrize("window", [1, 7, 60, 300])
@pytest.mark.parametrize("budget", [0.25, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_strict_is_never_exceeded(pattern: str, budget: float, window: int) -> None:
    """No window and no beginning costs more than its budget, and little of it is wasted."""
    controller = BudgetController(TABLE, Terms(budget, window=window, strict=True))
    costs = play(controller, PATTERNS[pattern], 1500)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    assert (sums[window:] - sums[:-window]).max() <= window * budget + 1e-6
    assert all(sums[n] <= n * budget + 1e-6 for n in range(1, window + 1))
    if window == 300:
        assert sum(costs) / 1500 >= 0.96 * budget


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    budget=st.floats(0.26, 0.99),
    window=st.integers(5, 200),
    delay=st.integers(1, 40),
)
def test_strict_holds_with_frames_in_flight(
    seed: int, budget: float, window: int, delay: int
) -> None:
    """Decisions about later frames between two of an earlier one change nothing about it."""
    controller = BudgetController(TABLE, Terms(budget, window=window, strict=True))
    costs = play_delayed(controller, regimes(seed, 17), 600, delay)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    assert (sums[window:] - sums[:-window]).max() <= window * budget + 1e-6


@pytest.mark.parametrize("before", [Terms(0.9), Terms(0.3), Terms(0.8, strict=True)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_strict_from_a_change_on(pattern: str, before: Terms) -> None:
    """What was spared under other terms is not spent; frames that are inside then spend nothing more."""
    controller = BudgetController(TABLE, before)
    play(controller, PATTERNS["always sure"], 700)
    inside = [controller.enter(700.0 + i) for i in range(8)]
    controller.change(terms=Terms(0.5, strict=True))
    for passage in inside:
        assert controller.leaves(passage, 0, 0.0)
    costs = play(controller, PATTERNS[pattern], 900, begin=708)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    assert (sums[300:] - sums[:-300]).max() <= 300 * 0.5 + 1e-6
    assert all(sums[n] <= n * 0.5 + 1e-6 for n in range(1, 301))


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({"amount": 8.0, "per": "second", "strict": True}, "strict"),
        ({"amount": 0.5, "window_seconds": 10.0, "strict": True}, "strict"),
        ({"amount": 0.5, "window_seconds": 0.0}, "window_s: 0.0"),
        ({"amount": 0.5, "window_seconds": float("nan")}, "window_s: nan"),
    ],
)
def test_terms_that_do_not_go_together(terms: dict[str, Any], expected: str) -> None:
    """A mean per window of frames is what strict can promise; windows are of positive length."""
    with pytest.raises(BudgetError, match=expected):
        Terms(**terms)


def test_shadow_frames_go_to_the_end_and_are_charged() -> None:
    """One frame in ten goes all the way; the mean stays at the budget, the bound holds."""
    controller = BudgetController(TABLE, Terms(0.5), shadow=0.1, stream_id="cam")
    passages: list[Passage] = []
    costs, scores = [], uniform(1)
    for i in range(3000):
        passage, k = controller.walk(float(i), (scores(i, k) for k in range(3)))
        passages.append(passage)
        costs.append(COSTS[k])
    shadows = [p for p in passages if p.shadow]
    assert len(shadows) / 3000 == pytest.approx(0.1, abs=0.02)
    assert all(len(p.scores) == 3 and len(p.elsewhere) == GRID for p in shadows)
    assert {p.leaves_at for p in shadows} == {0, 1, 2}
    assert all(costs[p.seq] == 1.0 for p in shadows)
    worst = worst_window_error(costs, 0.5, 300)
    assert worst is not None
    assert worst <= bound(0.5, 300)


def test_shadow_frames_are_charged_when_they_stay() -> None:
    """Before they have reached the end, so that the next decisions know of it."""
    controller = BudgetController(TABLE, Terms(0.5), shadow=1.0, stream_id="cam")
    passage = controller.enter(0.0)
    assert not controller.leaves(passage, 0, 1.0)
    assert controller._debt == pytest.approx(1.0 - 0.5)
    assert not controller.leaves(passage, 1, 1.0)
    assert controller.leaves(passage, 2, 1.0)
    assert controller._debt == pytest.approx(1.0 - 0.5)


def test_a_change_keeps_what_was_learned() -> None:
    """The offset that a stream's content needs, and its recent scores."""
    controller = BudgetController(TABLE, Terms(0.5))
    play(controller, PATTERNS["mostly sure"], 2000)
    before = controller.memory()
    assert abs(before["trim"]) > 0.005
    controller.change(terms=Terms(0.55))
    assert controller.memory() == before


def test_shadow_frames_are_the_same_in_every_run() -> None:
    """Which frames they are depends on the stream's name and not on what they show."""

    def chosen(pattern: str, budget: float, name: str) -> list[int]:
        controller = BudgetController(TABLE, Terms(budget), shadow=0.05, stream_id=name)
        found = []
        for i in range(1000):
            passage, _ = controller.walk(float(i), (PATTERNS[pattern](i, k) for k in range(3)))
            found += [i] if passage.shadow else []
        return found

    assert chosen("as calibrated", 0.5, "cam") == chosen("mostly sure", 0.6, "cam")
    assert chosen("as calibrated", 0.5, "cam") != chosen("as calibrated", 0.5, "other")


def test_what_was_learned_survives_a_restart() -> None:
    """With another run's memory the first window is as good as a later one; nonsense is refused."""
    first = BudgetController(TABLE, Terms(0.5))
    play(first, PATTERNS["mostly sure"], 2000)
    memory = json.loads(json.dumps(first.memory()))
    fresh, second = BudgetController(TABLE, Terms(0.5)), BudgetController(TABLE, Terms(0.5))
    second.remember(memory)
    spent = [play(c, PATTERNS["mostly sure"], 20, begin=2000) for c in (fresh, second)]
    errors = [abs(sum(costs) / 20 - 0.5) for costs in spent]
    assert errors[1] < errors[0]
    for broken in (
        {},
        {**memory, "trim": "x"},
        {**memory, "trim": float("nan")},
        {**memory, "scores": memory["scores"][:1]},
        {**memory, "scores": [[None], []]},
    ):
        with pytest.raises(BudgetError, match="memory of a stream"):
            second.remember(broken)


def test_window_error_worked_by_hand() -> None:
    """Means of three: 1/3, 2/3, 2/3, against a budget of a half."""
    assert worst_window_error([0, 0, 1, 1, 0], 0.5, 3) == pytest.approx(1 / 3)
    assert worst_window_error([1, 0], 0.5, 3) == 0
    assert worst_window_error([], 0.5, 3) is None


@pytest.mark.parametrize("budget", [0.26, 0.5, 0.9])
@pytest.mark.parametrize("pattern", ["as calibrated", "never sure", "alternating extremes"])
def test_shadow_frames_do_not_break_the_bound(pattern: str, budget: float) -> None:
    """Even if all frames are to be such: none is taken while the stream owes too much."""
    controller = BudgetController(TABLE, Terms(budget), shadow=1.0, stream_id="cam")
    costs = play(controller, PATTERNS[pattern], 2000)
    worst = worst_window_error(costs, budget, 300)
    assert worst is not None
    assert worst <= bound(budget, 300)


def test_no_shadow_frames_below_the_first_exit() -> None:
    """Where not even the first exit can be paid, nothing is spent on looking deeper."""
    controller = BudgetController(TABLE, Terms(0.1), shadow=1.0, stream_id="cam")
    assert set(play(controller, PATTERNS["never sure"], 200)) == {0.25}


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_strict_holds_with_shadow_frames(share: float) -> None:
    """They have to be granted like all that goes deeper."""
    controller = BudgetController(
        TABLE, Terms(0.5, window=50, strict=True), shadow=share, stream_id="cam"
    )
    sums = np.concatenate([[0.0], np.cumsum(play(controller, PATTERNS["never sure"], 1000))])
    assert (sums[50:] - sums[:-50]).max() <= 50 * 0.5 + 1e-6


@pytest.mark.parametrize("strict", [False, True])
def test_a_frame_that_is_withdrawn_costs_what_it_has_spent(strict: bool) -> None:
    """And nothing twice: its debt is what is above the budget, or below."""
    for k, cost in enumerate(COSTS[:2]):
        controller = BudgetController(TABLE, Terms(0.5, strict=strict))
        passage = controller.enter(0.0)
        for reached in range(k + 1):
            controller.leaves(passage, reached, 0.0)
        controller.withdrawn(passage, k)
        aim = 0.5 * (0.99 if strict else 1.0)
        assert controller._debt == pytest.approx(cost - aim)
        controller.withdrawn(passage, k)
        assert controller._debt == pytest.approx(cost - aim)


def test_where_nothing_binds_a_withdrawn_frame_owes_nothing() -> None:
    """A stream that may spend everything keeps no debt."""
    controller = BudgetController(TABLE, Terms(1.0))
    passage = controller.enter(0.0)
    controller.leaves(passage, 0, 0.0)
    controller.withdrawn(passage, 0)
    assert controller._debt == 0.0


def test_a_new_table_under_the_same_strict_terms_keeps_what_was_spent() -> None:
    """Exit shares that are searched again give no fresh budget in the middle of a window."""
    controller = BudgetController(TABLE, Terms(0.5, window=100, strict=True))
    costs = play(controller, PATTERNS["never sure"], 150)
    controller.change(table=make_table(seed=5))
    costs += play(controller, PATTERNS["never sure"], 150, begin=150)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    assert (sums[100:] - sums[:-100]).max() <= 100 * 0.5 + 1e-6


@pytest.mark.parametrize("period", [60, 125, 250])
@pytest.mark.parametrize("window", [30, 50, 300])
def test_strict_holds_while_the_budget_moves(window: int, period: int) -> None:
    """A device that is shared out anew does so every few seconds: windows across that are held, too."""
    amounts = (0.5, 0.498)
    controller = BudgetController(TABLE, Terms(amounts[0], window=window, strict=True))
    costs: list[float] = []
    for i in range(3000 // period):
        begin = i * period
        controller.change(terms=Terms(amounts[i % 2], window=window, strict=True))
        costs += play(controller, lambda i, k: float(i % period < period // 2), period, begin=begin)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    assert (sums[window:] - sums[:-window]).max() <= window * 0.5 + 1e-6
    assert sum(costs) / len(costs) >= 0.97 * 0.498


def test_a_memory_comes_back_as_it_was() -> None:
    """Offset, pace and scores; what is owed is forgiven."""
    first = BudgetController(TABLE, Terms(0.5))
    play(first, PATTERNS["mostly sure"], 2000, seconds=lambda i: i / 10)
    memory = json.loads(json.dumps(first.memory()))
    assert abs(memory["trim"]) > 0.005
    second = BudgetController(TABLE, Terms(0.5))
    second.remember(memory)
    assert second.memory() == memory
    assert second._debt == 0.0
    assert second.coordinate == pytest.approx(0.5 + memory["trim"])


def test_a_remembered_pace_counts_from_the_first_frame_on() -> None:
    """A budget per second knows at once what it comes to per frame."""
    first = BudgetController(TABLE, Terms(5.0, "second", window_seconds=30))
    play(first, uniform(1), 600, seconds=lambda i: i / 10)
    second = BudgetController(TABLE, Terms(5.0, "second", window_seconds=30))
    assert second.status.target == pytest.approx(5.0 / 25)
    second.remember(json.loads(json.dumps(first.memory())))
    assert second.status.target == pytest.approx(0.5)


def test_a_remembered_pace_is_not_forgotten_with_two_frames() -> None:
    """It was learned from many: two that came close together are no new rate."""
    controller = BudgetController(TABLE, Terms(5.0, "second", window_seconds=30))
    controller.remember({**controller.memory(), "pace": 0.1})
    play(controller, uniform(1), 2, seconds=lambda i: i / 100)
    assert controller.status.target == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(("trim", "coordinate"), [(5.0, 1.0), (-5.0, 0.25), (0.1, 0.6)])
def test_a_memory_of_another_budget_is_brought_inside(trim: float, coordinate: float) -> None:
    """An offset that this table has no room for would take long to be unlearned."""
    controller = BudgetController(TABLE, Terms(0.5))
    controller.remember({**controller.memory(), "trim": trim})
    assert controller.coordinate == pytest.approx(coordinate)


def test_a_change_of_terms_brings_the_offset_inside() -> None:
    """Under a smaller budget there is less room below it."""
    controller = BudgetController(TABLE, Terms(0.6))
    controller.remember({**controller.memory(), "trim": -0.3})
    controller.change(terms=Terms(0.3))
    assert controller.coordinate == pytest.approx(0.25)


@pytest.mark.parametrize("rate", [5, 10])
def test_what_a_second_costs_is_told_exactly(rate: int) -> None:
    """Frames that all cost the same come to rate times cost, the first frame's time included."""
    controller = BudgetController(TABLE, Terms(50.0, "second", window_seconds=4))
    play(controller, PATTERNS["never sure"], 600, seconds=lambda i: i / rate)
    assert controller.status.frames == 4 * rate
    assert controller.status.per_second == pytest.approx(rate, rel=1e-6)


def test_a_frame_is_not_judged_by_its_own_cost() -> None:
    """What it was charged when it stayed does not send it away at the next exit."""
    controller = BudgetController(TABLE, Terms(0.5))
    passage = controller.enter(0.0)
    before = controller.threshold(controller.coordinate, 1)
    assert not controller.leaves(passage, 0, 0.0)
    after = controller.threshold(controller.coordinate, 1)
    assert after < before - 0.01
    assert not controller.leaves(passage, 1, (before + after) / 2)


SHADOW_FIRST = next(f"cam{n}" for n in range(1000) if is_shadow(f"cam{n}", 0, 0.1))
"""A stream whose first frame is a shadow frame."""


@pytest.mark.parametrize(("scores", "exit_"), [((1.0, 1.0), 0), ((0.0, 1.0), 1), ((0.0, 0.0), 2)])
def test_shadow_frames_tell_where_they_would_have_left(
    scores: tuple[float, float], exit_: int
) -> None:
    """Here and at other budgets: at the first exit that is sure, and at none where none is."""
    controller = BudgetController(TABLE, Terms(0.6), shadow=0.1, stream_id=SHADOW_FIRST)
    passage = controller.enter(0.0)
    for k, score in enumerate((*scores, 0.0)):
        assert controller.leaves(passage, k, score) == (k == 2)
    assert passage.leaves_at == exit_
    assert passage.elsewhere == (exit_,) * GRID
    assert passage.scores == (*scores, 0.0)


def test_where_a_shadow_frame_leaves_deepens_with_the_budget() -> None:
    """A frame that is neither sure nor unsure leaves the later, the more may be spent."""
    controller = BudgetController(TABLE, Terms(0.6), shadow=0.1, stream_id=SHADOW_FIRST)
    passage = controller.enter(0.0)
    for k in range(3):
        controller.leaves(passage, k, 0.5)
    assert list(passage.elsewhere) == sorted(passage.elsewhere)
    assert passage.elsewhere[0] == 0
    assert passage.elsewhere[-1] == 2


def test_other_budgets_are_tried_with_the_offset_that_the_stream_needs() -> None:
    """Content that needs a higher coordinate needs it at other budgets as well."""
    found = []
    for trim in (0.0, 0.2):
        controller = BudgetController(TABLE, Terms(0.6), shadow=0.1, stream_id=SHADOW_FIRST)
        controller.remember({**controller.memory(), "trim": trim})
        passage = controller.enter(0.0)
        for k in range(3):
            controller.leaves(passage, k, 0.5)
        found.append(passage.elsewhere)
    assert all(a <= b for a, b in zip(*found, strict=True))
    assert sum(found[0]) < sum(found[1])


@pytest.mark.parametrize(
    ("shadow", "coordinate"), [(0.0, 0.5), (0.1, 0.4 / 0.9), (0.3, 0.2 / 0.7), (0.4, 0.25)]
)
def test_shadow_frames_are_paid_for_by_the_others(shadow: float, coordinate: float) -> None:
    """From the first frame on, as far down as the first exit goes."""
    controller = BudgetController(TABLE, Terms(0.5), shadow=shadow, stream_id="cam")
    assert controller.coordinate == pytest.approx(coordinate)


def test_a_window_in_seconds_steers_as_one_of_so_many_frames() -> None:
    """At ten frames per second, 30 seconds are 300 frames: the same debt moves as much."""
    coordinates = []
    for terms in (Terms(0.5, window=300), Terms(0.5, window_seconds=30.0)):
        controller = BudgetController(TABLE, terms)
        controller.remember({**controller.memory(), "pace": 0.1})
        for i in range(3):
            controller.leaves(controller.enter(i / 10), 0, 0.0)
        coordinates.append(controller.coordinate)
    assert coordinates[0] < 0.45
    assert coordinates[1] == pytest.approx(coordinates[0])


def test_frames_of_which_nobody_knew_the_time_are_in_no_rate() -> None:
    """Between two budgets per second one per frame was held, and the stream stood still for an hour."""
    per_second = Terms(50.0, "second", window_seconds=30)
    controller = BudgetController(TABLE, per_second)
    play(controller, PATTERNS["never sure"], 100, seconds=lambda i: i / 10)
    controller.change(terms=Terms(1.0))
    play(controller, PATTERNS["never sure"], 20, seconds=lambda i: 3600 + i / 10)
    controller.change(terms=per_second)
    assert controller.status.per_second is None
    play(controller, PATTERNS["never sure"], 100, seconds=lambda i: 3602 + i / 10)
    assert controller.status.per_second == pytest.approx(10.0, rel=0.01)
    assert controller.status.frames == 100


def test_what_a_second_costs_is_told_once_it_is_known() -> None:
    """Frames from before a budget per second have no times; their costs are not divided by others'."""
    controller = BudgetController(TABLE, Terms(0.5, window=50))
    play(controller, PATTERNS["never sure"], 50, seconds=lambda i: i / 10)
    controller.change(terms=Terms(50.0, "second", window=50))
    play(controller, PATTERNS["never sure"], 49, seconds=lambda i: 5 + i / 10)
    assert controller.status.per_second is None
    play(controller, PATTERNS["never sure"], 1, seconds=lambda i: 9.9)
    assert controller.status.per_second == pytest.approx(10.0, rel=0.05)


def test_frames_that_come_all_at_once_leave_a_memory_that_can_be_read() -> None:
    """A recording that is read in one go has no pace to speak of, but some."""
    controller = BudgetController(TABLE, Terms(0.5))
    play(controller, uniform(1), 2000, seconds=lambda i: 5.0)
    memory = controller.memory()
    assert memory["pace"] > 0
    controller.remember(memory)
    assert controller.memory() == memory


def test_an_exit_where_all_are_to_leave_keeps_nobody() -> None:
    """However low a score is, even below all that were seen there."""
    table = ThresholdTable(COSTS, (0.425,), ((0.5, ALWAYS),), ((0.5, 0.5, 0.0),))
    controller = BudgetController(table, Terms(0.425))
    controller.remember({**controller.memory(), "scores": [[0.5] * 256, [0.5] * 256]})
    assert controller.threshold(0.425, 0) == pytest.approx(0.5)
    assert controller.threshold(0.425, 1) < 1e-6
