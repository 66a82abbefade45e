"""HRNet with an exit behind each of its four stages: the form that EENet's paper uses on Cityscapes.

HRNet (Wang et al., TPAMI 2020; HRNetV2 for segmentation) keeps a branch at a quarter of the picture's
size from beginning to end and adds a coarser branch with each stage; behind each module every branch
receives the sum of all, scaled. The exits are heads as HRNetV2 has at its end: all branches at a
quarter of the size, side by side, two pointwise convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamexit.models.arguments import require_whole, require_wholes
from streamexit.models.blocks import Residual, basic_block, conv_norm, conv_norm_relu, resize
from streamexit.models.network import Features, MultiExitNetwork, StageOutput
from streamexit.preprocessing import Preprocessing

STEM_WIDTH = 64
BOTTLENECK_WIDTH = 64
EXPANSION = 4


def bottleneck(channels_in: int) -> Residual:
    """Narrow, 3x3, widen: the blocks of the first stage."""
    wide = BOTTLENECK_WIDTH * EXPANSION
    layers = nn.Sequential(
        conv_norm_relu(channels_in, BOTTLENECK_WIDTH, size=1),
        conv_norm_relu(BOTTLENECK_WIDTH, BOTTLENECK_WIDTH),
        conv_norm(BOTTLENECK_WIDTH, wide, size=1),
    )
    same = channels_in == wide
    return Residual(layers, nn.Identity() if same else conv_norm(channels_in, wide, size=1))


class Exchange(nn.Module):
    """Every branch becomes the sum of all branches, brought to its size and width."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, branches: Features) -> Features:
        """Branches of the same shapes."""
        mixed = []
        for target, paths in enumerate(self.paths):
            size = branches[target].shape[2:]
            assert isinstance(paths, nn.ModuleList)
            parts = [resize(path(x), size) for path, x in zip(paths, branches, strict=True)]
            mixed.append(functional.relu(torch.stack(parts).sum(0)))
        return tuple(mixed)

    @staticmethod
    def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:  # coarser: narrowed here, scaled up in `forward`
            return conv_norm(widths[source], widths[target], size=1)
        steps: list[nn.Module] = [
            conv_norm_relu(widths[source], widths[source], stride=2)
            for _ in range(target - source - 1)
        ]
        return nn.Sequential(*steps, conv_norm(widths[source], widths[target], stride=2))


class Module(nn.Module):
    """Blocks on each branch, then an exchange between them."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(basic_block(width) for _ in range(blocks))) for width in widths
        )
        self.exchange = Exchange(widths)

    def forward(self, features: Features) -> Features:
        """Branches of the same shapes."""
        refined = (branch(x) for branch, x in zip(self.branches, features, strict=True))
        mixed: Features = self.exchange(tuple(refined))
        return mixed


class Transition(nn.Module):
    """One branch more, from the coarsest there is; from the first stage also a new width."""

    def __init__(self, widths_in: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.keep = nn.ModuleList(
            nn.Identity() if before == after else conv_norm_relu(before, after)
            for before, after in zip(widths_in, widths, strict=False)
        )
        self.coarser = conv_norm_relu(widths_in[-1], widths[-1], stride=2)

    def forward(self, features: Features) -> Features:
        """One branch more than went in."""
        kept = (layer(x) for layer, x in zip(self.keep, features, strict=True))
        return (*kept, self.coarser(features[-1]))


class Head(nn.Module):
    """All branches at the finest one's size, side by side, and two pointwise convolutions."""

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        total = sum(widths)
        self.classify = nn.Sequential(
            conv_norm_relu(total, total, size=1), nn.Conv2d(total, num_classes, 1)
        )

    def forward(self, features: Features) -> Tensor:
        """[N, num_classes, H / 4, W / 4]."""
        size = features[0].shape[2:]
        together = torch.cat([resize(x, size) for x in features], dim=1)
        return self.classify(together)  # type: ignore[no-any-return]


class HRNetStage(nn.Module):
    """One of the four stages, and the exit behind it."""

    def __init__(self, trunk: nn.Module, head: Head, *, last: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.last = last

    def forward(self, features: Features) -> StageOutput:
        """The first stage takes one tensor [N, 3, H, W], the others one a branch."""
        features = self.trunk(features)
        return StageOutput(() if self.last else features, self.head(features))


class FirstStage(nn.Module):
    """Down to a quarter of the size, then bottlenecks on the one branch there is."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        wide = BOTTLENECK_WIDTH * EXPANSION
        self.layers = nn.Sequential(
            conv_norm_relu(3, STEM_WIDTH, stride=2),
            conv_norm_relu(STEM_WIDTH, STEM_WIDTH, stride=2),
            *(bottleneck(STEM_WIDTH if i == 0 else wide) for i in range(blocks)),
        )

    def forward(self, features: Features) -> Features:
        """[N, 3, H, W] to [N, 256, H / 4, W / 4]."""
        return (self.layers(features[0]),)


def build(
    *,
    width: int,
    num_classes: int,
    preprocessing: Preprocessing,
    modules: list[int] | None = None,
    blocks: int = 4,
) -> MultiExitNetwork:
    """Build an HRNet with K = 4 exits.

    Args:
        width: Channels of the finest branch: 18, 32 or 48 in the paper; each coarser one has twice
            as many.
        num_classes: C.
        preprocessing: Declared input.
        modules: Of the second, third and fourth stage; [1, 4, 3] in the paper.
        blocks: Per branch and module, and in the first stage.

    Raises:
        PipelineError: Arguments that describe no network.
    """
    counts = [1, 4, 3] if modules is None else modules
    require_whole(1, width=width, blocks=blocks)
    require_wholes(1, 1, modules=counts)
    widths_in = [BOTTLENECK_WIDTH * EXPANSION]
    stages = [HRNetStage(FirstStage(blocks), Head(widths_in, num_classes), last=False)]
    for k, count in enumerate(counts, start=1):
        widths = [width * 2**branch for branch in range(k + 1)]
        trunk = nn.Sequential(
            Transition(widths_in, widths), *(Module(widths, blocks) for _ in range(count))
        )
        stages.append(HRNetStage(trunk, Head(widths, num_classes), last=k == len(counts)))
        widths_in = widths
    return MultiExitNetwork(stages, preprocessing)
