"""A real-time encoder and decoder with exits: EfficientNet-Lite0, and one decoder for all exits.

The decoder is a residual stream at an eighth of the picture's size that runs beside the encoder:
each stage adds to it what its last features say, so that an exit builds on the maps of the exits
before it and a passed exit costs little more than its last two convolutions. Heads add features of
a quarter of the size, for edges and poles, and give logits there.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.models.arguments import require_whole, require_wholes
from streamexit.models.blocks import conv_norm, conv_norm_relu, resize
from streamexit.models.efficientnet_lite import EncoderBlock, lite0_blocks
from streamexit.models.network import Features, MultiExitNetwork, StageOutput
from streamexit.preprocessing import Preprocessing

EDGE_BLOCK = 3
"""The last block at a quarter of the picture's size: edges are taken from behind it."""

CONTEXT_POOLING = 4


def depthwise_norm_relu(channels: int, kernel: int) -> nn.Sequential:
    """Depthwise and pointwise convolution of equal width, each normalised, ReLU behind the first."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )


class Context(nn.Module):
    """What lies around, for features too early to have seen it: a few convolutions on a small map."""

    def __init__(self, channels_in: int, channels: int, depth: int) -> None:
        super().__init__()
        self.widen = conv_norm_relu(channels_in, 2 * channels, size=1)
        self.look = nn.ModuleList(depthwise_norm_relu(2 * channels, 5) for _ in range(depth))
        self.narrow = conv_norm(2 * channels, channels, size=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] to [N, channels, H / 4, W / 4], rounded up."""
        y = self.widen(functional.avg_pool2d(x, CONTEXT_POOLING, ceil_mode=True))
        for layer in self.look:
            y = functional.relu(y + layer(y))
        return self.narrow(y)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Adds a stage's features to the decoder's stream.

    Args:
        channels_in: Of the stage's features.
        channels: Of the stream.
        context: How many layers of `Context`; 0 for none.
    """

    def __init__(self, channels_in: int, channels: int, *, context: int) -> None:
        super().__init__()
        self.project = conv_norm(channels_in, channels, size=1)
        self.context = Context(channels_in, channels, context) if context else None
        self.refine = depthwise_norm_relu(channels, 3)

    def forward(self, x: Tensor, stream: Tensor | None) -> Tensor:
        """The stream's new state [N, channels, h, w]; at the first stage it takes x's size."""
        size = x.shape[2:] if stream is None else stream.shape[2:]
        y = resize(self.project(x), size)
        if self.context is not None:
            y = y + resize(self.context(x), size)
        y = functional.relu(y if stream is None else stream + y)
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

    Features that are carried: the encoder's, the decoder's stream, the edges.
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
        """The first stage takes one tensor [N, 3, H, W]."""
        if self.edges is not None:
            x, edges = self.edges(features[0])
            stream = None
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
    context: int = 3,
) -> MultiExitNetwork:
    """Build the network.

    Args:
        exits: After which of the encoder's 16 blocks each exit stands, rising, the first from
            block 4 on (an eighth of the size or less); the last is 16.
        num_classes: C.
        preprocessing: Declared input.
        channels: Of the decoder's stream.
        edge_channels: Of the edge features and the heads.
        context: Layers of context at the first exit; at later ones the encoder has seen enough.

    Raises:
        PipelineError: Arguments that describe no network.
    """
    require_wholes(EDGE_BLOCK + 1, 1, exits=exits)
    require_whole(1, channels=channels, edge_channels=edge_channels)
    require_whole(0, context=context)
    blocks = lite0_blocks()
    last = len(blocks) - 1
    if exits != sorted(set(exits)) or exits[-1] != last:
        raise PipelineError(f"network.exits: {exits} must rise and end with the last block, {last}")
    stages: list[nn.Module] = []
    begin = EDGE_BLOCK + 1
    for k, end in enumerate(exits):
        trunk = nn.Sequential(*(block.module for block in blocks[begin : end + 1]))
        stages.append(
            SceneStage(
                trunk,
                Decoder(blocks[end].channels, channels, context=context if k == 0 else 0),
                Head(channels, edge_channels, num_classes),
                edges=EdgeTrunk(blocks[:begin], edge_channels) if k == 0 else None,
                last=end == last,
            )
        )
        begin = end + 1
    return MultiExitNetwork(stages, preprocessing)
