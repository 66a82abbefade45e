"""A real-time encoder and decoder with exits: EfficientNet-Lite0, and one decoder for all exits.

The decoder is a residual stream at an eighth of the picture's size that runs beside the encoder:
each stage adds to it what its last features say, so that an exit builds on the maps of the exits
before it and a passed exit costs little more than its last two convolutions. Heads add features of
a quarter of the size, for edges and poles, and give logits there.

What an early exit lacks is not detail but knowledge of what lies around. So the first stage looks
ahead: it runs the rest of the encoder, too, on features of half the size, for a quarter of what that
costs later at full size. The last stage refines the finished stream with dense convolutions.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.models.arguments import require_whole, require_wholes
from streamexit.models.blocks import basic_block, conv_norm, resize
from streamexit.models.efficientnet_lite import EncoderBlock, lite0_blocks
from streamexit.models.network import Features, MultiExitNetwork, StageOutput
from streamexit.preprocessing import Preprocessing

EDGE_BLOCK = 3
"""The last block at a quarter of the picture's size: edges are taken from behind it."""

EIGHTH_BLOCK, SIXTEENTH_BLOCK = 5, 11
"""The last blocks at an eighth and a sixteenth."""


def depthwise_norm_relu(channels: int) -> nn.Sequential:
    """Depthwise and pointwise convolution of equal width, each normalised, ReLU behind the first."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False),
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
        self.refine = depthwise_norm_relu(channels)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        """The stream's new state [N, channels, h, w]."""
        y = functional.relu(stream + resize(self.project(x), stream.shape[2:]))
        return functional.relu(y + self.refine(y))


class Head(nn.Module):
    """Logits at a quarter of the picture's size, from the stream and the edges."""

    def __init__(self, channels: int, edge_channels: int, num_classes: int) -> None:
        super().__init__()
        self.narrow = conv_norm(channels, edge_channels, size=1)
        self.refine = depthwise_norm_relu(edge_channels)
        self.classify = nn.Conv2d(edge_channels, num_classes, 1)

    def forward(self, stream: Tensor, edges: Tensor) -> Tensor:
        """[N, num_classes, H / 4, W / 4]."""
        y = functional.relu(resize(self.narrow(stream), edges.shape[2:]) + edges)
        return self.classify(functional.relu(y + self.refine(y)))  # type: ignore[no-any-return]


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


class LookAhead(nn.Module):
    """The encoder's other blocks, on features of half the size; their results side by side, projected.

    Args:
        channels_in: Of the features.
        blocks: The blocks that are left, weights of their own.
        taken: How many of them come before the first result; the second is the last one's.
        channels: Of the stream.
    """

    def __init__(
        self, channels_in: int, blocks: list[EncoderBlock], taken: int, channels: int
    ) -> None:
        super().__init__()
        parts = blocks[:taken], blocks[taken:]
        self.trunks = nn.ModuleList(
            nn.Sequential(*(block.module for block in part)) for part in parts
        )
        self.projects = nn.ModuleList(
            conv_norm(part[-1].channels, channels, size=1) for part in parts
        )
        self.own = conv_norm(channels_in, channels, size=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] to [N, channels, H, W]."""
        size, y = x.shape[2:], self.own(x)
        x = functional.avg_pool2d(x, 2, ceil_mode=True)
        for trunk, project in zip(self.trunks, self.projects, strict=True):
            x = trunk(x)
            y = y + resize(project(x), size)
        return functional.relu(y)


class FirstStage(nn.Module):
    """Encoder blocks to an eighth of the size, a look ahead, and the first exit.

    Features that it hands on: the encoder's, the decoder's stream, the edges.
    """

    def __init__(
        self, edges: EdgeTrunk, trunk: nn.Module, ahead: LookAhead, refine: nn.Module, head: Head
    ) -> None:
        super().__init__()
        self.edges = edges
        self.trunk = trunk
        self.ahead = ahead
        self.refine = refine
        self.head = head

    def forward(self, features: Features) -> StageOutput:
        """One tensor [N, 3, H, W]."""
        x, edges = self.edges(features[0])
        x = self.trunk(x)
        stream = self.ahead(x)
        stream = functional.relu(stream + self.refine(stream))
        return StageOutput((x, stream, edges), self.head(stream, edges))


class EncoderStage(nn.Module):
    """Further encoder blocks, the decoder's step and the exit behind them; hands on the same three."""

    def __init__(self, trunk: nn.Module, decoder: Decoder, head: Head) -> None:
        super().__init__()
        self.trunk = trunk
        self.decoder = decoder
        self.head = head

    def forward(self, features: Features) -> StageOutput:
        """Encoder's features, stream, edges."""
        x, stream, edges = features
        x = self.trunk(x)
        stream = self.decoder(x, stream)
        return StageOutput((x, stream, edges), self.head(stream, edges))


class LastStage(nn.Module):
    """The rest of the encoder, the decoder's step, dense refinement at both sizes, the last exit."""

    def __init__(
        self,
        trunk: nn.Module,
        decoder: Decoder,
        channels: int,
        edge_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.decoder = decoder
        self.refine = basic_block(channels)
        self.narrow = conv_norm(channels, edge_channels, size=1)
        self.sharpen = basic_block(edge_channels)
        self.classify = nn.Conv2d(edge_channels, num_classes, 1)

    def forward(self, features: Features) -> StageOutput:
        """Encoder's features, stream, edges."""
        x, stream, edges = features
        stream = self.refine(self.decoder(self.trunk(x), stream))
        y = functional.relu(resize(self.narrow(stream), edges.shape[2:]) + edges)
        return StageOutput((), self.classify(self.sharpen(y)))


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
        exits: After which of the encoder's 16 blocks each exit stands, rising, two or more; the first
            at an eighth of the picture's size (block 4 or 5), the last behind block 16.
        num_classes: C.
        preprocessing: Declared input.
        channels: Of the decoder's stream.
        edge_channels: Of the edge features and the heads.

    Raises:
        PipelineError: Arguments that describe no network.
    """
    require_wholes(EDGE_BLOCK + 1, 2, exits=exits)
    require_whole(1, channels=channels, edge_channels=edge_channels)
    blocks, ahead = lite0_blocks(), lite0_blocks()
    last = len(blocks) - 1
    if exits != sorted(set(exits)) or exits[0] > EIGHTH_BLOCK or exits[-1] != last:
        raise PipelineError(
            f"network.exits: {exits} must rise from block 4 or 5 to the last block, {last}"
        )

    def trunk(begin: int, end: int) -> nn.Sequential:
        return nn.Sequential(*(block.module for block in blocks[begin + 1 : end + 1]))

    def decoder(end: int) -> Decoder:
        return Decoder(blocks[end].channels, channels)

    first = exits[0]
    stages: list[nn.Module] = [
        FirstStage(
            EdgeTrunk(blocks[: EDGE_BLOCK + 1], edge_channels),
            trunk(EDGE_BLOCK, first),
            LookAhead(
                blocks[first].channels, ahead[first + 1 :], SIXTEENTH_BLOCK - first, channels
            ),
            depthwise_norm_relu(channels),
            Head(channels, edge_channels, num_classes),
        )
    ]
    for begin, end in pairwise(exits[:-1]):
        head = Head(channels, edge_channels, num_classes)
        stages.append(EncoderStage(trunk(begin, end), decoder(end), head))
    stages.append(
        LastStage(trunk(exits[-2], last), decoder(last), channels, edge_channels, num_classes)
    )
    return MultiExitNetwork(stages, preprocessing)
