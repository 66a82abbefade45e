from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from streamexit.errors import PipelineError
from streamexit.models import densenet, msdnet
from streamexit.models.architectures import build_network
from streamexit.models.cost import gflops_per_exit
from streamexit.models.network import Features, MultiExitNetwork
from streamexit.preprocessing import Preprocessing
from tests.models.checks import check_every_weight_learns, pictures, run_both_ways

CIFAR = Preprocessing(32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
DENSENET_121 = {
    "architecture": "densenet",
    "blocks": [6, 12, 24, 16],
    "growth": 12,
    "num_classes": 100,
}
MSDNET_CIFAR = {
    "architecture": "msdnet",
    "channels": 16,
    "growth": 6,
    "factors": [1, 2, 4],
    "bottleneck": True,
    "base": 4,
    "step": 2,
    "num_exits": 5,
    "num_classes": 10,
}
SMALL = [
    {**DENSENET_121, "blocks": [1, 2, 1], "growth": 4},
    {**DENSENET_121, "blocks": [2, 1], "growth": 4, "stem_stride": 2, "bottleneck": 2},
    {**MSDNET_CIFAR, "channels": 4, "growth": 2, "base": 1, "step": 1},
    {**MSDNET_CIFAR, "channels": 4, "growth": 2, "base": 3, "num_exits": 2, "prune": False},
    {**MSDNET_CIFAR, "channels": 4, "growth": 2, "bottleneck": False, "stem_stride": 2},
    {**MSDNET_CIFAR, "growth": 4, "factors": [1, 1, 1, 1], "base": 1, "num_exits": 1},
]
small = pytest.mark.parametrize(
    "spec", SMALL, ids=["densenet", "stride", "msdnet", "whole", "no-bottleneck", "one-layer"]
)
realistic = pytest.mark.parametrize(
    "spec", [DENSENET_121, MSDNET_CIFAR], ids=["densenet", "msdnet"]
)


def carried(network: MultiExitNetwork) -> list[list[tuple[int, ...]]]:
    """Shapes [C', H', W'] of what each stage hands on."""
    with torch.inference_mode():
        return [[tuple(x.shape[1:]) for x in o.features] for o in network.eval()(pictures(network))]


@small
def test_running_stage_by_stage_is_the_forward_pass(spec: dict[str, Any]) -> None:
    """Each exit scores every class, alike in one go and stage by stage; the last hands on nothing."""
    torch.manual_seed(0)
    for output in run_both_ways(build_network(spec, CIFAR)):
        assert output.logits.shape == (2, spec["num_classes"])


@small
def test_every_parameter_learns(spec: dict[str, Any]) -> None:
    """The exits' losses reach all parameters: nothing is computed that no exit looks at."""
    torch.manual_seed(0)
    check_every_weight_learns(build_network(spec, CIFAR))


@realistic
def test_costs_rise_and_heads_are_light(spec: dict[str, Any]) -> None:
    """Shares of the cost rise from exit to exit, and no head costs over 3% of the network."""
    network = build_network(spec, CIFAR).eval()
    costs = gflops_per_exit(network)
    assert list(costs) == sorted(set(costs))
    features: Features = (pictures(network, 1),)
    with torch.inference_mode():
        for k, stage in enumerate(network.stages):
            seen: list[Tensor] = []
            head = stage.get_submodule("head")
            hook = head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.extend(inputs))
            features = network.run_stage(k, features).features
            hook.remove()
            with FlopCounterMode(display=False) as counter:
                head(seen[0])
            assert counter.get_total_flops() / 1e9 < 0.03 * costs[-1]


def test_densenet_121_has_the_layers_that_its_name_says() -> None:
    """121 layers: a stem, 58 pairs, three transitions, one linear layer; channels as in the paper."""
    network = build_network(DENSENET_121, CIFAR)
    trunks = [stage.get_submodule("trunk") for stage in network.stages]
    kernels = [m.kernel_size for t in trunks for m in t.modules() if isinstance(m, nn.Conv2d)]
    assert (kernels.count((3, 3)), kernels.count((1, 1))) == (1 + 58, 58 + 3)
    assert len(kernels) + 1 == 121
    assert carried(network) == [[(48, 16, 16)], [(96, 8, 8)], [(192, 4, 4)], []]
    last = network.stages[3].get_submodule("head")
    assert [m.in_features for m in last.modules() if isinstance(m, nn.Linear)] == [384]


def test_densenet_keeps_the_share_of_channels_that_it_was_told() -> None:
    """Compression is the share of channels behind a transition; the stem's stride halves all sizes."""
    network = densenet.build(
        blocks=[2, 2],
        growth=4,
        num_classes=5,
        preprocessing=CIFAR,
        compression=0.75,
        stem_stride=2,
    )
    assert carried(network) == [[(12, 8, 8)], []]


def test_dense_layer_hands_its_input_on() -> None:
    """The first channels of a dense layer's output are its input, untouched."""
    layer = densenet.DenseLayer(5, 3, 4).eval()
    x = torch.randn(2, 5, 4, 4)
    y = layer(x.clone())
    assert y.shape == (2, 8, 4, 4)
    assert torch.equal(y[:, :5], x)


def test_msdnet_carries_every_scale_where_nothing_is_dropped() -> None:
    """Each layer adds growth x factor channels to each scale; the last layers need only the coarse."""
    network = build_network({**MSDNET_CIFAR, "prune": False}, CIFAR)
    four = [(16 + 4 * 6, 32, 32), (32 + 4 * 12, 16, 16), (64 + 4 * 24, 8, 8)]
    assert carried(network)[0] == four
    assert [len(scales) for scales in carried(network)] == [3, 3, 3, 3, 0]
    assert carried(network)[3][2] == (64 + 10 * 24, 8, 8)


def test_msdnet_drops_the_finest_scale_in_each_third_and_halves_the_channels() -> None:
    """Of 12 layers the first 4 work on three scales, the next 4 on two, the last 4 on one."""
    network = build_network({**MSDNET_CIFAR, "base": 4, "step": 1, "num_exits": 9}, CIFAR)
    shapes = carried(network)
    assert [len(scales) for scales in shapes] == [3, 2, 2, 2, 2, 1, 1, 1, 0]
    assert shapes[0] == [(40, 32, 32), (80, 16, 16), (160, 8, 8)]
    assert shapes[1] == [((80 + 12) // 2, 16, 16), ((160 + 24) // 2, 8, 8)]
    assert shapes[2] == [(46 + 12, 16, 16), (92 + 24, 8, 8)]
    assert shapes[5] == [((92 + 3 * 24 + 24) // 2, 8, 8)]


def test_msdnet_layer_reads_each_scale_and_the_finer_one() -> None:
    """A scale's new features depend on it and on the next finer one, and on no other."""
    torch.manual_seed(0)
    layer = msdnet.Layer([4, 4, 4], [2, 2, 2], None).eval()
    features = tuple(torch.randn(1, 4, size, size) for size in (16, 8, 4))
    before = layer(features)
    changed = layer((features[0] + 1, *features[1:]))
    assert [tuple(x.shape) for x in before] == [(1, 6, 16, 16), (1, 6, 8, 8), (1, 6, 4, 4)]
    same = [torch.equal(x[:, 4:], y[:, 4:]) for x, y in zip(before, changed, strict=True)]
    assert same == [False, False, True]


def test_msdnet_layer_still_reads_the_scale_that_it_drops() -> None:
    """The layer that drops the finest scale is the last to learn from it."""
    torch.manual_seed(0)
    layer = msdnet.Layer([4, 4, 4], [2, 2], None).eval()
    features = tuple(torch.randn(1, 4, size, size) for size in (16, 8, 4))
    before = layer(features)
    changed = layer((features[0] + 1, *features[1:]))
    assert [tuple(x.shape) for x in before] == [(1, 6, 8, 8), (1, 6, 4, 4)]
    assert not torch.equal(before[0], changed[0])
    assert torch.equal(before[1], changed[1])


def test_bottlenecks_narrow_what_the_convolutions_read() -> None:
    """With bottlenecks no 3x3 convolution of a layer reads over factor x what it makes."""
    network = build_network(MSDNET_CIFAR, CIFAR)
    layers = [m for m in network.modules() if isinstance(m, msdnet.Layer)]
    assert len(layers) == 12
    for convolution in (m for layer in layers for m in layer.modules()):
        if isinstance(convolution, nn.Conv2d) and convolution.kernel_size == (3, 3):
            assert convolution.in_channels <= 4 * convolution.out_channels


@pytest.mark.parametrize(
    ("spec", "change", "expected"),
    [
        (DENSENET_121, {"blocks": []}, r"network\.blocks: \[\] must be a list of 1 or more"),
        (DENSENET_121, {"blocks": 6}, r"network\.blocks: 6 must be a list"),
        (DENSENET_121, {"blocks": [6, 0]}, r"network\.blocks: \[6, 0\].*1 or more"),
        (DENSENET_121, {"blocks": [6, "12"]}, r"network\.blocks: \[6, '12'\]"),
        (DENSENET_121, {"blocks": [1] * 7}, r"network\.blocks: .*6 times.*32x32"),
        (DENSENET_121, {"growth": 0}, r"network\.growth: 0 must be a whole number, 1 or more"),
        (DENSENET_121, {"growth": True}, r"network\.growth: True"),
        (DENSENET_121, {"bottleneck": 0.5}, r"network\.bottleneck: 0\.5"),
        (DENSENET_121, {"compression": 0}, r"network\.compression: 0 must lie between"),
        (DENSENET_121, {"compression": 1.5}, r"network\.compression: 1\.5"),
        (DENSENET_121, {"compression": "half"}, r"network\.compression: 'half'"),
        (DENSENET_121, {"stem_stride": 3}, r"network\.stem_stride: 3 must be 1 or 2"),
        (DENSENET_121, {"num_classes": 1}, r"network\.num_classes: 1 .*2 or more"),
        (MSDNET_CIFAR, {"factors": [1]}, r"network\.factors: \[1\] must be a list of 2 or more"),
        (MSDNET_CIFAR, {"factors": [1, -2]}, r"network\.factors: \[1, -2\]"),
        (MSDNET_CIFAR, {"growth": 3, "factors": [1, 1]}, r"network\.growth: 3 .*even"),
        (MSDNET_CIFAR, {"growth": "six"}, r"network\.growth: 'six'"),
        (MSDNET_CIFAR, {"channels": 0}, r"network\.channels: 0"),
        (MSDNET_CIFAR, {"base": 0}, r"network\.base: 0"),
        (MSDNET_CIFAR, {"step": 0}, r"network\.step: 0"),
        (MSDNET_CIFAR, {"num_exits": 0}, r"network\.num_exits: 0"),
        (MSDNET_CIFAR, {"num_classes": "ten"}, r"network\.num_classes: 'ten'"),
        (MSDNET_CIFAR, {"bottleneck": 1}, r"network\.bottleneck: 1 must be true or false"),
        (MSDNET_CIFAR, {"prune": "max"}, r"network\.prune: 'max'"),
        (MSDNET_CIFAR, {"stem_stride": 0}, r"network\.stem_stride: 0"),
    ],
)
def test_arguments_that_describe_no_network_are_refused(
    spec: dict[str, Any], change: dict[str, Any], expected: str
) -> None:
    """A wrong argument is named with its value and with what would be right."""
    with pytest.raises(PipelineError, match=expected):
        build_network({**spec, **change}, CIFAR)
