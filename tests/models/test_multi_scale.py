from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from streamexit.errors import PipelineError
from streamexit.models.architectures import build_network
from streamexit.models.cost import gflops_per_exit
from streamexit.models.multi_scale_resnet import HEAD_WIDTH, Layer
from streamexit.preprocessing import Preprocessing
from tests.conftest import ROOT
from tests.models.checks import check_every_weight_learns, run_both_ways

CIFAR = Preprocessing(32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
NETWORK: dict[str, Any] = {
    "architecture": "multi_scale_resnet",
    "widths": [8, 16, 32],
    "layers": [[], [3], [2, 1]],
    "num_classes": 5,
}


@pytest.mark.parametrize(
    ("layers", "carried"),
    [([[], [3], [2, 1]], [3, 2]), ([[3], [3, 2], [1]], [3, 1]), ([[], [1], [1]], [1, 1])],
)
def test_stage_by_stage_with_as_many_scales_as_are_looked_at(
    layers: list[list[int]], carried: list[int]
) -> None:
    """Stage by stage gives the same; a stage hands on only the scales that the next one refines."""
    torch.manual_seed(2)
    network = build_network({**NETWORK, "layers": layers}, CIFAR)
    outputs = run_both_ways(network)
    shapes = [(8, 32, 32), (16, 16, 16), (32, 8, 8)]
    for output, scales in zip(outputs, [*carried, 0], strict=True):
        assert output.logits.shape == (2, 5)
        assert [tuple(f.shape[1:]) for f in output.features] == shapes[len(shapes) - scales :]
    assert len({float(o.logits[0, 0]) for o in outputs}) == len(layers)


def test_layer_leaves_finer_scales_out() -> None:
    """A layer of two scales passes the finest one through and does not look at it."""
    torch.manual_seed(1)
    layer = Layer([4, 8, 16], 2).eval()
    finest, middle, coarse = (torch.randn(1, 4 * 2**s, 32 // 2**s, 32 // 2**s) for s in range(3))
    with torch.inference_mode():
        one = layer((finest, middle, coarse))
        other = layer((finest + 1, middle, coarse))
        moved = layer((finest, middle + 1, coarse))
    assert one[0] is finest
    assert not torch.equal(one[1], middle)
    assert torch.equal(one[1], other[1])
    assert torch.equal(one[2], other[2])
    assert not torch.equal(one[2], moved[2])


def test_shipped_network_has_cheap_exits_and_light_heads() -> None:
    """In the recipe that ships, costs rise, the first exit is below a quarter, a head at most 3%."""
    content = yaml.safe_load((ROOT / "pipelines/cifar10-multi-scale/train.yaml").read_text())
    spec = content["network"]
    costs = gflops_per_exit(build_network(spec, CIFAR))
    assert list(costs) == sorted(set(costs))
    assert costs[0] < 0.25 * costs[-1]
    places = (CIFAR.height // 4) * (CIFAR.width // 4)
    head = 2 * (places * spec["widths"][-1] * HEAD_WIDTH + HEAD_WIDTH * 10) / 1e9
    assert head <= 0.03 * costs[-1]


def test_every_weight_learns() -> None:
    """Each weight gets a finite gradient from the exits."""
    torch.manual_seed(0)
    check_every_weight_learns(build_network(NETWORK, CIFAR))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"widths": [8]}, "network.widths: [8] must be a list of 2 or more"),
        ({"widths": [8, 0]}, "each 1 or more"),
        ({"layers": []}, "must hold a list for each exit"),
        ({"layers": [[], []]}, "network.layers[1]: [] must be a list of 1 or more"),
        ({"layers": [[], 3]}, "network.layers[1]: 3 must be a list"),
        ({"layers": [[], [0]]}, "each 1 or more"),
        ({"layers": [[], [4]]}, "no more than"),
        ({"layers": [[], [2], [3]]}, "no more than"),
        ({"layers": [[], [2, 3]]}, "no more than"),
        ({"depth": 20}, "depth"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], expected: str) -> None:
    """Arguments that describe no such network name what is wrong."""
    with pytest.raises(PipelineError, match="network") as caught:
        build_network({**NETWORK, **change}, CIFAR)
    assert expected in str(caught.value)
