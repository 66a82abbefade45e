from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamexit.budget.shadow import GRID, ShadowFrame
from streamexit.budget.sharing import Claim, DeviceShare, allocate, gains, jain_index

COSTS = (0.2, 0.6, 1.0)


def claim(name: str, **changed: float) -> Claim:
    """Ten frames per second of a network of 10 ms, at a half."""
    values = {"rate": 10.0, "full_ms": 10.0, "fraction": 0.5, "low": 0.2, "cap": 1.0, "weight": 1.0}
    return Claim(name, **{**values, **changed})


def frames(first: float, second: float, sure: float = 1.0, count: int = 200) -> list[ShadowFrame]:
    """Shadow frames whose early answers agree so much with the last exit's, which is so sure."""
    exits = tuple(min(2, j * 3 // GRID) for j in range(GRID))
    seen = (first, second, 1.0)
    return [ShadowFrame((0.5, 0.5, sure), seen, 0, exits, 0.5) for _ in range(count)]


def test_streams_are_admitted_while_there_is_room() -> None:
    """Whoever does not fit gets what is left, or nothing, and is told in numbers."""
    share = DeviceShare(120.0)
    assert share.join(claim("a")).fraction == 0.5
    assert share.join(claim("b")).fraction == 0.5
    shrunk = share.join(claim("c", low=0.1))
    assert shrunk.fraction == pytest.approx(0.2)
    assert "50.0 ms/s" in shrunk.reason
    assert "20.0 are free" in shrunk.reason
    refused = share.join(claim("d"))
    assert refused.fraction is None
    assert "0.0 are free" in refused.reason
    assert share.allocated == pytest.approx(120)


def test_refuse_takes_nobody_at_less() -> None:
    """With admission: refuse it is all or nothing."""
    share = DeviceShare(80.0, "refuse")
    assert share.join(claim("a")).fraction == 0.5
    assert share.join(claim("b")).fraction is None
    assert share.join(claim("c", fraction=0.3)).fraction == 0.3


def test_time_goes_where_depth_buys_most() -> None:
    """The stream that gains from depth gets it, up to its cap; the others keep their floor."""
    share = DeviceShare(180.0)
    for name, floor in (("deep", 0.2), ("easy", 0.3), ("dirty", 0.2)):
        share.join(claim(name, low=floor, cap=0.9))
    seen = {
        "deep": frames(0.4, 0.7),
        "easy": frames(0.98, 0.99),
        "dirty": frames(0.1, 0.2, sure=0.7),
    }
    for _ in range(60):
        share.rebalance(seen, dict.fromkeys(seen, COSTS))
        assert share.allocated <= 180.0 + 1e-6
    assert share.fractions["deep"] == pytest.approx(0.9, abs=0.01)
    assert share.fractions["easy"] >= 0.3 - 1e-9
    assert share.fractions["dirty"] < 0.65


def test_one_round_goes_a_small_step() -> None:
    """Nobody's budget jumps, whatever the shadow frames say."""
    share = DeviceShare(100.0)
    for name in "ab":
        share.join(claim(name))
    seen = {"a": frames(0.1, 0.5), "b": frames(1.0, 1.0)}
    share.rebalance(seen, dict.fromkeys(seen, COSTS))
    assert share.fractions["a"] == pytest.approx(0.56, abs=0.005)
    assert share.fractions["b"] == pytest.approx(0.44, abs=0.005)


def test_who_joins_takes_back_what_was_lent() -> None:
    """Others keep what they were promised; only what they had above it is given back."""
    share = DeviceShare(100.0)
    share.join(claim("a", fraction=0.4))
    for _ in range(50):
        share.rebalance({}, {"a": COSTS})
    assert share.fractions["a"] == pytest.approx(1.0, abs=1e-3)
    assert share.join(claim("b", fraction=0.5)).fraction == 0.5
    assert share.allocated <= 100.0 + 1e-6
    assert share.fractions["a"] >= 0.4 - 1e-6
    assert share.fractions["b"] == pytest.approx(0.5)
    share.leave("b")
    assert "b" not in share.fractions


def test_a_stream_that_stands_still_takes_no_time() -> None:
    """What a camera that is away does not need, others get."""
    share = DeviceShare(100.0)
    share.join(claim("a"))
    share.join(claim("b"))
    share.measured("b", 0.0)
    for _ in range(60):
        share.rebalance({}, {"a": COSTS, "b": COSTS})
    assert share.fractions["a"] == pytest.approx(1.0, abs=0.01)


@settings(max_examples=60)
@given(
    rates=st.lists(st.floats(0, 60), min_size=1, max_size=12),
    capacity=st.floats(1, 2000),
    seed=st.integers(0, 1000),
)
def test_allocation_fits_and_keeps_floors_and_caps(
    rates: list[float], capacity: float, seed: int
) -> None:
    """Never more than there is (beyond everybody's least), never below the floor or above the cap."""
    chance = np.random.default_rng(seed)
    lows, caps = chance.uniform(0.2, 0.5, len(rates)), chance.uniform(0.5, 1, len(rates))
    claims = [
        claim(str(i), rate=rate, low=float(lows[i]), cap=float(caps[i]))
        for i, rate in enumerate(rates)
    ]
    seen = {}
    for one in claims[::2]:
        first, second = sorted(chance.random(2))
        seen[one.stream_id] = frames(float(first), float(second), float(chance.random()))
    costs = {c.stream_id: COSTS for c in claims}
    given_out = allocate(claims, gains(claims, seen, costs), capacity)
    least = sum(c.time(c.low) for c in claims)
    assert sum(c.time(given_out[c.stream_id]) for c in claims) <= max(capacity, least) + 1e-6
    for one in claims:
        assert one.low - 1e-9 <= given_out[one.stream_id] <= one.cap + 1e-9


def test_who_sends_more_than_it_said_gives_less_to_each_frame() -> None:
    """Others lose nothing by it: what was promised is time."""
    share = DeviceShare(100.0)
    share.join(claim("honest"))
    share.join(claim("fast", low=0.1))
    share.measured("fast", 40.0)
    for _ in range(60):
        share.rebalance({}, {"honest": COSTS, "fast": COSTS})
    assert share.allocated <= 100.0 + 1e-6
    assert share.fractions["honest"] >= 0.5 - 1e-6
    assert 0.1 <= share.fractions["fast"] <= 0.13


def test_a_recording_read_as_fast_as_it_can_be_takes_no_time_of_others() -> None:
    """Its frames wait; nobody else is pushed to the least."""
    share = DeviceShare(100.0)
    share.join(claim("camera"))
    share.join(claim("recording"))
    share.measured("recording", 900.0)
    for _ in range(60):
        share.rebalance({}, {"camera": COSTS, "recording": COSTS})
    assert share.fractions["camera"] >= 0.5 - 1e-6
    assert share.fractions["recording"] == pytest.approx(0.2, abs=1e-3)
    assert share.allocated <= 100.0 + 1e-6


def test_a_budget_per_second_limits_what_is_given() -> None:
    """However much there is to share out, and at whatever rate."""
    share = DeviceShare(1000.0)
    share.join(claim("a", limit=5.0, low=0.05))
    for rate, most in ((10.0, 0.5), (50.0, 0.1), (2.0, 1.0)):
        share.measured("a", rate)
        for _ in range(60):
            share.rebalance({}, {"a": COSTS})
        assert share.fractions["a"] <= most + 1e-6


def test_a_budget_per_second_is_an_amount_whatever_comes() -> None:
    """What is promised and given stays the same in time, up to what was asked for, and jumps with no rate."""
    share = DeviceShare(150.0)
    share.join(claim("a", limit=5.0))
    share.join(claim("b", fraction=0.1, low=0.1))
    for rate in (10.0, 20.0, 6.0, 0.0, 20.0, 10.0):
        share.measured("a", rate)
        assert share.amount("a") == pytest.approx(5.0)
        share.rebalance({}, {"a": COSTS, "b": COSTS})
        assert share.amount("a") == pytest.approx(5.0)
    assert share.amount("b") == share.fractions["b"]
    share.measured("a", 5.0)
    assert share.change(claim("a", fraction=0.4, limit=4.0)).fraction == pytest.approx(0.4)
    assert share.amount("a") == pytest.approx(4.0)  # 0.8 of each of five


def test_a_budget_that_no_frame_can_keep_is_admitted_by_what_frames_take() -> None:
    """A budget per second may be below the first exit's cost; frames leave there all the same."""
    share = DeviceShare(40.0)
    assert share.join(claim("a", fraction=0.1, low=0.25, limit=1.0)).fraction == 0.25
    assert share.join(claim("b", fraction=0.3, low=0.16)).fraction is None  # 15 are free
    assert share.allocated == pytest.approx(25.0)
    assert share.amount("a") == 1.0


def test_a_change_that_is_refused_changes_nothing() -> None:
    """The stream keeps what it had; one that fits is held from then on."""
    share = DeviceShare(100.0, "refuse")
    share.join(claim("a", fraction=0.4))
    share.join(claim("b", fraction=0.5))
    before = dict(share.fractions)
    assert share.change(claim("a", fraction=0.9)).fraction is None
    assert share.fractions == before
    assert share.change(claim("a", fraction=0.5)).fraction == 0.5
    assert share.join(claim("c", fraction=0.2)).fraction is None


def test_jain_index() -> None:
    """1 for equals, 1/n for one that has all."""
    assert jain_index([0.5, 0.5, 0.5]) == pytest.approx(1)
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain_index([0.0, 0.0]) == 1
    assert all(jain_index([k / 37] * 5) <= 1 for k in range(1, 38))


def test_a_round_without_streams_changes_nothing() -> None:
    """An empty device has nothing to share out, and the next stream gets what it asks for."""
    share = DeviceShare(100.0)
    share.rebalance({}, {})
    assert (share.fractions, share.allocated) == ({}, 0)
    assert share.join(claim("a")).fraction == 0.5


def test_a_network_of_one_exit_has_one_price() -> None:
    """It can be given neither more nor less; the others share what is left."""
    share = DeviceShare(160.0)
    share.join(claim("only", fraction=1.0, low=1.0))
    share.join(claim("deep", low=0.2))
    seen = {"only": frames(1.0, 1.0), "deep": frames(0.4, 0.7)}
    seen["only"] = [ShadowFrame((1.0,), (1.0,), 0, (0,) * GRID, 1.0)] * 50
    for _ in range(40):
        share.rebalance(seen, {"only": (1.0,), "deep": COSTS})
    assert share.fractions["only"] == pytest.approx(1.0)
    assert share.fractions["deep"] == pytest.approx(0.6, abs=0.01)
