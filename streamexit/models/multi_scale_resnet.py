"""A residual network that carries all its scales from the first exit on: MSDNet by addition.

MSDNet (Huang et al., ICLR 2018) carries coarse features from the first layer on, so that an early
exit has something to classify by. It joins features by concatenation, in many narrow convolutions,
which leave a CPU idle for most of the time. Here every scale is a residual stream: the stem is a
small ResNet that passes each scale once, and a layer refines the streams from fine to coarse, each
by itself and by the finer one. Later layers may leave out the finest scales, as in MSDNet. Heads
look at the coarsest features only.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.models.arguments import require_wholes
from streamexit.models.blocks import conv_norm_relu, initialise_convolutions, pooled_classifier
from streamexit.models.network import Features, MultiExitNetwork, StageOutput
from streamexit.preprocessing import Preprocessing

HEAD_WIDTH = 128


class Refine(nn.Module):
    """A residual block of one scale that also looks at the finer scale's new features.

    Args:
        channels: Of this scale.
        finer: Channels of the next finer scale; None at the finest one that is refined.
        begins: This scale has no features yet; they come from the finer one alone.
    """

    def __init__(self, channels: int, *, finer: int | None, begins: bool = False) -> None:
        super().__init__()
        self.own = None if begins else nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.down = None if finer is None else nn.Conv2d(finer, channels, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = None
        if begins and finer is not None:
            self.shortcut = nn.Sequential(
                nn.Conv2d(finer, channels, 1, 2, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor | None, finer: Tensor | None) -> Tensor:
        """New features [N, channels, h, w] from the old ones and the finer scale's new ones."""
        inputs = [(self.own, x), (self.down, finer)]
        mixed = sum(convolve(z) for convolve, z in inputs if convolve is not None and z is not None)
        y = self.norm2(self.conv2(functional.relu(self.norm1(mixed))))
        carried = x if self.shortcut is None else self.shortcut(finer)
        return functional.relu(y + carried)


class Stem(nn.Module):
    """From [N, 3, H, W] to the first features of all scales: a small ResNet, one block a scale."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.first = conv_norm_relu(3, widths[0])
        self.finest = Refine(widths[0], finer=None)
        self.coarser = nn.ModuleList(
            Refine(width, finer=finer, begins=True) for finer, width in pairwise(widths)
        )

    def forward(self, x: Tensor) -> Features:
        """Features [N, widths[s], H / 2^s, W / 2^s]."""
        scales = [self.finest(self.first(x), None)]
        for block in self.coarser:
            scales.append(block(None, scales[-1]))
        return tuple(scales)


class Layer(nn.Module):
    """Refines the coarsest scales, fine to coarse; finer ones pass through."""

    def __init__(self, widths: list[int], scales: int) -> None:
        super().__init__()
        first = len(widths) - scales
        self.first = first
        self.blocks = nn.ModuleList(
            Refine(widths[s], finer=widths[s - 1] if s > first else None)
            for s in range(first, len(widths))
        )

    def forward(self, features: Features) -> Features:
        """Features of the same shapes."""
        scales = list(features)
        for s, block in enumerate(self.blocks, start=self.first):
            scales[s] = block(scales[s], scales[s - 1] if s > self.first else None)
        return tuple(scales)


class MultiScaleStage(nn.Module):
    """Layers, and the exit behind them.

    Args:
        trunk: Maps features to features.
        head: Maps the coarsest ones to logits [N, C].
        stem: Of the first stage.
        keep: How many of the coarsest scales the next stage looks at; 0 at the last.
    """

    def __init__(
        self, trunk: nn.Sequential, head: nn.Module, *, stem: Stem | None, keep: int
    ) -> None:
        super().__init__()
        self.stem = stem
        self.trunk = trunk
        self.head = head
        self.keep = keep

    def forward(self, features: Features) -> StageOutput:
        """The first stage takes one tensor [N, 3, H, W], the others one a scale."""
        if self.stem is not None:
            features = self.stem(features[0])
        features = self.trunk(features)
        return StageOutput(features[len(features) - self.keep :], self.head(features[-1]))


def build(
    *,
    widths: list[int],
    layers: list[list[int]],
    num_classes: int,
    preprocessing: Preprocessing,
) -> MultiExitNetwork:
    """Build a multi-scale residual network.

    Args:
        widths: Channels of each scale, from the input's size down; each scale halves the size.
        layers: For each exit, the layers between the exit before it and itself, each as the number
            of coarsest scales that it refines. None rises above the one before. The stem comes
            before the first exit as well, which may therefore have none: `[[], [3], [3, 2], [1]]`.
        num_classes: C.
        preprocessing: Declared input.

    Raises:
        PipelineError: Arguments that describe no network.
    """
    require_wholes(1, 2, widths=widths)
    if not layers:
        raise PipelineError("network.layers: [] must hold a list for each exit")
    for k, counts in enumerate(layers):
        require_wholes(1, 0 if k == 0 else 1, **{f"layers[{k}]": counts})
    order = [count for counts in layers for count in counts]
    if any(later > earlier for earlier, later in pairwise([len(widths), *order])):
        raise PipelineError(
            f"network.layers: {layers}: of {len(widths)} scales, a layer may refine no more than "
            "the layer before it"
        )
    stages: list[nn.Module] = []
    carried = len(widths)
    for k, counts in enumerate(layers):
        head = nn.Sequential(
            conv_norm_relu(widths[-1], HEAD_WIDTH, size=1),
            pooled_classifier(HEAD_WIDTH, num_classes),
        )
        last = k == len(layers) - 1
        keep = 0 if last else layers[k + 1][0]
        stages.append(
            MultiScaleStage(
                nn.Sequential(*(Layer(widths[-carried:], count) for count in counts)),
                head,
                stem=Stem(widths) if k == 0 else None,
                keep=keep,
            )
        )
        carried = keep
    network = MultiExitNetwork(stages, preprocessing)
    initialise_convolutions(network)
    return network
