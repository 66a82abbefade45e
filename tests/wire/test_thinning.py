from __future__ import annotations

import pytest

from streamexit.exits import ExitRecord
from streamexit.frame import FrameInfo
from streamexit.prediction import Classification
from streamexit.wire.encoding import ResultEncoder
from streamexit.wire.messages import Result
from streamexit.wire.thinning import Rule, Thinning

ENCODE = ResultEncoder(node="lab", boot_id="b00t", pipeline="toy", num_exits=3)


def results(
    rule: Rule, labels: str, *, dropped: int = 0, lost: tuple[int, ...] = ()
) -> list[Result]:
    """Results of answers half a second apart; some answers never get there."""
    thinning, sent, last = Thinning(rule), [], ""
    for seq, label in enumerate(labels):
        if seq in lost:
            continue
        frame = FrameInfo("a", seq, seq / 2, 0.0, dropped_before=dropped)
        record = ExitRecord(frame, seq, 0, 0.5, 0.1, Classification(label, 0, 0.9, ()), 0.0, 0.0)
        before = thinning.pass_on(record, changed=label != last, now=seq / 2)
        last = label
        if before is not None:
            sent.append(ENCODE(record, 0.0, unpublished=before))
    return sent


@pytest.mark.parametrize(
    ("rule", "frames"),
    [("every_frame", [0, 1, 2, 3, 4, 5, 6, 7]), ("on_change", [0, 2, 6]), (1.5, [0, 3, 6])],
)
def test_rules(rule: Rule, frames: list[int]) -> None:
    """All, those that differ from the one before, at most one in so long."""
    sent = results(rule, "aabbbbcc", dropped=1)
    assert [r.frame for r in sent] == frames
    assert [r.seq for r in sent] == list(
        range(len(frames))
    )  # what is left out on purpose is no gap
    skipped = [frame - before - 1 for before, frame in zip([-1, *frames], frames, strict=False)]
    assert [r.unpublished_since_last for r in sent] == skipped
    assert [r.dropped_since_last for r in sent] == [n + 1 for n in skipped]


@pytest.mark.parametrize("rule", ["every_frame", "on_change"])
def test_a_loss_is_a_gap(rule: Rule) -> None:
    """Whatever is left out besides."""
    sent = results(rule, "aabbaabb", lost=(4,))
    numbers = [r.seq for r in sent]
    assert numbers[-1] - numbers[0] + 1 == len(numbers) + 1


def test_what_was_left_out_is_counted() -> None:
    """Since the start, published or not; it is what sequence numbers are less by."""
    thinning = Thinning(10.0)
    for seq in range(7):
        record = ExitRecord(
            FrameInfo("a", seq, 0.0, 0.0),
            seq,
            0,
            0.5,
            0.1,
            Classification("x", 0, 0.9, ()),
            0.0,
            0.0,
        )
        thinning.pass_on(record, changed=False, now=float(seq * 5))
    assert thinning.left_out == 3


def test_a_clock_that_goes_back_does_not_silence_a_stream() -> None:
    """The pause is of the time that passes; when the clock is set back, a result comes at once."""
    thinning = Thinning(10.0)
    frame = FrameInfo("a", 0, 0.0, 0.0)
    record = ExitRecord(frame, 0, 0, 0.5, 0.1, Classification("x", 0, 0.9, ()), 0.0, 0.0)
    passed = [
        thinning.pass_on(record, changed=False, now=now) is not None
        for now in (1000.0, 1009.9, 5.0, 14.9, 15.0)
    ]
    assert passed == [True, False, True, False, True]
