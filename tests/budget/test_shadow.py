from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamexit.budget.controller import BudgetController
from streamexit.budget.research import FEWEST, search_again
from streamexit.budget.shadow import (
    KEPT,
    ShadowFrame,
    ShadowLog,
    agreement_at,
    agreement_now,
    interval,
    is_shadow,
)
from streamexit.budget.terms import Terms
from streamexit.scheduling.thresholds import ThresholdTable, build_table
from tests.budget.rig import COSTS, TABLE


class Camera:
    """Frames whose early answers agree with the last one's the more often, the higher the score."""

    def __init__(self, seed: int, frames: int) -> None:
        random = np.random.default_rng(seed)
        self.scores = random.random((frames, 3))
        right = random.random((frames, 2)) < 0.4 + 0.6 * self.scores[:, :2]
        self.agreement = np.column_stack([right, np.ones(frames)]).astype(float)

    def play(
        self, table: ThresholdTable, budget: float, share: float, name: str
    ) -> tuple[ShadowLog, float, float]:
        """Shadow frames, true agreement of what the scores decide, and mean cost."""
        controller = BudgetController(table, Terms(budget), shadow=share, stream_id=name)
        log, exits, cost = ShadowLog(), [], 0.0
        for i, row in enumerate(self.scores.tolist()):
            passage, k = controller.walk(float(i), row)
            cost += COSTS[k]
            assert passage.leaves_at is not None
            exits.append(passage.leaves_at)
            if passage.shadow:
                seen = tuple(self.agreement[i].tolist())
                log.add(
                    ShadowFrame(
                        passage.scores, seen, passage.leaves_at, passage.elsewhere, passage.assumed
                    )
                )
        true = float(self.agreement[np.arange(len(exits)), exits].mean())
        return log, true, cost / len(exits)


def test_the_share_that_is_asked_for_is_chosen() -> None:
    """One in twenty, and none or all where that is asked for."""
    assert sum(is_shadow("cam", i, 0.05) for i in range(20_000)) == pytest.approx(1000, rel=0.1)
    assert not any(is_shadow("cam", i, 0.0) for i in range(1000))
    assert all(is_shadow("cam", i, 1.0) for i in range(1000))


def test_interval_is_wilsons() -> None:
    """Worked by hand for 8 of 10 (0.490 to 0.943), and never outside of 0 to 1."""
    assert interval(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval(1.0, 5)[1] == 1.0
    assert interval(0.0, 5)[0] == pytest.approx(0.0, abs=1e-12)


def test_intervals_cover_the_truth() -> None:
    """Of 60 streams some 57 have their true agreement inside, now and at other budgets."""
    now, elsewhere = [], []
    for seed in range(60):
        camera = Camera(seed, 3000)
        log, true, _ = camera.play(TABLE, 0.5, 0.05, f"cam{seed}")
        found = agreement_now(log.frames, COSTS)
        assert found is not None
        assert found.frames == len(log.frames)
        now.append(found.low <= true <= found.high)
        (other,) = agreement_at(log.frames, COSTS, [0.7])
        _, at_other, _ = camera.play(TABLE, 0.7, 0.05, "x")
        elsewhere.append(other.low <= at_other <= other.high)
    assert np.mean(now) >= 0.89
    assert np.mean(elsewhere) >= 0.89


def test_a_changed_budget_is_not_judged_by_old_frames() -> None:
    """Soon after a change the estimate is of the new budget, first by what old frames say of it."""
    camera, log = Camera(3, 14_000), ShadowLog()
    controller = BudgetController(TABLE, Terms(0.9), shadow=0.05, stream_id="cam")
    found, exits = [], []
    for i, row in enumerate(camera.scores.tolist()):
        if i == 6000:
            controller.change(terms=Terms(0.3))
        passage, _ = controller.walk(float(i), row)
        exits.append(passage.leaves_at)
        if passage.shadow and passage.leaves_at is not None:
            seen = tuple(camera.agreement[i].tolist())
            log.add(
                ShadowFrame(
                    passage.scores, seen, passage.leaves_at, passage.elsewhere, passage.assumed
                )
            )
        if i in (6300, 8000, 13_999):
            found.append(agreement_now(log.frames, COSTS))
    taken = np.array(exits[8000:], int)
    true = float(camera.agreement[np.arange(8000, 14_000), taken].mean())
    for estimate in found:
        assert estimate is not None
        assert estimate.low - 0.02 <= true <= estimate.high + 0.02


def test_shadow_frames_keep_no_rhythm() -> None:
    """A camera that does something every n frames must not be seen at the same moment always."""
    chosen = np.flatnonzero([is_shadow("cam", i, 0.05) for i in range(40_000)])
    gaps = np.diff(chosen)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as of a geometric distribution
    for period in (2, 7, 25, 300):
        counts = np.bincount(chosen % period, minlength=period)
        assert counts.max() < counts.mean() + 5 * np.sqrt(counts.mean())


def test_more_compute_agrees_more() -> None:
    """Estimates rise with the budget up to the full network's, which agrees with itself."""
    log, _, cost = Camera(1, 20_000).play(TABLE, 0.5, 0.02, "cam")
    assert cost == pytest.approx(0.5, rel=0.005)
    found = [e.value for e in agreement_at(log.frames, COSTS, [0.26, 0.4, 0.6, 0.8, 1.0])]
    assert found == sorted(found)
    assert found[-1] == 1.0


def test_old_frames_are_forgotten() -> None:
    """The log is bounded, and counts on."""
    log = ShadowLog()
    assert agreement_now(log.frames, COSTS) is None
    for i in range(KEPT + 50):
        log.add(ShadowFrame((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), i % 3, (2,) * 7, 0.5))
    assert len(log.frames) == KEPT
    assert log.total == KEPT + 50
    assert log.frames[-1].leaves_at == (KEPT + 49) % 3


def _useless_middle(frames: int, seed: int) -> Camera:
    camera = Camera(seed, frames)
    camera.agreement[:, 1] = camera.agreement[:, 0]
    return camera


def test_better_shares_are_found_and_adopted() -> None:
    """Where the middle exit knows no more than the first, nobody is sent to it any more."""
    camera = _useless_middle(20_000, 2)
    wasteful = build_table(
        np.random.default_rng(0).random((1000, 3)),
        COSTS,
        [np.array([0.95 - x, x, 0.05]) for x in np.linspace(0.1, 0.9, 9)],
    )
    log, _, _ = camera.play(wasteful, 0.5, 0.02, "cam")
    assert len(log.frames) >= FEWEST
    finding = search_again(log.frames, wasteful, 0.5)
    assert finding is not None
    assert finding.table is not None
    assert finding.gain > 0
    assert finding.after[1] < finding.before[1] / 2
    assert "adopted" in finding.sentence()
    before = camera.play(wasteful, 0.5, 0.02, "cam")
    after = camera.play(finding.table, 0.5, 0.02, "cam")
    assert after[1] > before[1] + 0.02
    assert after[2] == pytest.approx(0.5, rel=0.005)


def test_other_frames_judge_than_those_that_searched() -> None:
    """What helps every second frame only, and harms the others, is not adopted."""
    camera = Camera(4, 20_000)
    log, _, _ = camera.play(TABLE, 0.5, 0.02, "cam")
    frames = []
    for i, frame in enumerate(log.frames):
        middle = frame.agreement[0] if i % 2 == 0 else 1.0
        frames.append(replace(frame, agreement=(frame.agreement[0], middle, 1.0)))
    finding = search_again(frames, TABLE, 0.5)
    assert finding is not None
    assert finding.after[1] < finding.before[1] / 2
    assert finding.gain < 0
    assert finding.table is None


def test_frames_without_scores_find_nothing() -> None:
    """Where no exit is ever sure, no frame can be sent anywhere: there is nothing to search."""
    nan = float("nan")
    frame = ShadowFrame((nan, nan, nan), (1.0, 1.0, 1.0), 2, (2,) * 7, 0.5)
    assert search_again([frame] * FEWEST, TABLE, 0.5) is None


def test_luck_is_seldom_adopted() -> None:
    """Where nothing is to be gained, few searches find something."""
    adopted = 0
    for seed in range(24):
        camera = Camera(seed, 4000)
        camera.agreement[:] = np.random.default_rng(9000 + seed).random((4000, 3)) < 0.8
        log, _, _ = camera.play(TABLE, 0.5, 0.06, f"cam{seed}")
        finding = search_again(log.frames, TABLE, 0.5)
        adopted += finding is not None and finding.table is not None
    assert adopted <= 5
