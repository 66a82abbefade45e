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
