from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from streamexit.errors import PipelineError
from streamexit.models.architectures import build_network
from streamexit.models.cifar_resnet import build
from streamexit.models.cost import gflops_per_exit
from streamexit.models.network import MultiExitNetwork, Stage
from streamexit.preprocessing import Preprocessing
from streamexit.testing import TOY_PREPROCESSING, toy_network
from tests.models.checks import run_both_ways

CIFAR = Preprocessing(32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
RESNET = {"architecture": "cifar_resnet", "depth": 8, "exits": [1, 3], "num_classes": 4}


@pytest.mark.parametrize(("depth", "exits"), [(8, [1, 2, 3]), (20, [2, 5, 9]), (20, [9])])
def test_resnet_answers_with_all_classes_at_every_exit(depth: int, exits: list[int]) -> None:
    """Each exit of a CIFAR ResNet gives one score per picture and class."""
    network = build(depth=depth, exits=exits, num_classes=7, preprocessing=CIFAR).eval()
    with torch.inference_mode():
        outputs = network(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert [tuple(output.logits.shape) for output in outputs] == [(2, 7)] * len(exits)


@pytest.mark.parametrize("depth", [20, 56])
def test_resnet_has_the_layers_that_its_name_says(depth: int) -> None:
    """A ResNet of depth d has d - 1 convolutions of 3x3 and one linear layer on its main path."""
    n = (depth - 2) // 6
    network = build(depth=depth, exits=[3 * n], num_classes=10, preprocessing=CIFAR)
    kernels = [m.kernel_size for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert kernels.count((3, 3)) == depth - 1
    assert kernels.count((1, 1)) == 2  # the two shortcuts that change the shape
    assert sum(isinstance(m, nn.Linear) for m in network.modules()) == 1


def test_exits_stand_where_they_were_asked_for() -> None:
    """An exit after block b has exactly b residual blocks before it."""
    network = build(depth=20, exits=[2, 5, 9], num_classes=10, preprocessing=CIFAR)
    blocks = [sum(type(m).__name__ == "BasicBlock" for m in s.modules()) for s in network.stages]
    assert blocks == [2, 3, 4]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"depth": 21}, "21 is not of the form"),
        ({"depth": 2}, "2 is not of the form"),
        ({"depth": -4}, "-4 is not of the form"),
        ({"depth": "twenty"}, "cifar_resnet"),
        ({"exits": []}, "must rise and end with the last block, 3"),
        ({"exits": [1, 2]}, "must rise and end with the last block, 3"),
        ({"exits": [2, 1, 3]}, "must rise"),
        ({"exits": [1, 1, 3]}, "must rise"),
        ({"exits": [0, 3]}, "must rise"),
        ({"exits": [1, 4]}, "must rise"),
        ({"exits": [1.5, 3]}, "network"),
        ({"exits": 3}, "cifar_resnet"),
        ({"num_classes": "ten"}, "cifar_resnet"),
        ({"num_classes": -1}, "cifar_resnet"),
        ({"width": 3}, "width"),
        ({"architecture": "cifar_resnt"}, "did you mean 'cifar_resnet'"),
        ({"architecture": ""}, "known are cifar_resnet"),
        ({"architecture": "no_such_module:build"}, "no_such_module"),
        ({"architecture": "streamexit.testing:nothing"}, "nothing"),
        ({"architecture": "streamexit.testing:TOY_LABELS"}, "not callable"),
        ({"architecture": "streamexit.testing:toy_pictures"}, "streamexit.testing:toy_pictures"),
        ({"architecture": ":build"}, ":build"),
    ],
)
def test_wrong_network_mapping_is_refused(change: dict[str, Any], expected: str) -> None:
    """An unknown architecture, or arguments that do not describe a network, name what is wrong."""
    with pytest.raises(PipelineError, match="network") as caught:
        build_network({**RESNET, **change}, CIFAR)
    assert expected in str(caught.value)


def test_missing_network_argument_is_named() -> None:
    """A mapping that leaves out an argument of its architecture says which."""
    spec = {key: value for key, value in RESNET.items() if key != "num_classes"}
    with pytest.raises(PipelineError, match="num_classes"):
        build_network(spec, CIFAR)


def not_a_network(*, preprocessing: Preprocessing) -> nn.Module:
    """A factory that makes something else."""
    return nn.Identity()


def test_own_architecture_is_named_as_module_and_factory() -> None:
    """A factory of one's own gets the mapping's keys and the preprocessing."""
    spec = {"architecture": "streamexit.testing:toy_network", "num_exits": 2, "num_classes": 5}
    network = build_network(spec, CIFAR)
    assert network.num_exits == 2
    assert network.preprocessing == CIFAR


def test_factory_must_return_a_multi_exit_network() -> None:
    """A factory that makes something else is refused."""
    with pytest.raises(PipelineError, match="did not return a MultiExitNetwork"):
        build_network({"architecture": f"{__name__}:not_a_network"}, CIFAR)


def test_cost_is_the_hand_count_and_passed_heads_are_paid_for() -> None:
    """Costs are 2 FLOPs per multiply-add, summed over the trunk and every head on the way."""
    first = Stage(
        nn.Conv2d(3, 5, 3, 2, 1), nn.Sequential(nn.Flatten(), nn.Linear(30, 7)), last=False
    )
    trunk = nn.Sequential(nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
    second = Stage(trunk, nn.Sequential(nn.Flatten(), nn.Linear(24, 7)), last=True)
    network = MultiExitNetwork([first, second], Preprocessing(6, 4, (0.5,) * 3, (0.5,) * 3))
    # 4 rows x 6 columns, halved: 2 x 3 = 6 places of the first convolution
    one = 2 * (6 * 5 * 3 * 3 * 3) + 2 * (30 * 7)
    two = one + 2 * (6 * 4 * 5) + 2 * (24 * 7)
    assert gflops_per_exit(network) == pytest.approx((one / 1e9, two / 1e9), rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_counting_changes_nothing(training: bool) -> None:
    """Counting rises per exit, is the same in both modes, and leaves mode and statistics alone."""
    network = build(depth=8, exits=[1, 2, 3], num_classes=4, preprocessing=CIFAR)
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    costs = gflops_per_exit(network)
    assert list(costs) == sorted(set(costs))
    assert all(module.training is training for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert gflops_per_exit(network.train(not training)) == costs


def test_first_stage_normalises_bytes_as_usual() -> None:
    """The network's first operation is (x / 255 - mean) / std per channel, on NHWC bytes."""
    stage = Stage(nn.Identity(), nn.Identity(), last=True)
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(2, 1, 1, 3)
    images[1] = images[1].flip(0)
    logits = MultiExitNetwork([stage], CIFAR)(images)[0].logits
    usual = images.permute(0, 3, 1, 2).double() / 255
    mean, std = (
        torch.tensor(t, dtype=torch.float64).view(3, 1, 1) for t in (CIFAR.mean, CIFAR.std)
    )
    torch.testing.assert_close(logits.double(), (usual - mean) / std, atol=1e-5, rtol=0)


def test_forward_is_the_stages_one_by_one() -> None:
    """Running all stages at once gives what running them one after the other gives."""
    torch.manual_seed(1)
    network = toy_network()
    assert len(run_both_ways(network)) == network.num_exits
    assert network.preprocessing == TOY_PREPROCESSING


@pytest.mark.parametrize("depth", [8, 20])
def test_confidence_heads_say_how_sure_they_are(depth: int) -> None:
    """With EENets' heads every exit gives a confidence in [0, 1] beside its logits."""
    torch.manual_seed(0)
    last = (depth - 2) // 2
    network = build(
        depth=depth, exits=[1, 2, last], num_classes=7, preprocessing=CIFAR, heads="confidence"
    ).eval()
    with torch.inference_mode():
        outputs = network(torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8))
    for output in outputs:
        assert output.logits.shape == (5, 7)
        assert output.confidence is not None
        assert output.confidence.shape == (5,)
        assert 0 <= float(output.confidence.min()) <= float(output.confidence.max()) <= 1
    light = build(depth=depth, exits=[1, 2, last], num_classes=7, preprocessing=CIFAR).eval()
    with torch.inference_mode():
        assert all(o.confidence is None for o in light(torch.zeros(1, 32, 32, 3).byte()))
    costs = gflops_per_exit(network)
    assert costs[-1] - gflops_per_exit(build(
        depth=depth, exits=[last], num_classes=7, preprocessing=CIFAR, heads="confidence"
    ))[-1] < 0.001 * costs[-1]  # fmt: skip


def test_unknown_heads_are_refused() -> None:
    """Heads of another kind are refused with those that there are."""
    with pytest.raises(PipelineError, match=r"network\.heads: 'heavy' must be light or confidence"):
        build_network({**RESNET, "heads": "heavy"}, CIFAR)
