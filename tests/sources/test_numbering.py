"""How the frames of a stream are numbered, and recordings joined."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamexit.sources.numbering import STEP_SECONDS, Numbering
from streamexit.sources.source import Picture
from streamexit.sources.splice import FIRST_STEP, Splice


def test_one_opening_keeps_its_own_times() -> None:
    """Indices have no gap; what was lost stands with the next picture, once."""
    numbering = Numbering()
    numbering.reopen()  # nothing was there before
    first = numbering.place(0.0, 0)
    numbering.lose()
    numbering.lose()
    second, third = numbering.place(0.1, 0), numbering.place(0.2, 0)
    assert [p.index for p in (first, second, third)] == [0, 1, 2]
    assert [p.pts_seconds for p in (first, second, third)] == [0.0, 0.1, 0.2]
    assert [p.dropped_before for p in (first, second, third)] == [0, 2, 0]
    assert not first.rejoins


def test_another_opening_goes_on_a_step_later() -> None:
    """In an epoch of its own; a second look at it is none."""
    numbering = Numbering(first_epoch=7)
    numbering.place(1.0, 0)
    numbering.reopen()
    numbering.lose()
    again, after = numbering.place(0.0, 0), numbering.place(0.5, 0)
    assert (again.rejoins, again.epoch, again.dropped_before) == (True, 8, 1)
    assert again.pts_seconds == 1.0 + STEP_SECONDS
    assert (after.rejoins, after.epoch, numbering.epoch) == (False, 8, 8)


def test_a_clock_that_was_set_is_an_epoch() -> None:
    """Counted within each opening anew."""
    numbering = Numbering()
    epochs = [numbering.place(0.1 * i, epoch).epoch for i, epoch in enumerate((0, 1, 1, 3))]
    numbering.reopen()
    epochs += [numbering.place(0.1 * i, epoch).epoch for i, epoch in enumerate((0, 2))]
    assert epochs == [0, 1, 1, 3, 4, 6]


@given(st.lists(st.lists(st.sampled_from([0.04, 0.5, 3.0]), max_size=5), max_size=6))
def test_whatever_happens_times_rise(openings: list[list[float]]) -> None:
    """And epochs count the openings that brought something."""
    numbering, places = Numbering(), []
    for steps in openings:
        numbering.reopen()
        offset = 0.0
        for step in steps:
            places.append(numbering.place(offset, 0))
            offset += step
    assert all(a.pts_seconds < b.pts_seconds for a, b in pairwise(places))
    assert [p.index for p in places] == list(range(len(places)))
    assert sum(p.rejoins for p in places) == max(0, sum(bool(steps) for steps in openings) - 1)


def pictures(*times: float, epoch: int = 0) -> list[Picture]:
    """Of a recording."""
    return [Picture(np.zeros((1, 1, 3), np.uint8), time, epoch=epoch) for time in times]


def test_recordings_follow_each_other_by_their_last_step() -> None:
    """Wherever their own times begin; one without pictures is not there."""
    for counted, epochs in ((False, [0, 0, 0, 2]), (True, [0, 1, 1, 4])):
        splice = Splice(counted=counted)
        played = [
            picture
            for part in (pictures(5.0), [], pictures(1.0, 1.5), pictures(0.0, epoch=2))
            for picture in splice.play(iter(part))
        ]
        expected = [0.0, FIRST_STEP, FIRST_STEP + 0.5, FIRST_STEP + 1.0]
        np.testing.assert_allclose([p.pts_seconds for p in played], expected)
        assert [p.epoch for p in played] == epochs
        assert splice.pictures == 4
