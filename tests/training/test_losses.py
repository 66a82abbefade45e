from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from streamexit.training.losses import cost_aware_loss, exit_weights, multi_exit_loss


@pytest.mark.parametrize("num_exits", [1, 2, 3, 7])
def test_exit_weights_sum_to_one_and_rise_in_proportion(num_exits: int) -> None:
    """Exit k counts k times as much as the first, and all together count one."""
    weights = exit_weights(num_exits)
    assert sum(weights) == pytest.approx(1)
    assert weights == pytest.approx([k * weights[0] for k in range(1, num_exits + 1)])


@pytest.mark.parametrize("rows", [1, 4])
def test_loss_is_the_hand_worked_one(rows: int) -> None:
    """Two exits, two classes, T = 2: every term worked by hand; a mean over the batch."""
    early = torch.tensor([[0.0, 0.0]]).repeat(rows, 1)
    last = torch.tensor([[math.log(3), 0.0]]).repeat(rows, 1)
    labels = torch.zeros(rows, dtype=torch.int64)
    teacher = math.sqrt(3) / (math.sqrt(3) + 1)  # softmax of (log 3, 0) / 2
    divergence = sum(q * math.log(q / 0.5) for q in (teacher, 1 - teacher))
    expected = (0.75 * math.log(2) + 0.25 * 4 * divergence) / 3 + 2 / 3 * math.log(4 / 3)
    loss = multi_exit_loss([early, last], labels, distillation=0.25, temperature=2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def logits(seed: int) -> list[torch.Tensor]:
    """Random logits of three exits."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 4, generator=generator).requires_grad_() for _ in range(3)]


def test_without_distillation_it_is_the_weighted_cross_entropy() -> None:
    """With distillation 0 the loss is the weighted sum of each exit's cross-entropy."""
    outputs, labels = logits(0), torch.tensor([0, 1, 2, 3, 0])
    loss = multi_exit_loss(outputs, labels, distillation=0.0, temperature=3.0)
    own = [cross_entropy(z, labels).item() for z in outputs]
    assert loss.item() == pytest.approx((own[0] + 2 * own[1] + 3 * own[2]) / 6, rel=1e-6)


def test_teacher_gets_no_gradient_from_its_pupils() -> None:
    """The last exit's gradient is that of its own cross-entropy; early exits feel the teacher."""
    labels = torch.tensor([0, 1, 2, 3, 0])
    gradients = []
    for distillation in (0.0, 1.0):
        outputs = logits(0)
        loss = multi_exit_loss(outputs, labels, distillation=distillation, temperature=3.0)
        gradients.append(torch.autograd.grad(loss, outputs, allow_unused=True))
    (plain_early, _, plain_last), (early, _, last) = gradients
    torch.testing.assert_close(plain_last, last)
    assert not torch.allclose(plain_early, early)


def test_agreeing_with_the_teacher_costs_nothing() -> None:
    """With pure distillation an early exit that equals the last one adds no loss and no gradient."""
    last = logits(0)[0]
    early = last.detach().clone().requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0])
    loss = multi_exit_loss([early, last], labels, distillation=1.0, temperature=3.0)
    assert loss.item() == pytest.approx(2 / 3 * cross_entropy(last, labels).item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert early.grad is not None
    assert float(early.grad.abs().max()) < 1e-6


def test_equal_weights() -> None:
    """MSDNet's weights are all the same and sum to one."""
    assert exit_weights(4, rising=False) == [0.25] * 4
    outputs, labels = logits(0), torch.tensor([0, 1, 2, 3, 0])
    loss = multi_exit_loss(outputs, labels, distillation=0, temperature=1, rising=False)
    own = [cross_entropy(z, labels).item() for z in outputs]
    assert loss.item() == pytest.approx(sum(own) / 3, rel=1e-6)


# EENets' mixtures for two samples, three exits and two classes, in plain Python.
ANSWERS = [[(0.6, 0.4), (0.3, 0.7)], [(0.8, 0.2), (0.4, 0.6)], [(0.9, 0.1), (0.05, 0.95)]]
CONFIDENCE = [(0.25, 0.75), (0.5, 0.1), (0.3, 0.3)]
LABELS = (0, 1)
COSTS = (0.2, 0.5, 1.0)


def mixture_loss(start: int, cost_weight: float) -> float:
    """NLL and cost of the mixture that starts at exit `start`, mean over both samples."""
    total = 0.0
    for n in range(2):
        answer, cost = ANSWERS[2][n][LABELS[n]], COSTS[2]
        for k in reversed(range(start, 2)):
            h = CONFIDENCE[k][n]
            answer = h * ANSWERS[k][n][LABELS[n]] + (1 - h) * answer
            cost = h * COSTS[k] + (1 - h) * cost
        total += -math.log(answer) + cost_weight * cost
    return total / 2


def cost_aware(
    version: str, cost_weight: float, *, scale: float = 0.0
) -> tuple[float, list[float]]:
    """(the loss of the case above, mean size of the gradient per confidence)."""
    outputs = [torch.tensor(rows).log() + scale for rows in ANSWERS]
    confidence = [torch.tensor(h).requires_grad_() for h in CONFIDENCE]
    loss = cost_aware_loss(
        outputs, confidence, torch.tensor(LABELS), COSTS, version=version, cost_weight=cost_weight
    )
    if version != "v0":
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [h.grad for h in confidence]
    return loss.item(), [0.0 if g is None else float(g.abs().mean()) for g in gradients]


@pytest.mark.parametrize("scale", [0.0, 7.0])
@pytest.mark.parametrize("cost_weight", [0.0, 1.0, 2.5])
def test_cost_aware_loss_is_the_hand_worked_one(cost_weight: float, scale: float) -> None:
    """EENets' v0 is every exit's own loss, v1 the first mixture's, v2 the sum over all suffixes."""
    own = [
        sum(-math.log(row[y]) for row, y in zip(rows, LABELS, strict=True)) / 2 for rows in ANSWERS
    ]
    assert cost_aware("v0", cost_weight, scale=scale)[0] == pytest.approx(sum(own), rel=1e-5)
    suffixes = [mixture_loss(k, cost_weight) for k in range(3)]
    assert cost_aware("v1", cost_weight, scale=scale)[0] == pytest.approx(suffixes[0], rel=1e-5)
    assert cost_aware("v2", cost_weight, scale=scale)[0] == pytest.approx(sum(suffixes), rel=1e-5)


def test_cost_aware_loss_by_its_numbers() -> None:
    """The first sample's Y is 1/4 0.6 + 3/4 (1/2 0.8 + 1/2 0.9) = 0.7875, its cost 0.6125."""
    second = 0.75 * 0.7 + 0.25 * (0.1 * 0.6 + 0.9 * 0.95)
    cost = 0.75 * 0.2 + 0.25 * (0.1 * 0.5 + 0.9 * 1.0)
    expected = (-math.log(0.7875) - math.log(second) + 0.6125 + cost) / 2
    assert cost_aware("v1", 1.0)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_gradient_reaches_the_confidence_branch(version: str) -> None:
    """Every confidence but the last one's is taught."""
    _, sizes = cost_aware(version, 1.0)
    assert sizes[0] > 0.01
    assert sizes[1] > 0.01
    assert sizes[2] == 0


def test_confidences_of_zero_and_one_stay_finite() -> None:
    """A saturated confidence branch neither breaks the loss nor its gradient."""
    outputs = [torch.randn(2, 3).requires_grad_() for _ in range(2)]
    confidence = [torch.tensor([0.0, 1.0]).requires_grad_(), torch.ones(2)]
    loss = cost_aware_loss(
        outputs, confidence, torch.tensor([0, 1]), (0.5, 1.0), version="v2", cost_weight=1.0
    )
    gradients = torch.autograd.grad(loss, [*outputs, confidence[0]])
    assert math.isfinite(loss.item())
    assert all(torch.isfinite(g).all() for g in gradients)
