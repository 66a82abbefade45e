from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamexit.engine.batcher import Batcher

NEVER = float("inf")


def test_full_batch_runs_at_once() -> None:
    """A stage with enough rows is due whatever the time."""
    batcher: Batcher[int] = Batcher((2, 2))
    batcher.add(0, 1, stream="a", due=1.0)
    assert batcher.next_batch(0.0) is None
    batcher.add(0, 2, stream="a", due=1.0)
    batch = batcher.next_batch(0.0)
    assert batch
    assert (batch.stage, list(batch.rows)) == (0, [1, 2])


def test_wait_clock_is_that_of_the_most_urgent_row() -> None:
    """A partial batch is due when its first row is, however long the others could wait."""
    batcher: Batcher[int] = Batcher((9,))
    batcher.add(0, 1, stream="a", due=6.0)
    batcher.add(0, 2, stream="b", due=5.5)
    batcher.add(0, 3, stream="a", due=NEVER)
    assert batcher.next_due() == 5.5
    assert batcher.next_batch(5.49) is None
    batch = batcher.next_batch(5.5)
    assert batch
    assert list(batch.rows) == [1, 2, 3]
    assert batcher.next_due() is None


def test_urgency_goes_with_its_row() -> None:
    """Once the urgent row has run, those that are left wait for their own time."""
    batcher: Batcher[int] = Batcher((2,))
    for row, (stream, due) in enumerate([("a", 1.0), ("b", 7.0), ("a", 9.0)]):
        batcher.add(0, row, stream=stream, due=due)
    batch = batcher.next_batch(0.0)
    assert batch
    assert list(batch.rows) == [0, 1]
    assert batcher.next_due() == 9.0


def test_deepest_due_stage_goes_first() -> None:
    """Of several due stages the last one runs."""
    batcher: Batcher[int] = Batcher((1, 1, 1))
    for stage in range(3):
        batcher.add(stage, stage, stream="a", due=1.0)
    order = [b.stage for b in iter(lambda: batcher.next_batch(0.0), None)]
    assert order == [2, 1, 0]


def test_stages_have_sizes_of_their_own() -> None:
    """What fills a batch is a matter of the stage."""
    batcher: Batcher[int] = Batcher((1, 3))
    for row in range(4):
        batcher.add(1, row, stream="a", due=NEVER)
    batcher.add(0, 9, stream="a", due=NEVER)
    batches = list(iter(lambda: batcher.next_batch(0.0), None))
    assert [(batch.stage, list(batch.rows)) for batch in batches] == [(1, [0, 1, 2]), (0, [9])]
    assert len(batcher) == 1


def test_flush_runs_what_is_not_due() -> None:
    """At the end partial batches run without waiting."""
    batcher: Batcher[int] = Batcher((9,))
    batcher.add(0, 1, stream="a", due=1.0)
    assert batcher.next_batch(0.0, flush=True)
    assert batcher.next_batch(0.0, flush=True) is None
    assert batcher.next_due() is None


def test_streams_take_turns() -> None:
    """A stream with many rows does not go before one with few."""
    batcher: Batcher[str] = Batcher((4,))
    for row in ("a1", "a2", "a3", "a4", "a5", "b1", "c1", "c2"):
        batcher.add(0, row, stream=row[0], due=NEVER)
    batches = [list(b.rows) for b in iter(lambda: batcher.next_batch(0.0), None)]
    assert batches == [["a1", "b1", "c1", "a2"], ["c2", "a3", "a4", "a5"]]


@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_fast_stream_does_not_starve_a_slow_one(size: int) -> None:
    """Of 60 and 5 frames per second on a stage that takes 15, the slow stream loses none."""
    batcher: Batcher[tuple[str, float]] = Batcher((size,))
    waited: list[float] = []
    taken: Counter[str] = Counter()
    queued: Counter[str] = Counter()
    next_run = 0.0
    arrivals = [(i / 60, "fast") for i in range(600)] + [(i / 5, "slow") for i in range(50)]
    for now, stream in sorted(arrivals):
        if stream == "slow" or queued["fast"] < 100:  # a buffer in front is bounded, too
            batcher.add(0, (stream, now), stream=stream, due=now)
            queued[stream] += 1
        if now >= next_run and (batch := batcher.next_batch(now)):
            next_run = now + len(batch.rows) / 15
            for name, added in batch.rows:
                taken[name] += 1
                queued[name] -= 1
                if name == "slow":
                    waited.append(now - added)
    assert taken["slow"] >= 50 - 1 - size
    assert max(waited) <= 2 * size / 15 + 2 / 60


@given(
    arrivals=st.lists(
        st.tuples(st.floats(0, 0.5), st.integers(0, 2), st.sampled_from("abc"), st.floats(0, 2)),
        max_size=80,
    ),
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
)
def test_rows_are_conserved_in_order_and_in_time(
    arrivals: list[tuple[float, int, str, float]], sizes: tuple[int, int, int]
) -> None:
    """No row is lost, doubled, overtaken by its own stream, or left behind when its time is up."""
    batcher: Batcher[tuple[int, str]] = Batcher(sizes)
    seen: dict[tuple[int, str], list[int]] = {}
    now = 0.0

    def run(flush: bool = False) -> None:
        while batch := batcher.next_batch(now, flush=flush):
            assert 1 <= len(batch.rows) <= sizes[batch.stage]
            for number, stream in batch.rows:
                seen.setdefault((batch.stage, stream), []).append(number)

    for number, (gap, stage, stream, patience) in enumerate(arrivals):
        while (due := batcher.next_due()) is not None and due <= now + gap:
            now = max(now, due)
            run()
            left = batcher.next_due()
            assert left is None or left > now
        now += gap
        batcher.add(stage, (number, stream), stream=stream, due=now + patience)
        run()
    run(flush=True)
    assert len(batcher) == 0
    assert sum(map(len, seen.values())) == len(arrivals)
    for (stage, stream), numbers in seen.items():
        expected = [n for n, (_, k, s, _) in enumerate(arrivals) if (k, s) == (stage, stream)]
        assert numbers == expected


@given(rows=st.lists(st.sampled_from("abcd"), max_size=60), size=st.integers(1, 9))
def test_streams_that_wait_get_equal_shares(rows: list[str], size: int) -> None:
    """At any moment, two streams that both still wait have had as many turns, give or take one."""
    batcher: Batcher[str] = Batcher((size,))
    for row in rows:
        batcher.add(0, row, stream=row, due=NEVER)
    left, had = Counter(rows), Counter[str]()
    while batch := batcher.next_batch(0.0, flush=True):
        for row in batch.rows:
            left[row] -= 1
            had[row] += 1
            turns = [had[stream] for stream in left if left[stream]]
            assert max(turns, default=0) - min(turns, default=0) <= 1
    assert had == Counter(rows)


def test_of_those_that_are_left_the_most_urgent_counts() -> None:
    """Whatever order they came in, and whichever stream they are of."""
    batcher: Batcher[int] = Batcher((2,))
    for row, (stream, due) in enumerate([("a", 1.0), ("b", 2.0), ("a", 9.0), ("b", 7.0)]):
        batcher.add(0, row, stream=stream, due=due)
    batch = batcher.next_batch(0.0)
    assert batch
    assert list(batch.rows) == [0, 1]
    assert batcher.next_due() == 7.0


def test_no_batch_is_larger_than_its_stage_takes() -> None:
    """Also when other stages take more, and many rows wait."""
    batcher: Batcher[int] = Batcher((2, 5))
    for row in range(7):
        batcher.add(0, row, stream="a", due=0.0)
    batches = list(iter(lambda: batcher.next_batch(0.0), None))
    assert [list(batch.rows) for batch in batches] == [[0, 1], [2, 3], [4, 5], [6]]
