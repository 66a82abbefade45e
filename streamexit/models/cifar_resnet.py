"""The ResNets of He et al. (CVPR 2016, section 4.2) for small pictures, 6n+2 layers, with exits.

Differences from that paper: shortcuts that change the shape are 1x1 convolutions (their option B).
The exits are ours: light depthwise-separable heads, because a passed head is paid for.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.models.network import MultiExitNetwork, Stage
from streamexit.preprocessing import Preprocessing

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] to [N, channels, H / stride, W / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


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
    *, depth: int, exits: list[int], num_classes: int, preprocessing: Preprocessing
) -> MultiExitNetwork:
    """Build a CIFAR ResNet with exits.

    Args:
        depth: 6n+2: 20, 32, 44, 56, 110 ...
        exits: After which residual block (from 1) each exit stands, rising; the last is 3n.
        num_classes: C.
        preprocessing: Declared input.

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
    stages: list[Stage] = []
    trunk: list[nn.Module] = [
        nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(WIDTHS[0]),
        nn.ReLU(inplace=True),
    ]
    channels = WIDTHS[0]
    for block in range(1, 3 * n + 1):
        width = WIDTHS[(block - 1) // n]
        trunk.append(BasicBlock(channels, width, 1 if width == channels else 2))
        channels = width
        if block in exits:
            last = block == 3 * n
            head = (pooled_classifier if last else early_head)(channels, num_classes)
            stages.append(Stage(nn.Sequential(*trunk), head, last=last))
            trunk = []
    network = MultiExitNetwork(stages, preprocessing)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
