"""A real-time encoder and decoder with exits: EfficientNet-Lite0, first at half size, then at full.

The first exit has run the whole encoder on the picture at half its size; the others run it, block by
block, at full size (the order of RANet, Yang et al., CVPR 2020, without its dense connections). A
decoder for all exits runs beside it, a residual stream at an eighth of the picture's size: each stage
adds to it what its last features say, so that an exit builds on the maps of the exits before it and
a passed exit costs little more than its last two convolutions. Heads add features of a quarter of
the size, for edges and poles, and give logits there.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.models.arguments import require_whole, require_wholes
from streamexit.models.blocks import conv_norm, resize
from streamexit.models.efficientnet_lite import EncoderBlock, lite0_blocks
from streamexit.models.network import Features, MultiExitNetwork, StageOutput
from streamexit.preprocessing import Preprocessing

EDGE_BLOCK = 3
"""The last block at a quarter of the picture's size: edges are taken from behind it."""

GLANCE_BLOCKS = (1, 3, 5, 11, 16)
"""At half size: edges are taken from behind the first of these blocks, the stream from the others."""


def depthwise_norm_relu(channels: int, kernel: int) -> nn.Sequential:
    """Depthwise and pointwise convolution of equal width, each normalised, ReLU behind the first."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )


class Decoder(nn.Module):
    """Adds a stage's features to the decoder's stream.

    Args:
        channels_in: Of the stage's features.
        channels: Of the stream.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.project = conv_norm(channels_in, channels, size=1)
        self.refine = depthwise_norm_relu(channels, 3)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        """The stream's new state [N, channels, h, w]."""
        y = functional.relu(stream + resize(self.project(x), stream.shape[2:]))
        return functional.relu(y + self.refine(y))


class Head(nn.Module):
    """Logits at a quarter of the picture's size, from the stream and the edges."""

    def __init__(self, channels: int, edge_channels: int, num_classes: int) -> None:
        super().__init__()
        self.narrow = conv_norm(channels, edge_channels, size=1)
        self.refine = depthwise_norm_relu(edge_channels, 3)
        self.classify = nn.Conv2d(edge_channels, num_classes, 1)

    def forward(self, stream: Tensor, edges: Tensor) -> Tensor:
        """[N, num_classes, H / 4, W / 4]."""
        y = functional.relu(resize(self.narrow(stream), edges.shape[2:]) + edges)
        return self.classify(functional.relu(y + self.refine(y)))  # type: ignore[no-any-return]


class Glance(nn.Module):
    """The first exit: the whole encoder on the picture at half its size, and a decoder of its own.

    It costs a quarter of the encoder and sees everything that the encoder can see, only coarsely.
    Features that it hands on: the picture, and the decoder's stream at an eighth of its size.
    """

    def __init__(self, channels: int, edge_channels: int, num_classes: int) -> None:
        super().__init__()
        blocks = lite0_blocks()
        bounds = pairwise((0, *(end + 1 for end in GLANCE_BLOCKS)))
        self.trunks = nn.ModuleList(
            nn.Sequential(*(block.module for block in blocks[begin:end])) for begin, end in bounds
        )
        widths = [blocks[end].channels for end in GLANCE_BLOCKS]
        self.edges = conv_norm(widths[0], edge_channels, size=1)
        self.projects = nn.ModuleList(conv_norm(width, channels, size=1) for width in widths[1:])
        self.refine = nn.ModuleList(depthwise_norm_relu(channels, 3) for _ in range(2))
        self.head = Head(channels, edge_channels, num_classes)

    def forward(self, features: Features) -> StageOutput:
        """One tensor [N, 3, H, W]."""
        picture = features[0]
        x = functional.avg_pool2d(picture, 2, ceil_mode=True)
        found = []
        for trunk in self.trunks:
            x = trunk(x)
            found.append(x)
        edges, eighth = found[0], found[1].shape[2:]
        parts = [
            resize(project(x), eighth) for project, x in zip(self.projects, found[1:], strict=True)
        ]
        stream = functional.relu(torch.stack(parts).sum(0))
        for layer in self.refine:
            stream = functional.relu(stream + layer(stream))
        return StageOutput((picture, stream), self.head(stream, self.edges(edges)))


class EdgeTrunk(nn.Module):
    """The encoder's first blocks, and the edge features behind them."""

    def __init__(self, blocks: list[EncoderBlock], edge_channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(block.module for block in blocks))
        self.project = conv_norm(blocks[-1].channels, edge_channels, size=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] to features and edges, both at a quarter of the size."""
        x = self.blocks(x)
        return x, self.project(x)


class SceneStage(nn.Module):
    """Encoder blocks, then the decoder's step and the head behind them.

    Features that are carried: the encoder's (the picture, to the first of these stages), the
    decoder's stream, and from then on the edges.
    """

    def __init__(
        self, trunk: nn.Module, decoder: Decoder, head: Head, *, edges: EdgeTrunk | None, last: bool
    ) -> None:
        super().__init__()
        self.edges = edges
        self.trunk = trunk
        self.decoder = decoder
        self.head = head
        self.last = last

    def forward(self, features: Features) -> StageOutput:
        """What the stage before handed on."""
        if self.edges is not None:
            picture, stream = features
            x, edges = self.edges(picture)
        else:
            x, stream, edges = features
        x = self.trunk(x)
        stream = self.decoder(x, stream)
        passed_on = () if self.last else (x, stream, edges)
        return StageOutput(passed_on, self.head(stream, edges))


def build(
    *,
    exits: list[int],
    num_classes: int,
    preprocessing: Preprocessing,
    channels: int = 64,
    edge_channels: int = 32,
) -> MultiExitNetwork:
    """Build the network.

    Args:
        exits: After which of the encoder's 16 blocks, at full size, each exit after the first stands,
            rising, from block 4 on (an eighth of the size or less).
        num_classes: C.
        preprocessing: Declared input.
        channels: Of the decoder's stream.
        edge_channels: Of the edge features and the heads.

    Raises:
        PipelineError: Arguments that describe no network.
    """
    require_wholes(EDGE_BLOCK + 1, 1, exits=exits)
    require_whole(1, channels=channels, edge_channels=edge_channels)
    blocks = lite0_blocks()
    if exits != sorted(set(exits)) or exits[-1] >= len(blocks):
        raise PipelineError(
            f"network.exits: {exits} must rise and end with {len(blocks) - 1}, the last block, or less"
        )
    stages: list[nn.Module] = [Glance(channels, edge_channels, num_classes)]
    begin = EDGE_BLOCK + 1
    for end in exits:
        first = begin == EDGE_BLOCK + 1
        trunk = nn.Sequential(*(block.module for block in blocks[begin : end + 1]))
        stages.append(
            SceneStage(
                trunk,
                Decoder(blocks[end].channels, channels),
                Head(channels, edge_channels, num_classes),
                edges=EdgeTrunk(blocks[:begin], edge_channels) if first else None,
                last=end == exits[-1],
            )
        )
        begin = end + 1
    return MultiExitNetwork(stages, preprocessing)
