from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from streamexit.errors import PipelineError
from streamexit.prediction import Classification
from streamexit.tasks.classification import ClassificationTask
from streamexit.tasks.kinds import build_task
from streamexit.testing import TOY_PREPROCESSING

LABELS = ("ant", "bee", "cat")


def logits(*probabilities: float) -> torch.Tensor:
    """Logits [1, C] whose softmax is `probabilities`."""
    return torch.tensor([probabilities]).log() + 5  # a constant changes no probability


def test_readout_is_the_hand_worked_one() -> None:
    """Softmax, top-k and the confidence features are those of the formulas."""
    task = ClassificationTask(labels=LABELS, top_k=2)
    readout = task.read(torch.cat([logits(0.25, 0.5, 0.25), logits(0.7, 0.1, 0.2)]), None)
    assert readout.distribution[1].tolist() == pytest.approx([0.7, 0.1, 0.2], abs=1e-6)
    certainty = 1 + (0.5 * math.log(0.5) + 0.5 * math.log(0.25)) / math.log(3)
    assert readout.confidence[0].tolist() == pytest.approx([0.5, certainty, 1, 1], abs=1e-6)
    answer = task.prediction(tuple(t.tolist() for t in readout.answer), 1)
    assert answer == Classification("ant", 0, 0.7, (("ant", 0.7), ("cat", 0.2)))


def test_vote_is_the_share_of_exits_that_agree_with_the_most_frequent_answer() -> None:
    """Over answers ant, bee, bee, cat, bee the vote goes 1, 1/2, 2/3, 2/4, 3/5."""
    task = ClassificationTask(labels=LABELS)
    carry, votes = None, []
    for winner in (0, 1, 1, 2, 1):
        probabilities = [0.2, 0.2, 0.2]
        probabilities[winner] = 0.6
        readout = task.read(logits(*probabilities), carry)
        carry = readout.carry
        votes.append(float(readout.confidence[0, 2]))
    assert votes == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4, 3 / 5])


def test_run_is_the_unbroken_stretch_of_one_answer() -> None:
    """Over answers ant, bee, bee, bee, ant, ant the run goes 1, 1/2, 2/3, 3/4, 1/5, 2/6."""
    task = ClassificationTask(labels=LABELS)
    carry, runs = None, []
    for winner in (0, 1, 1, 1, 0, 0):
        probabilities = [0.2, 0.2, 0.2]
        probabilities[winner] = 0.6
        readout = task.read(logits(*probabilities), carry)
        carry = readout.carry
        runs.append(float(readout.confidence[0, 3]))
    assert runs == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 1 / 5, 2 / 6])


def test_rows_do_not_mix() -> None:
    """A frame's readout is the same alone and in a batch."""
    task = ClassificationTask(labels=LABELS)
    first, second = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    together = task.read(second, task.read(first, None).carry)
    for row in range(6):
        one = slice(row, row + 1)
        alone = task.read(second[one], task.read(first[one], None).carry)
        torch.testing.assert_close(alone.confidence, together.confidence[one])


@pytest.mark.parametrize(
    ("values", "confidence"),
    [
        ([0.0, 0.0, 0.0], [1 / 3, 0]),
        ([1e4, -1e4, 0.0], [1, 1]),
        ([1e30, -1e30, 0.0], [1, 1]),
        ([3e38, -3e38, 0.0], [1, 1]),
        ([0.0, -math.inf, -math.inf], [1, 1]),
    ],
)
def test_extreme_logits_stay_numbers(values: list[float], confidence: list[float]) -> None:
    """However far apart the logits are, confidence is a number from 0 (uniform) to 1 (certain)."""
    readout = ClassificationTask(labels=LABELS).read(torch.tensor([values]), None)
    assert readout.confidence[0, :2].tolist() == pytest.approx(confidence, abs=1e-6)


def test_confidence_stays_within_its_bounds() -> None:
    """Rounding never takes a uniform distribution's confidence out of [0, 1]."""
    for classes in range(2, 101):
        task = ClassificationTask(labels=[str(i) for i in range(classes)])
        confidence = task.read(torch.full((1, classes), 0.3), None).confidence
        assert 0 <= float(confidence.min()) <= float(confidence.max()) <= 1


def test_top_k_is_at_most_all_classes() -> None:
    """Asking for more classes than there are names them all, most probable first."""
    task = ClassificationTask(labels=LABELS, top_k=9)
    readout = task.read(logits(0.2, 0.3, 0.5), None)
    answer = task.prediction(tuple(t.tolist() for t in readout.answer), 0)
    assert [name for name, _ in answer.top] == ["cat", "bee", "ant"]
    assert task.judge(answer, 2).quality == 1
    assert task.judge(answer, 1).quality == 0
    assert task.judge(answer, task.target(answer)).quality == 1


def test_task_is_built_from_its_mapping() -> None:
    """A pipeline's task mapping sets kind and top-k."""
    task = build_task({"kind": "classification", "top_k": 1}, LABELS, TOY_PREPROCESSING)
    assert task.labels == LABELS
    assert task.read(logits(0.2, 0.3, 0.5), None).answer[0].tolist() == [[2]]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, r"task\.kind: None is unknown; known are classification, segmentation"),
        ({"kind": "detection"}, r"task\.kind: 'detection' is unknown"),
        ({"kind": "classification", "topk": 1}, r"task\.topk: unknown option; known is top_k"),
        ({"kind": "classification", "top_k": 0}, r"task\.top_k: 0 must be"),
        ({"kind": "classification", "top_k": "3"}, r"task\.top_k: '3' must be"),
        ({"kind": "classification", "top_k": 1.5}, r"task\.top_k: 1.5 must be"),
        ({"kind": "classification", "top_k": None}, r"task\.top_k: None must be"),
    ],
)
def test_wrong_task_mapping_is_refused(spec: dict[str, Any], expected: str) -> None:
    """An unknown kind or option of a task names what is known."""
    with pytest.raises(PipelineError, match=expected):
        build_task(spec, LABELS, TOY_PREPROCESSING)
