"""DenseNet-BC (Huang et al., CVPR 2017) for small pictures, an exit behind every transition.

Differences from that paper: the stem is its CIFAR stem (3x3, no pooling) with as many dense blocks
as one likes, where the paper's CIFAR networks have three. `blocks=[6, 12, 24, 16], growth=12` is
the DenseNet-121 of EENet (Ilhan et al., WACV 2024). The exits are ours: their heads are light,
depthwise-separable ones, because a passed head is paid for; EENet's are three full convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamexit.errors import PipelineError
from streamexit.models.arguments import require_share, require_whole, require_wholes
from streamexit.models.blocks import initialise_convolutions, pooled_classifier, separable
from streamexit.models.network import MultiExitNetwork, Stage
from streamexit.preprocessing import Preprocessing

HEAD_WIDTH = 256


def norm_relu(channels: int) -> list[nn.Module]:
    """Pre-activation: what stands before each convolution, and before a head."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class DenseLayer(nn.Module):
    """A pointwise bottleneck and a 3x3 convolution; what they find is added as further channels."""

    def __init__(self, channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        inner = bottleneck * growth
        self.find = nn.Sequential(
            *norm_relu(channels),
            nn.Conv2d(channels, inner, 1, bias=False),
            *norm_relu(inner),
            nn.Conv2d(inner, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, channels + growth, H, W]."""
        return torch.cat([x, self.find(x)], 1)


def transition(channels_in: int, channels: int) -> list[nn.Module]:
    """Fewer channels by a pointwise convolution, half the size by averaging."""
    return [
        *norm_relu(channels_in),
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.AvgPool2d(2),
    ]


def early_head(channels: int, num_classes: int, *, steps: int) -> nn.Sequential:
    """`steps` separable halvings, up to `HEAD_WIDTH` channels, then pooled."""
    layers: list[nn.Module] = norm_relu(channels)
    for step in reversed(range(steps)):
        width = HEAD_WIDTH >> step
        layers.append(separable(channels, width))
        channels = width
    return nn.Sequential(*layers, pooled_classifier(channels, num_classes))


def build(
    *,
    blocks: list[int],
    growth: int,
    num_classes: int,
    preprocessing: Preprocessing,
    compression: float = 0.5,
    bottleneck: int = 4,
    stem_stride: int = 1,
) -> MultiExitNetwork:
    """Build a DenseNet-BC with one exit per dense block.

    Early exits stand behind the transitions, where the features are small; the last behind the
    last block, which has none.

    Args:
        blocks: Layers of each dense block; K of them.
        growth: Channels that each layer adds; the stem gives twice as many.
        num_classes: C.
        preprocessing: Declared input.
        compression: Share of the channels that a transition keeps.
        bottleneck: Channels between a layer's two convolutions, in units of `growth`.
        stem_stride: 1 as in the paper; 2 halves the picture at once, which makes all but the stem
            four times cheaper.

    Raises:
        PipelineError: Arguments that describe no such network.
    """
    require_wholes(1, 1, blocks=blocks)
    require_whole(1, growth=growth, bottleneck=bottleneck)
    require_whole(2, num_classes=num_classes)
    require_share(compression=compression)
    if stem_stride not in (1, 2):
        raise PipelineError(f"network.stem_stride: {stem_stride!r} must be 1 or 2")
    halvings = len(blocks) - 2 + stem_stride
    if min(preprocessing.width, preprocessing.height) < 2**halvings:
        raise PipelineError(
            f"network.blocks: {blocks} halve the picture {halvings} times, too often for "
            f"{preprocessing.width}x{preprocessing.height} pixels; name fewer blocks"
        )
    channels = 2 * growth
    trunk: list[nn.Module] = [nn.Conv2d(3, channels, 3, stem_stride, 1, bias=False)]
    stages: list[Stage] = []
    for k, layers in enumerate(blocks):
        for _ in range(layers):
            trunk.append(DenseLayer(channels, growth, bottleneck))
            channels += growth
        last = k == len(blocks) - 1
        if last:
            head = nn.Sequential(*norm_relu(channels), pooled_classifier(channels, num_classes))
        else:
            kept = max(1, int(compression * channels))
            trunk += transition(channels, kept)
            channels = kept
            head = early_head(channels, num_classes, steps=max(1, len(blocks) - 2 - k))
        stages.append(Stage(nn.Sequential(*trunk), head, last=last))
        trunk = []
    network = MultiExitNetwork(stages, preprocessing)
    initialise_convolutions(network)
    return network
