from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamexit.budget.score_window import LENGTH, ScoreWindow


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=3 * LENGTH))
def test_it_holds_the_last_scores(scores: list[float]) -> None:
    """Whatever came before is forgotten, ties and order included."""
    window = ScoreWindow(scores)
    assert window.scores == scores[-LENGTH:]
    assert len(window) == min(len(scores), LENGTH)
    assert window.reached_by(0.0) == max(window.scores)
    assert window.reached_by(1.0) == min(window.scores)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_the_share_that_is_asked_for_reaches_the_score(share: float) -> None:
    """To a frame."""
    scores = np.random.default_rng(0).random(LENGTH)
    threshold = ScoreWindow(scores.tolist()).reached_by(share)
    assert (scores >= threshold).sum() == pytest.approx(share * LENGTH, abs=1)


def test_a_full_window_lets_the_oldest_go_each_time() -> None:
    """Over three lengths of scores, many of them equal, order and quantiles are the last ones'."""
    random = np.random.default_rng(1)
    drawn = random.choice([0.125, 0.5, 2.0], 3 * LENGTH) * random.random(3 * LENGTH)
    drawn[::5] = 0.25
    scores = drawn.astype(np.float32)
    window = ScoreWindow()
    for n, score in enumerate(scores.tolist(), 1):
        window.add(score)
        last = scores[max(0, n - LENGTH) : n]
        assert len(window) == len(last)
        assert window.reached_by(0.0) == last.max()
        assert window.reached_by(1.0) == last.min()
        assert window.reached_by(0.5) == pytest.approx(float(np.median(last)), abs=1e-6)
    assert window.scores == scores[-LENGTH:].tolist()


def test_places_between_scores_are_interpolated() -> None:
    """Of four scores each stands for a quarter of the frames, and lies in the middle of it."""
    window = ScoreWindow([0.5, 0.25, 1.0, 0.75])
    assert [window.reached_by(share) for share in (0.125, 0.375, 0.625, 0.875)] == [
        1.0,
        0.75,
        0.5,
        0.25,
    ]
    assert window.reached_by(0.5) == 0.625
    assert window.reached_by(0.05) == 1.0
