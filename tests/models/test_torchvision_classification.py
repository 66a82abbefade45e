from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from streamexit.errors import PipelineError
from streamexit.models.architectures import build_network
from streamexit.models.cost import gflops_per_exit
from streamexit.models.torchvision_classification import cut
from streamexit.preprocessing import Preprocessing

SMALL = Preprocessing(64, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SHARES = [0.25, 0.5, 0.75]

FAMILIES = [
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "convnext_tiny",
    "densenet121",
    "regnet_y_400mf",
    "regnet_x_400mf",
    "swin_t",
    "swin_v2_t",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_last_exit_is_the_uncut_network(name: str) -> None:
    """Bit for bit what torchvision's network says, and every early exit near where it was wanted."""
    torch.manual_seed(0)
    whole = getattr(models, name)(weights=None, num_classes=7).eval()
    network = cut(whole, exits=SHARES, num_classes=7, preprocessing=SMALL).eval()
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        outputs = network(pictures)
        expected = whole(network.normalise(pictures))
    assert torch.equal(outputs[-1].logits, expected)
    assert [tuple(o.logits.shape) for o in outputs] == [(2, 7)] * 4
    assert outputs[-1].features == ()
    costs = gflops_per_exit(network)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert costs[-1] == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-12)
    for share, cost in zip(SHARES, costs, strict=False):
        assert cost / costs[-1] == pytest.approx(share, abs=0.12)


def test_training_mode_reaches_every_block() -> None:
    """A cut network is trained as one: dropping of paths and of units follows `train` and `eval`."""
    network = build_network({"torchvision": "efficientnet_b0", "exits": [0.5]}, SMALL)
    parts = list(network.modules())
    assert {part.training for part in network.train().modules()} == {True}
    assert any("StochasticDepth" in type(part).__name__ for part in parts)
    assert {part.training for part in network.eval().modules()} == {False}
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    loss = sum(output.logits.sum() for output in network.train()(pictures))
    assert isinstance(loss, torch.Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in network.parameters())


def test_no_early_exit_is_one_stage() -> None:
    """The list of exits may be empty."""
    network = build_network({"torchvision": "mobilenet_v3_small", "exits": []}, SMALL)
    assert network.num_exits == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"torchvision": "resnet51", "exits": []}, "did you mean 'resnet5"),
        ({"torchvision": "vgg16", "exits": []}, "network.torchvision: 'vgg16'"),
        ({"torchvision": "resnet18", "exits": [0.5, 0.25]}, "must be shares of the cost"),
        ({"torchvision": "resnet18", "exits": [1.0]}, "must be shares of the cost"),
        ({"torchvision": "resnet18", "exits": ["half"]}, "must be shares of the cost"),
        ({"torchvision": "resnet18", "exits": [0.5, 0.501]}, "fall on one place; .* places at 0"),
        ({"torchvision": "resnet18", "exits": [0.5], "num_classes": 1}, "network.num_classes: 1"),
        ({"torchvision": "resnet18"}, "exits"),
    ],
)
def test_arguments_that_describe_no_network(spec: dict[str, object], message: str) -> None:
    """Each refusal names the field, the value and what would be right."""
    with pytest.raises(PipelineError, match=message):
        build_network(spec, SMALL)
