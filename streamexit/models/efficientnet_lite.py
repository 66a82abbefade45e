"""EfficientNet-Lite0's blocks, from which stages are cut.

EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6 instead of swish,
as its authors published it for small devices. Padding is symmetric, where the original pads as
TensorFlow does; fine-tuning makes up for the shift by a pixel.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

STEM_CHANNELS = 32
NORM_EPSILON = 1e-3


class Section(NamedTuple):
    """Blocks of one width; the first takes the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


LITE0 = (
    Section(1, 3, 1, 1, 16),
    Section(2, 3, 2, 6, 24),
    Section(2, 5, 2, 6, 40),
    Section(3, 3, 2, 6, 80),
    Section(3, 5, 1, 6, 112),
    Section(4, 5, 2, 6, 192),
    Section(1, 3, 1, 6, 320),
)
"""The seven sections of EfficientNet-Lite0 (as of B0, Table 1 of the paper)."""


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPSILON, momentum=0.01)


class Stem(nn.Sequential):
    """[N, 3, H, W] to [N, 32, H / 2, W / 2]: the beginning of an encoder."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1, bias=False),
            _norm(STEM_CHANNELS),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Widen by a pointwise convolution, look around by a depthwise one, narrow, add.

    Attributes:
        number: Place in the encoder, from 1.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        number: int,
        kernel: int,
        stride: int,
        expansion: int,
    ) -> None:
        super().__init__()
        self.number = number
        wide = channels_in * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion > 1:
            self.expand = nn.Sequential(
                nn.Conv2d(channels_in, wide, 1, bias=False), _norm(wide), nn.ReLU6(inplace=True)
            )
        self.look = nn.Sequential(
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            _norm(wide),
            nn.ReLU6(inplace=True),
        )
        self.narrow = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), _norm(channels))
        self.adds = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] to [N, channels, H / stride, W / stride]."""
        y: Tensor = self.narrow(self.look(self.expand(x)))
        return x + y if self.adds else y


class EncoderBlock(NamedTuple):
    """A block, and what comes out of it.

    Attributes:
        module: Maps [N, C, H, W] to [N, channels, H, W], or half of that size.
        channels: Of its output.
    """

    module: nn.Module
    channels: int


def lite0_blocks() -> list[EncoderBlock]:
    """The stem, then the sixteen blocks."""
    blocks = [EncoderBlock(Stem(), STEM_CHANNELS)]
    for section in LITE0:
        for i in range(section.blocks):
            module = InvertedResidual(
                blocks[-1].channels,
                section.channels,
                number=len(blocks),
                kernel=section.kernel,
                stride=section.stride if i == 0 else 1,
                expansion=section.expansion,
            )
            blocks.append(EncoderBlock(module, section.channels))
    return blocks
