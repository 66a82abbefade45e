"""MSDNet (Huang et al., ICLR 2018) for small pictures: coarse features from the first layer on.

Each scale has half the size of the one before it. Layers join densely along depth and from fine to
coarse; exits look at the coarsest scale only. Section 4's network reduction is here, too: the depth
is divided into as many parts as there are scales, each part works without the finest scale of the
part before it, and a transition (1x1 convolutions) halves the channels where a scale was dropped.

Differences from that paper: the heads are light, depthwise-separable ones instead of two full
convolutions, because a passed head is paid for; and what neither an exit nor a later layer reads
(the fine scales of the last layers) is not computed.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from streamexit.errors import PipelineError
from streamexit.models.arguments import require_flags, require_whole, require_wholes
from streamexit.models.blocks import (
    conv_norm_relu,
    initialise_convolutions,
    pooled_classifier,
    separable,
)
from streamexit.models.network import Features, MultiExitNetwork, StageOutput
from streamexit.preprocessing import Preprocessing

HEAD_WIDTH = 128


class FirstLayer(nn.Module):
    """From [N, 3, H, W] to the first features of every scale, each made from the finer one."""

    def __init__(self, widths: list[int], stride: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            conv_norm_relu(before, width, stride=stride if s == 0 else 2)
            for s, (before, width) in enumerate(zip([3, *widths], widths, strict=False))
        )

    def forward(self, features: Features) -> Features:
        """Scale s: [N, widths[s], H / (stride 2^s), W / (stride 2^s)]."""
        found: list[torch.Tensor] = []
        for scale in self.scales:
            found.append(scale(found[-1] if found else features[0]))
        return tuple(found)


class Layer(nn.Module):
    """Concatenates to each kept scale what it and the next finer scale say.

    Args:
        widths: Channels of each scale that comes in, from fine to coarse.
        new: Channels that each kept scale gains; the kept ones are the coarsest.
        bottlenecks: Factor per scale that comes in: 1x1 convolutions first cut what is read to
            at most factor x what is made. None does without.
    """

    def __init__(self, widths: list[int], new: list[int], bottlenecks: list[int] | None) -> None:
        super().__init__()
        self.dropped = len(widths) - len(new)
        own: list[nn.Module] = []
        down: list[nn.Module] = []
        for s, gained in enumerate(new, start=self.dropped):
            halves = 1 if s == 0 else 2
            for into, reads, stride in ((own, s, 1), (down, s - 1, 2))[:halves]:
                factor = bottlenecks[reads] if bottlenecks else None
                into.append(_convolution(widths[reads], gained // halves, factor, stride))
        self.own, self.down = nn.ModuleList(own), nn.ModuleList(down)

    def forward(self, features: Features) -> Features:
        """Kept scales in the shapes they came in, with more channels."""
        kept = features[self.dropped :]
        finer = features[max(0, self.dropped - 1) : -1]
        own = [find(x) for find, x in zip(self.own, kept, strict=True)]
        down = [find(x) for find, x in zip(self.down, finer, strict=True)]
        parts = [[x, y] for x, y in zip(kept, own, strict=True)]
        for part, found in zip(reversed(parts), reversed(down), strict=False):
            part.append(found)
        return tuple(torch.cat(part, 1) for part in parts)


class Transition(nn.Module):
    """Halves the channels of every scale."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(conv_norm_relu(w, w // 2, size=1) for w in widths)

    def forward(self, features: Features) -> Features:
        """Features of half as many channels."""
        return tuple(merge(x) for merge, x in zip(self.scales, features, strict=True))


class MsdStage(nn.Module):
    """Layers that carry all scales, and the exit behind them."""

    def __init__(self, trunk: Iterable[nn.Module], head: nn.Module, *, last: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*trunk)
        self.head = head
        self.last = last

    def forward(self, features: Features) -> StageOutput:
        """The first stage takes one tensor [N, 3, H, W], the others one per scale, fine first."""
        features = self.trunk(features)
        return StageOutput(() if self.last else features, self.head(features[-1]))


def build(
    *,
    channels: int,
    growth: int,
    factors: list[int],
    bottleneck: bool,
    base: int,
    step: int,
    num_exits: int,
    num_classes: int,
    preprocessing: Preprocessing,
    prune: bool = True,
    stem_stride: int = 1,
) -> MultiExitNetwork:
    """Build an MSDNet.

    Args:
        channels: Of the first layer, per unit of `factors`.
        growth: Channels that a layer adds, per unit of `factors`.
        factors: One per scale, from fine to coarse.
        bottleneck: Whether 1x1 convolutions come before the 3x3 ones (factors: those of the
            scales that are read).
        base: Layers before the first exit, after the first layer of all.
        step: Layers from one exit to the next.
        num_exits: K.
        num_classes: C.
        preprocessing: Declared input.
        prune: Whether scales are dropped along the depth, as in the paper's network reduction.
        stem_stride: 1 as in the paper for CIFAR; 2 makes every scale half as large, and all but
            the stem four times cheaper.

    Raises:
        PipelineError: Arguments that describe no such network.
    """
    require_wholes(1, 2, factors=factors)
    require_whole(1, channels=channels, growth=growth, base=base, step=step, num_exits=num_exits)
    require_whole(2, num_classes=num_classes)
    require_flags(bottleneck=bottleneck, prune=prune)
    if stem_stride not in (1, 2):
        raise PipelineError(f"network.stem_stride: {stem_stride!r} must be 1 or 2")
    if any(growth * f % 2 for f in factors[1:]):
        raise PipelineError(
            f"network.growth: {growth} times each of {factors[1:]} must be even, because a scale's "
            "new features come in equal halves from itself and from the finer one"
        )
    depth = base + step * (num_exits - 1)
    widths = [channels * f for f in factors]
    trunk: list[nn.Module] = [FirstLayer(widths, stem_stride)]
    stages: list[MsdStage] = []
    for layer in range(1, depth + 1):
        in_use = factors[-len(widths) :]
        kept, merges = _plan(layer, depth, len(factors), prune=prune)
        new = [growth * f for f in in_use[-kept:]]
        trunk.append(Layer(widths, new, in_use if bottleneck else None))
        widths = [w + n for w, n in zip(widths[-kept:], new, strict=True)]
        if merges:
            trunk.append(Transition(widths))
            widths = [w // 2 for w in widths]
        if layer >= base and (layer - base) % step == 0:
            head = nn.Sequential(
                separable(widths[-1], HEAD_WIDTH), pooled_classifier(HEAD_WIDTH, num_classes)
            )
            stages.append(MsdStage(trunk, head, last=layer == depth))
            trunk = []
    network = MultiExitNetwork(stages, preprocessing)
    initialise_convolutions(network)
    return network


def _plan(layer: int, depth: int, scales: int, *, prune: bool) -> tuple[int, bool]:
    """How many scales `layer` (from 1) keeps, and whether a transition follows it."""
    read_later = depth - layer + 1  # the last layer's exit reads one scale, each layer one more
    if not prune:
        return min(scales, read_later), False
    part = -(-depth // scales)
    kept = scales - (layer - 1) // part
    return min(kept, read_later), layer > 1 and (layer - 1) % part == 0


def _convolution(
    channels_in: int, channels: int, bottleneck: int | None, stride: int
) -> nn.Sequential:
    if bottleneck is None:
        return conv_norm_relu(channels_in, channels, stride=stride)
    inner = min(channels_in, bottleneck * channels)
    return nn.Sequential(
        conv_norm_relu(channels_in, inner, size=1), conv_norm_relu(inner, channels, stride=stride)
    )
