from __future__ import annotations

import pytest

from streamexit.sources.demand import SHOWN_EVERY_SECONDS, Choice, Demand
from streamexit.sources.sampling import Sampling
from streamexit.testing import ManualClock


def test_pictures_for_people_come_five_times_a_second_while_somebody_looks() -> None:
    """Nobody asked: none. Then at once, and again after the pause, until the time is over."""
    clock = ManualClock(50.0)
    demand = Demand(clock)
    assert not demand.takes_one_to_show()
    demand.show_for(1.0)
    shown = []
    for n in range(200):
        clock.now = 50.0 + n / 100
        if demand.takes_one_to_show():
            shown.append(n / 100)
    assert shown == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8], abs=0.011)
    assert SHOWN_EVERY_SECONDS == 0.2


def test_looking_on_makes_it_last() -> None:
    """Who asks again before the end gets no more pictures per second, but for longer."""
    clock = ManualClock()
    demand = Demand(clock)
    shown = 0
    for n in range(40):
        clock.now = n / 10
        if n <= 20:
            demand.show_for(1.0)
        shown += demand.takes_one_to_show()
    assert shown == pytest.approx(15, abs=1)


@pytest.mark.parametrize(
    ("pause", "each"), [(0.04, False), (1.9, False), (2.1, True), (60.0, True)]
)
def test_pictures_of_slow_streams_are_kept_unasked(pause: float, each: bool) -> None:
    """Whoever asks for one does not wait for a minute; streams that are faster pay nothing for it."""
    clock = ManualClock()
    demand = Demand(clock, unasked=True)
    assert demand.takes_one_to_show()  # the first, of a stream that may be slow
    for _ in range(5):
        clock.advance(pause)
        assert demand.takes_one_to_show() == each


def test_what_is_asked_for_while_a_source_is_read_holds_from_the_next_picture_on() -> None:
    """Fewer pictures on demand, and as configured again when nothing is asked for."""
    demand = Demand(ManualClock())
    choice = Choice(Sampling(every=2), demand)
    assert [choice.sampler.wants(n / 10) for n in range(4)] == [True, False, True, False]
    demand.sampling = Sampling(every=4)
    assert choice.sampling == Sampling(every=4)
    assert [choice.sampler.wants(n / 10) for n in range(5)] == [True, False, False, False, True]
    demand.sampling = None
    assert choice.sampling == Sampling(every=2)
    assert [choice.sampler.wants(n / 10) for n in range(3)] == [True, False, True]
