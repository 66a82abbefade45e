from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.models import segmentation

from streamexit.errors import ConfigurationError
from streamexit.models.architectures import build_network
from streamexit.preprocessing import Preprocessing
from streamexit.training.initial_weights import load_initial_weights

SIZE = Preprocessing(64, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NETWORK: dict[str, Any] = {
    "architecture": "torchvision_segmentation",
    "name": "lraspp_mobilenet_v3_large",
    "num_classes": 21,
}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> segmentation.LRASPP:
    """A network whose weights lie where torchvision keeps the ones that it has downloaded."""
    torch.manual_seed(9)
    whole = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    url = segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT.url
    file = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(whole.state_dict(), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return whole.eval()


def test_published_weights_make_the_published_network(published: segmentation.LRASPP) -> None:
    """With torchvision's own number of classes the last exit answers as torchvision's network does."""
    network = build_network(NETWORK, SIZE).eval()
    load_initial_weights("torchvision", network, NETWORK)
    images = torch.randint(0, 256, (1, 48, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits = network(images)[-1].logits
        expected = published((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)["out"]
        scaled = torch.nn.functional.interpolate(logits, (48, 64), mode="bilinear")
    torch.testing.assert_close(scaled, expected, atol=1e-4, rtol=1e-4)


def test_other_classes_keep_their_fresh_last_layer(published: segmentation.LRASPP) -> None:
    """The backbone is the published one; what depends on the number of classes is not."""
    spec = {**NETWORK, "num_classes": 3}
    network = build_network(spec, SIZE)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_initial_weights("torchvision", network, spec)
    same = {n for n, t in network.state_dict().items() if torch.equal(t, before[n])}
    fresh = {n for n, t in before.items() if 3 in t.shape[:1]}
    assert fresh
    assert fresh <= same
    layer = published.backbone["0"][0].weight
    assert any(torch.equal(t, layer) for t in network.state_dict().values())


def test_no_weights_are_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged download and another kind of network are refused, by name."""
    url = segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT.url
    file = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = build_network(NETWORK, SIZE)
    with pytest.raises(ConfigurationError, match=r"weights of lraspp_.* cannot be had"):
        load_initial_weights("torchvision", network, NETWORK)
    with pytest.raises(ConfigurationError, match="not for hrnet"):
        load_initial_weights("torchvision", network, {**NETWORK, "architecture": "hrnet"})


CLASSIFIER: dict[str, Any] = {"torchvision": "resnet18", "exits": [0.3, 0.6], "num_classes": 3}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_ones_own_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    """The last exit answers as the uncut network does; early heads are fresh."""
    torch.manual_seed(9)
    whole = models.resnet18(weights=None, num_classes=3).eval()
    file = tmp_path / f"mine.{suffix}"
    if suffix == "pth":
        torch.save(whole.state_dict(), file)
    else:
        save_file(whole.state_dict(), file)
    network = build_network(CLASSIFIER, SIZE).eval()
    load_initial_weights(str(file), network, CLASSIFIER)
    images = torch.randint(0, 256, (2, 48, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = whole((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
        torch.testing.assert_close(network(images)[-1].logits, expected, atol=1e-4, rtol=1e-4)


def test_a_published_classifier_gets_other_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet's trunk, and a last layer of one's own classes."""
    whole = models.resnet18(weights=None)
    file = tmp_path / "hub" / "checkpoints" / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(whole.state_dict(), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = build_network(CLASSIFIER, SIZE)
    load_initial_weights("torchvision", network, CLASSIFIER)
    state = network.state_dict()
    assert any(torch.equal(t, whole.conv1.weight) for t in state.values())
    assert network.eval()(torch.zeros(1, 48, 64, 3, dtype=torch.uint8))[-1].logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        ({"x": torch.zeros(1)}, "Missing key"),
        ([torch.zeros(1)], "holds a list, not a state_dict"),
        (
            {"state_dict": {"x": torch.zeros(1)}},
            "'state_dict', not a tensor; of a checkpoint, save",
        ),
        (torch.nn.Linear(1, 1), r"save model.state_dict\(\) alone"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, content: Any, expected: str) -> None:
    """With the network that it was meant for."""
    file = tmp_path / "mine.pt"
    if content is not None:
        torch.save(content, file)
    network = build_network(CLASSIFIER, SIZE)
    with pytest.raises(ConfigurationError, match=rf"mine\.pt as weights of resnet18 .*{expected}"):
        load_initial_weights(str(file), network, CLASSIFIER)
