from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from streamexit.training.losses import exit_weights, multi_exit_loss


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
