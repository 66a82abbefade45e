"""Times that rise whatever a source's clock does, and how late a live stream is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamexit.sources.lateness import Lateness
from streamexit.sources.timeline import Timeline

STEP = 0.04


def placed(times: list[float | None], lasting: float | None = None) -> tuple[list[float], int]:
    """Where frames of these timestamps come to lie, and the epoch of the last."""
    line = Timeline(STEP)
    return [line.place(t, lasting) for t in times], line.epoch


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=60))
def test_times_always_rise_from_zero(times: list[float | None]) -> None:
    """Strictly, from 0, and never by more than a jump that is believed."""
    line, _ = placed(times)
    assert line[:1] in ([], [0.0])
    assert all(a < b for a, b in pairwise(line))
    assert all(b - a <= 10.0 + 2 * STEP for a, b in pairwise(line))


def test_an_undisturbed_clock_is_followed() -> None:
    """Uneven steps stay as they are; only the beginning moves to 0."""
    times: list[float | None] = [50.0, 50.04, 50.5, 51.0, 58.0]
    line, epoch = placed(times)
    assert line == pytest.approx([0.0, 0.04, 0.5, 1.0, 8.0])
    assert epoch == 0


@pytest.mark.parametrize("jump", [-3.0, -5000.0, 30.0, 95443.7])
def test_a_clock_that_is_set_begins_an_epoch(jump: float) -> None:
    """Back by seconds or on by half a minute: the line goes on one step later."""
    line, epoch = placed([9000.0, 9000.04, 9000.08 + jump, 9000.12 + jump])
    assert line == pytest.approx([0.0, 0.04, 0.08, 0.12])
    assert epoch == 1


def test_a_frame_that_lasts_long_is_no_jump() -> None:
    """A slide show whose pictures say that they last half a minute keeps its times."""
    assert placed([0.0, 30.0, 60.0], lasting=30.0) == ([0.0, 30.0, 60.0], 0)


def test_frames_out_of_order_by_a_little_stay_in_their_epoch() -> None:
    """A timestamp that steps back by less than a second is moved up, nothing else."""
    line, epoch = placed([0.0, 0.04, 0.03, 0.12])
    assert epoch == 0
    assert line[2] > line[1]
    assert line[3] == pytest.approx(0.12)


def test_frames_without_times_come_evenly() -> None:
    """Without timestamps the declared rate counts; the first real one is fitted on."""
    line, _ = placed([None, None, None])
    assert line == pytest.approx([0.0, 0.04, 0.08])
    assert placed([0.0, *[None] * 300, 12.04])[1] == 0  # no jump: time has passed meanwhile
    assert placed([None, None, 900.0, 900.04])[0] == pytest.approx([0.0, 0.04, 0.08, 0.12])


def test_the_promptest_frame_sets_the_standard() -> None:
    """A burst of old frames at the start is late only in hindsight; then lag is what it is."""
    late = Lateness(tolerated=2.0)
    assert late.of(0.0, now=101.0) == 0.0
    assert late.of(1.0, now=101.0) == 0.0
    assert late.of(1.04, now=101.54) == pytest.approx(0.5, abs=1e-3)


def test_a_slow_camera_clock_is_not_lag() -> None:
    """A clock that loses 50 parts per million for a day is followed."""
    late = Lateness(tolerated=2.0)
    assert max(late.of(t * (1 - 5e-5), now=float(t)) for t in range(0, 86400, 10)) < 0.01


def test_a_stream_that_fell_behind_begins_again_at_a_prompt_key_frame() -> None:
    """Late packets are left out until a key frame comes that is well within what is tolerated."""
    late = Lateness(tolerated=2.0)
    assert not late.skips(1.9, is_key_frame=False)
    assert late.skips(2.1, is_key_frame=True)
    assert late.skips(0.1, is_key_frame=False)
    assert late.skips(1.5, is_key_frame=True)
    assert not late.skips(0.9, is_key_frame=True)
    assert not late.skips(0.9, is_key_frame=False)


def test_a_clock_that_was_set_is_measured_anew() -> None:
    """After a restart the first frame is prompt again, and nothing is left out."""
    late = Lateness(tolerated=2.0)
    assert late.of(0.0, now=100.0) == 0.0
    assert late.skips(late.of(1.0, now=110.0), is_key_frame=True)
    late.restart()
    assert not late.behind
    assert late.of(5000.0, now=110.0) == 0.0
    assert late.of(5000.0, now=111.0) == pytest.approx(1.0, abs=1e-3)


def test_a_peek_says_where_a_frame_would_lie() -> None:
    """As `place` would put it, and nothing where the clock has jumped; it changes nothing."""
    timeline = Timeline(0.04)
    assert timeline.peek(900.0) == 0.0
    timeline.place(900.0)
    assert timeline.peek(900.5) == pytest.approx(0.5)
    assert timeline.peek(2000.0) is None
    assert timeline.place(900.04) == pytest.approx(0.04)
    assert timeline.epoch == 0
    silent = Timeline(0.04)
    silent.place(None)
    assert silent.peek(900.0) is None
