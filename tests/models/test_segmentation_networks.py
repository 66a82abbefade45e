from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.models import segmentation

from streamexit.errors import PipelineError
from streamexit.models.architectures import build_network
from streamexit.models.cost import gflops_per_exit
from streamexit.models.network import Features
from streamexit.models.torchvision_segmentation import NETWORKS
from streamexit.preprocessing import Preprocessing
from tests.models.checks import check_every_weight_learns, run_both_ways

GREY = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = Preprocessing(96, 64, *GREY)
HRNET: dict[str, Any] = {
    "architecture": "hrnet",
    "width": 4,
    "modules": [1, 1, 1],
    "blocks": 1,
    "num_classes": 19,
}


def run(spec: dict[str, Any], preprocessing: Preprocessing = SMALL) -> list[torch.Tensor]:
    """Logits of all exits, after a check that stage by stage gives the same."""
    torch.manual_seed(0)
    network = build_network(spec, preprocessing)
    outputs = run_both_ways(network)
    costs = gflops_per_exit(network)
    assert list(costs) == sorted(set(costs))
    return [output.logits for output in outputs]


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision_networks_are_cut_at_the_auxiliary_classifier(name: str) -> None:
    """Two exits: the auxiliary classifier's place, and the network's own head."""
    spec = {"architecture": "torchvision_segmentation", "name": name, "num_classes": 5}
    logits = run(spec)
    assert [tuple(z.shape[:2]) for z in logits] == [(2, 5), (2, 5)]
    for z in logits:
        assert z.shape[2] >= 64 // 16
        assert z.shape[3] >= 96 // 16


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "lraspp_mobilenet_v3_large"])
def test_the_cut_network_is_the_whole_one(name: str) -> None:
    """With the same weights the last exit gives what torchvision's network gives."""
    spec = {"architecture": "torchvision_segmentation", "name": name, "num_classes": 3}
    torch.manual_seed(5)
    ours = build_network(spec, SMALL).eval()
    torch.manual_seed(5)
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    theirs = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=3, **options
    ).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        features: Features = (x,)
        outputs = []
        for stage in ours.stages:
            outputs.append(stage(features))
            features = outputs[-1].features
        expected = theirs(x)
        scaled = [
            torch.nn.functional.interpolate(
                o.logits, (64, 96), mode="bilinear", align_corners=False
            )
            for o in outputs
        ]
    assert torch.equal(scaled[-1], expected["out"])
    if "aux" in expected:
        assert torch.equal(scaled[0], expected["aux"])


def test_exits_can_stand_behind_other_layers() -> None:
    """Named layers get heads of the auxiliary kind; the own and the auxiliary head stay."""
    spec = {
        "architecture": "torchvision_segmentation",
        "name": "fcn_resnet50",
        "num_classes": 4,
        "exits": ["layer1", "layer2", "layer3", "layer4"],
    }
    assert [z.shape[1] for z in run(spec)] == [4] * 4


@pytest.mark.parametrize("size", [(96, 64), (50, 70)])
def test_hrnet_has_four_exits_at_a_quarter_of_the_size(size: tuple[int, int]) -> None:
    """Behind each stage a map at a quarter, of odd sizes, too."""
    width, height = size
    logits = run(HRNET, Preprocessing(width, height, *GREY))
    quarter = ((height + 3) // 4, (width + 3) // 4)
    assert [tuple(z.shape) for z in logits] == [(2, 19, *quarter)] * 4


def test_hrnet_of_the_paper_has_its_size() -> None:
    """HRNetV2-W18 has 9.6 million weights; ours has three heads more."""
    network = build_network({"architecture": "hrnet", "width": 18, "num_classes": 19}, SMALL)
    early = [f"stages.{k}.head." for k in range(3)]
    weights = sum(
        p.numel() for name, p in network.named_parameters() if not name.startswith(tuple(early))
    )
    assert weights == pytest.approx(9.6e6, rel=0.02)


def test_hrnet_learns() -> None:
    """Each weight gets a finite gradient."""
    torch.manual_seed(0)
    check_every_weight_learns(build_network(HRNET, SMALL))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({**HRNET, "width": 0}, "network.width: 0"),
        ({**HRNET, "modules": []}, "network.modules: []"),
        ({**HRNET, "blocks": "four"}, "network.blocks"),
        ({"architecture": "torchvision_segmentation", "name": "unet"}, "network"),
        (
            {"architecture": "torchvision_segmentation", "name": "unet", "num_classes": 2},
            "network.name: 'unet' is not one of lraspp_mobilenet_v3_large",
        ),
        (
            {
                "architecture": "torchvision_segmentation",
                "name": "fcn_resnet50",
                "num_classes": 2,
                "exits": ["layer3"],
            },
            "must rise in conv1",
        ),
    ],
)
def test_wrong_arguments_are_refused(spec: dict[str, Any], expected: str) -> None:
    """Arguments that describe no such network name what is wrong."""
    with pytest.raises(PipelineError, match="network") as caught:
        build_network(spec, SMALL)
    assert expected in str(caught.value)
