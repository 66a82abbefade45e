from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamexit.errors import PipelineError
from streamexit.prediction import VOID, Segmentation
from streamexit.preprocessing import Preprocessing
from streamexit.scheduling.evidence import CERTAINTY, MAX_PROBABILITY, RUN, VOTE
from streamexit.tasks.kinds import build_task
from streamexit.tasks.readout import to_host
from streamexit.tasks.segmentation import SegmentationTask, mean_iou
from streamexit.testing import TOY_PREPROCESSING

LABELS = ("sky", "road", "car")
LOW, MIDDLE, ABOVE, AGREEMENT, AT_EDGES = range(RUN + 1, RUN + 6)


def task(size: tuple[int, int] = (2, 2), floor: float = 0.7) -> SegmentationTask:
    """Of three classes."""
    scaling = Preprocessing(size[1], size[0], (0, 0, 0), (1, 1, 1), fit="letterbox")
    return SegmentationTask(labels=LABELS, preprocessing=scaling, confidence_floor=floor)


def logits_of(probabilities: list[Any]) -> torch.Tensor:
    """[1, C, h, w] from nested lists [C][h][w] of probabilities."""
    return torch.tensor(probabilities).clamp_min(1e-9).log()[None]


def mask_of(rows: list[list[int]]) -> NDArray[np.uint8]:
    """A map."""
    return np.array(rows, np.uint8)


def answer(rows: list[list[int]]) -> Segmentation:
    """An answer with that map."""
    return Segmentation(tuple((label, 0.0) for label in LABELS), mask_of(rows))


def test_features_of_one_map_by_hand() -> None:
    """Means over pixels, low quantiles, the share above the floor; nothing to agree with yet."""
    p = [[[0.9, 0.6], [0.1, 0.0]], [[0.1, 0.4], [0.8, 0.0]], [[0.0, 0.0], [0.1, 1.0]]]
    readout = task().read(logits_of(p), None)
    confidence = readout.confidence[0]
    assert confidence[MAX_PROBABILITY] == pytest.approx((0.9 + 0.6 + 0.8 + 1.0) / 4)
    entropy = -sum(x * math.log(x) for x in (0.9, 0.1, 0.6, 0.4, 0.1, 0.8, 0.1)) / 4
    assert confidence[CERTAINTY] == pytest.approx(1 - entropy / math.log(3), abs=1e-6)
    assert confidence[VOTE] == confidence[RUN] == 1
    assert confidence[LOW] == pytest.approx(np.quantile([0.9, 0.6, 0.8, 1.0], 0.05))
    assert confidence[MIDDLE] == pytest.approx(np.quantile([0.9, 0.6, 0.8, 1.0], 0.25))
    assert confidence[ABOVE] == 0.75
    assert confidence[AGREEMENT] == confidence[AT_EDGES] == 1
    assert readout.distribution[0].tolist() == pytest.approx([0.4, 0.325, 0.275])
    assert readout.carry.tolist() == [[[[0, 0], [1, 2]]]]


def sure(rows: list[list[int]]) -> torch.Tensor:
    """Logits [1, 3, h, w] of a network that is sure of a map."""
    return torch.nn.functional.one_hot(torch.tensor(rows), 3).permute(2, 0, 1)[None] * 20.0


def test_agreement_of_three_maps_by_hand() -> None:
    """Votes, unbroken runs, agreement with the map before, and that next to boundaries."""
    reader = task((2, 4))
    first = [[0, 0, 0, 0], [1, 1, 1, 1]]
    second = [[0, 0, 0, 0], [1, 1, 1, 2]]
    third = [[0, 0, 0, 0], [1, 1, 2, 1]]
    carry = None
    seen = []
    for rows in (first, second, third):
        readout = reader.read(sure(rows), carry)
        carry = readout.carry
        seen.append(readout.confidence[0])
    assert seen[1][AGREEMENT] == 7 / 8
    assert seen[2][AGREEMENT] == 6 / 8
    # Third: six pixels agree in all maps; of the other two, two maps of three agree.
    assert seen[2][VOTE] == pytest.approx((6 + 2 * 2 / 3) / 8)
    assert seen[2][RUN] == pytest.approx((6 + 2 * 1 / 3) / 8)
    # Every pixel is next to the boundary between the rows.
    assert seen[2][AT_EDGES] == 6 / 8


def test_maps_without_boundaries_agree_at_them() -> None:
    """Where neither map has a boundary, nothing can disagree there."""
    reader = task((2, 3))
    first = reader.read(sure([[1, 1, 1], [1, 1, 1]]), None)
    other = reader.read(sure([[0, 0, 0], [0, 0, 0]]), first.carry)
    assert other.confidence[0, AGREEMENT] == 0
    assert other.confidence[0, AT_EDGES] == 1


def test_features_lie_in_the_unit_interval() -> None:
    """Whatever the logits, every feature is a number in [0, 1]; one pixel is a map, too."""
    generator = torch.Generator().manual_seed(0)
    for size in ((1, 1), (3, 5), (1, 7)):
        carry = None
        for scale in (0.0, 1.0, 1e4):
            logits = scale * torch.randn(2, 3, *size, generator=generator)
            readout = task(size).read(logits, carry)
            carry = readout.carry
            assert readout.confidence.shape == (2, 9)
            assert ((readout.confidence >= 0) & (readout.confidence <= 1)).all()
            assert readout.distribution.sum(1).tolist() == pytest.approx([1, 1])


def test_answer_is_made_at_the_size_of_the_input() -> None:
    """Logits are scaled before the largest is taken; shares are those of the whole map."""
    reader = task((4, 8))
    readout = reader.read(sure([[0, 0, 1, 1], [0, 0, 1, 2]]), None)
    prediction = reader.prediction(to_host(readout.answer), 0)
    assert prediction.mask.shape == (4, 8)
    assert prediction.mask.dtype == np.uint8
    assert sum(share for _, share in prediction.shares) == pytest.approx(1)
    assert prediction.shares == tuple(
        (label, float((prediction.mask == k).mean())) for k, label in enumerate(LABELS)
    )
    assert prediction.headline == ("sky", 0.5)


def test_sides_that_show_nothing_have_no_class() -> None:
    """With a letterbox the filled sides are void: no share, no part in the quality."""
    reader = task((4, 4))
    readout = reader.read(sure([[2, 2, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2]]), None)
    prediction = reader.prediction(to_host(readout.answer), 0, (200, 100))
    assert prediction.mask.tolist() == [[VOID] * 4, [0, 0, 1, 1], [0, 0, 1, 1], [VOID] * 4]
    assert dict(prediction.shares) == {"sky": 0.5, "road": 0.5, "car": 0}
    assert (
        reader.judge(prediction, mask_of([[1] * 4, [0, 0, 1, 1], [0, 0, 1, 1], [1] * 4])).quality
        == 1
    )


def test_quality_by_hand() -> None:
    """Mean IoU over the classes of either map, without pixels that have no label."""
    truth = mask_of([[0, 0, 1, VOID]])
    reader = task((1, 4))
    assert reader.judge(answer([[0, 0, 1, 2]]), truth).quality == 1
    # sky: 1 of 2; road: 1 of 2; car is said at a void pixel only and does not count.
    assert reader.judge(answer([[0, 1, 1, 2]]), truth).quality == pytest.approx((0.5 + 0.5) / 2)
    # A class that is said where it is not costs.
    assert reader.judge(answer([[0, 2, 1, 0]]), truth).quality == pytest.approx((0.5 + 1 + 0) / 3)
    assert reader.judge(answer([[2, 2, 2, 2]]), truth).quality == 0


def test_all_void_and_one_class() -> None:
    """Nothing to judge by is no mistake; one class alone is judged alone."""
    reader = task((1, 2))
    assert reader.judge(answer([[0, 1]]), mask_of([[VOID, VOID]])).quality == 1
    assert reader.judge(answer([[1, 1]]), mask_of([[1, 1]])).quality == 1
    tally = reader.tally()
    tally.add(answer([[0, 1]]), mask_of([[VOID, VOID]]))
    assert tally.figures()["miou"] is None
    tally.add(answer([[1, 1]]), mask_of([[1, 1]]))
    figures = tally.figures()
    assert figures["miou"] == figures["pixel_accuracy"] == 1
    assert figures["iou"] == {"sky": None, "road": 1.0, "car": None}


def test_truth_of_another_size_is_met() -> None:
    """A truth of the frame's own size is compared with the nearest pixels of the map."""
    reader = task((1, 2))
    assert reader.judge(answer([[0, 1]]), mask_of([[0, 0, 1, 1], [0, 0, 1, 1]])).quality == 1


def test_counts_add_up_to_the_run() -> None:
    """The IoU of a run is that of its pixels, not the mean over its frames."""
    reader = task((1, 4))
    truths = [mask_of([[0, 0, 0, 1]]), mask_of([[1, 1, 1, 1]])]
    answers = [answer([[0, 0, 0, 0]]), answer([[1, 1, 1, 1]])]
    tally = reader.tally()
    for one, truth in zip(answers, truths, strict=True):
        tally.add(one, truth)
    figures = tally.figures()
    assert figures["iou"] == {"sky": 3 / 4, "road": 4 / 5, "car": None}
    assert figures["miou"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert figures["pixel_accuracy"] == 7 / 8
    counts = [reader.counts(a, t) for a, t in zip(answers, truths, strict=True)]
    assert mean_iou(np.sum(counts, axis=0)) == pytest.approx(figures["miou"])


def test_an_answer_agrees_with_itself() -> None:
    """An answer that is taken as the truth has the quality 1."""
    reader = task((1, 3))
    one = answer([[0, 1, 2]])
    assert reader.judge(one, reader.target(one)).quality == 1


def test_training_rows_are_the_labelled_pixels() -> None:
    """Each pixel of the logits takes the nearest label; void pixels are no rows."""
    reader = task((4, 4))
    logits = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)
    labels = torch.full((2, 4, 4), VOID, dtype=torch.uint8)
    labels[0, :2, :2] = 1
    labels[1, 2:, 2:] = 2
    rows, truth = reader.training_rows([logits, -logits], labels)
    assert truth.tolist() == [1, 2]
    assert truth.dtype == torch.int64
    assert rows[0].tolist() == [logits[0, :, 0, 0].tolist(), logits[1, :, 1, 1].tolist()]
    assert torch.equal(rows[1], -rows[0])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"kind": "segmentation", "confidence_floor": 1.5}, r"confidence_floor: 1\.5 must lie"),
        ({"kind": "segmentation", "top_k": 3}, r"task\.top_k: unknown option"),
    ],
)
def test_wrong_task_mapping_is_refused(spec: dict[str, Any], expected: str) -> None:
    """An unknown option, or a value that makes no sense, is named."""
    with pytest.raises(PipelineError, match=expected):
        build_task(spec, LABELS, TOY_PREPROCESSING)


def test_more_classes_than_a_map_has_room_for() -> None:
    """255 classes cannot be told apart in a map of bytes that keeps one for void."""
    with pytest.raises(PipelineError, match="255 are too many"):
        build_task({"kind": "segmentation"}, [str(i) for i in range(255)], TOY_PREPROCESSING)
