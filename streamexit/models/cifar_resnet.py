"""The ResNets of He et al. (CVPR 2016, section 4.2) for small pictures, 6n+2 layers, with exits.

Shortcuts that change the shape are 1x1 convolutions (their option B) unless "pad" asks for the
paper's choice on CIFAR, which has no weights (option A: every second pixel, zeros for new channels).
The exits are ours: light depthwise-separable heads, because a passed head is paid for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.models.blocks import initialise_convolutions, pooled_classifier, separable
from streamexit.models.network import MultiExitNetwork, Stage
from streamexit.preprocessing import Preprocessing

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, *, pad: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 and pad:
            self.shortcut = PaddedShortcut(channels - channels_in)
        elif stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] to [N, channels, H / stride, W / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """Every second pixel, and zeros for the channels that are new."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self._new = new_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C', H, W] to [N, C' + new, H / 2, W / 2]."""
        before = self._new // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self._new - before))


class ConfidenceHead(nn.Module):
    """EENets' exit block, kind "pool" (Demir and Akbas, 2024): pooling, then two linear layers.

    One gives the logits, one the confidence. No convolution, so a passed head costs next to nothing.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(channels, num_classes)
        self.confide = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, channels, H, W] to logits [N, C] and confidence [N] in [0, 1]."""
        pooled, confide = x.mean((2, 3)), self.confide
        # a score: of the 8 bits that bfloat16 has, thresholds could make little
        sure = functional.linear(pooled.float(), confide.weight.float(), confide.bias.float())
        return self.classify(pooled), torch.sigmoid(sure).squeeze(1)


def early_head(channels: int, num_classes: int, *, width: int = 128) -> nn.Sequential:
    """The head of an early exit: down to 8x8 pixels in separable steps, then pooled."""
    steps = []
    while channels < WIDTHS[-1]:
        steps.append(separable(channels, 2 * channels if 2 * channels < WIDTHS[-1] else width))
        channels = 2 * channels
    if not steps:
        steps.append(separable(channels, width))
    return nn.Sequential(*steps, pooled_classifier(width, num_classes))


def build(
    *,
    depth: int,
    exits: list[int],
    num_classes: int,
    preprocessing: Preprocessing,
    heads: str = "light",
    shortcuts: str = "projection",
) -> MultiExitNetwork:
    """Build a CIFAR ResNet with exits.

    Args:
        depth: 6n+2: 20, 32, 44, 56, 110 ...
        exits: After which residual block (from 1) each exit stands, rising; the last is 3n.
        num_classes: C.
        preprocessing: Declared input.
        heads: "light" (ours) or "confidence" (EENets' exit blocks, with a confidence branch).
        shortcuts: "projection" or "pad".

    Raises:
        PipelineError: `depth` or `exits` do not describe such a network.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise PipelineError(f"network.depth: {depth} is not of the form 6n+2 (20, 32, 44, 56 ...)")
    whole = all(isinstance(block, int) for block in exits)
    if not whole or list(exits) != sorted(set(exits)) or exits[:1] < [1] or exits[-1] != 3 * n:
        raise PipelineError(
            f"network.exits: {list(exits)} must rise and end with the last block, {3 * n}"
        )
    if heads not in ("light", "confidence"):
        raise PipelineError(f"network.heads: {heads!r} must be light or confidence")
    if shortcuts not in ("projection", "pad"):
        raise PipelineError(f"network.shortcuts: {shortcuts!r} must be projection or pad")
    stages: list[Stage] = []
    trunk: list[nn.Module] = [
        nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(WIDTHS[0]),
        nn.ReLU(inplace=True),
    ]
    channels = WIDTHS[0]
    for block in range(1, 3 * n + 1):
        width = WIDTHS[(block - 1) // n]
        trunk.append(
            BasicBlock(channels, width, 1 if width == channels else 2, pad=shortcuts == "pad")
        )
        channels = width
        if block in exits:
            last = block == 3 * n
            head: nn.Module
            if heads == "confidence":
                head = ConfidenceHead(channels, num_classes)
            else:
                head = (pooled_classifier if last else early_head)(channels, num_classes)
            stages.append(Stage(nn.Sequential(*trunk), head, last=last))
            trunk = []
    network = MultiExitNetwork(stages, preprocessing)
    initialise_convolutions(network)
    return network
