"""Pieces that several networks are built from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def resize(x: Tensor, size: torch.Size) -> Tensor:
    """Features [N, C, H, W] brought to [N, C, *size], bilinear."""
    if x.shape[2:] == size:
        return x
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)


def conv_norm(channels_in: int, channels: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(channels),
    )


def conv_norm_relu(
    channels_in: int, channels: int, *, size: int = 3, stride: int = 1
) -> nn.Sequential:
    """A convolution without bias, batch normalisation, ReLU."""
    return nn.Sequential(
        *conv_norm(channels_in, channels, size=size, stride=stride), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Layers, and a shortcut around them."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] to [N, channels, H, W]."""
        return functional.relu(self.layers(x) + self.shortcut(x))


def basic_block(channels: int) -> Residual:
    """Two 3x3 convolutions of one width, and a shortcut around them."""
    layers = nn.Sequential(conv_norm_relu(channels, channels), conv_norm(channels, channels))
    return Residual(layers, nn.Identity())


def separable(channels_in: int, channels: int) -> nn.Sequential:
    """A depthwise 3x3 convolution that halves the size, then a pointwise one."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, 2, 1, groups=channels_in, bias=False),
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def pooled_classifier(channels: int, num_classes: int) -> nn.Sequential:
    """Global average pooling and one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def initialise_convolutions(network: nn.Module) -> None:
    """He initialisation of all convolutions (He et al., ICCV 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
