from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamexit.engine.batcher import Batcher


def test_full_batch_runs_at_once() -> None:
    """A stage with enough rows is due whatever the time."""
    batcher: Batcher[int] = Batcher(num_stages=2, max_batch=2, max_wait=1.0)
    batcher.add(0, 1, now=0.0)
    assert batcher.next_batch(0.0) is None
    batcher.add(0, 2, now=0.0)
    batch = batcher.next_batch(0.0)
    assert batch
    assert (batch.stage, list(batch.rows)) == (0, [1, 2])


def test_wait_clock_starts_with_the_first_row() -> None:
    """A partial batch is due `max_wait` after its first row, however late the others came."""
    batcher: Batcher[int] = Batcher(num_stages=1, max_batch=9, max_wait=1.0)
    batcher.add(0, 1, now=5.0)
    batcher.add(0, 2, now=5.9)
    assert batcher.next_due() == 6.0
    assert batcher.next_batch(5.99) is None
    batch = batcher.next_batch(6.0)
    assert batch
    assert list(batch.rows) == [1, 2]


def test_deepest_due_stage_goes_first() -> None:
    """Of several due stages the last one runs."""
    batcher: Batcher[int] = Batcher(num_stages=3, max_batch=1, max_wait=1.0)
    for stage in range(3):
        batcher.add(stage, stage, now=0.0)
    order = [b.stage for b in iter(lambda: batcher.next_batch(0.0), None)]
    assert order == [2, 1, 0]


def test_flush_runs_what_is_not_due() -> None:
    """At the end partial batches run without waiting."""
    batcher: Batcher[int] = Batcher(num_stages=1, max_batch=9, max_wait=1.0)
    batcher.add(0, 1, now=0.0)
    assert batcher.next_batch(0.0, flush=True)
    assert batcher.next_batch(0.0, flush=True) is None
    assert batcher.next_due() is None


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 2)), max_size=80),
    max_batch=st.integers(1, 7),
    max_wait=st.floats(0, 2),
)
def test_rows_are_conserved_in_order_and_in_time(
    arrivals: list[tuple[float, int]], max_batch: int, max_wait: float
) -> None:
    """No row is lost, doubled, overtaken in its stage, or left waiting past its deadline."""
    batcher: Batcher[tuple[int, float]] = Batcher(
        num_stages=3, max_batch=max_batch, max_wait=max_wait
    )
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    now = 0.0

    def run(flush: bool = False) -> None:
        while batch := batcher.next_batch(now, flush=flush):
            assert 1 <= len(batch.rows) <= max_batch
            seen[batch.stage] += [number for number, _ in batch.rows]

    for number, (gap, stage) in enumerate(arrivals):
        while (due := batcher.next_due()) is not None and due <= now + gap:
            now = max(now, due)
            run()
            assert batcher.next_due() is None or batcher.next_due() > now  # type: ignore[operator]
        now += gap
        batcher.add(stage, (number, now), now)
        run()
    run(flush=True)
    assert len(batcher) == 0
    for stage, numbers in seen.items():
        assert numbers == [n for n, (_, s) in enumerate(arrivals) if s == stage]
