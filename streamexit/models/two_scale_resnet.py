"""A residual network on two scales, with exits: MSDNet's idea in a form that CPUs run well.

MSDNet (Huang et al., ICLR 2018) carries coarse features from the first layer on, so that an early
exit has something to classify by. It joins its features by concatenation, in many narrow
convolutions, which leave a CPU idle for most of the time. Here two scales (a half and a quarter of
the input's size) are carried side by side and joined by addition: each layer refines the fine
features, and adds to the coarse ones what they and the fine ones say. Heads look at the coarse
features only; each is a pointwise convolution, pooling and a linear layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.models.arguments import require_wholes
from streamexit.models.blocks import conv_norm_relu, initialise_convolutions, pooled_classifier
from streamexit.models.network import Features, MultiExitNetwork, StageOutput
from streamexit.preprocessing import Preprocessing

HEAD_WIDTH = 256


def conv_norm(channels_in: int, channels: int, *, stride: int = 1) -> list[nn.Module]:
    """What is added to a residual path: no ReLU behind it, or it could only ever add."""
    return [nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)]


class Stem(nn.Module):
    """From [N, 3, H, W] to the first features of both scales."""

    def __init__(self, narrow: int, fine: int, coarse: int) -> None:
        super().__init__()
        self.to_fine = nn.Sequential(
            conv_norm_relu(3, narrow), conv_norm_relu(narrow, fine, stride=2)
        )
        self.to_coarse = conv_norm_relu(fine, coarse, stride=2)
        self.refine = nn.Sequential(conv_norm_relu(coarse, coarse), *conv_norm(coarse, coarse))

    def forward(self, x: Tensor) -> Features:
        """Fine [N, fine, H/2, W/2] and coarse [N, coarse, H/4, W/4]."""
        fine = self.to_fine(x)
        coarse = self.to_coarse(fine)
        return fine, functional.relu(coarse + self.refine(coarse))


class Layer(nn.Module):
    """Refines the fine features, then the coarse ones by both."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(*conv_norm(fine, fine))
        self.down = nn.Sequential(*conv_norm(fine, coarse, stride=2))
        self.coarse = nn.Sequential(*conv_norm(coarse, coarse))

    def forward(self, features: Features) -> Features:
        """Features of the same shapes."""
        fine, coarse = features
        fine = functional.relu(fine + self.fine(fine))
        return fine, functional.relu(coarse + self.coarse(coarse) + self.down(fine))


class TwoScaleStage(nn.Module):
    """Layers, and the exit behind them."""

    def __init__(
        self, trunk: nn.Sequential, head: nn.Module, *, first: Stem | None, last: bool
    ) -> None:
        super().__init__()
        self.stem = first
        self.trunk = trunk
        self.head = head
        self.last = last

    def forward(self, features: Features) -> StageOutput:
        """The first stage takes one tensor [N, 3, H, W], the others (fine, coarse)."""
        if self.stem is not None:
            features = self.stem(features[0])
        features = self.trunk(features)
        return StageOutput(() if self.last else features, self.head(features[-1]))


def build(
    *, widths: list[int], layers: list[int], num_classes: int, preprocessing: Preprocessing
) -> MultiExitNetwork:
    """Build a two-scale residual network.

    Args:
        widths: Channels of the stem, of the fine and of the coarse features.
        layers: How many layers stand before each exit, after the exit before it; the stem also
            comes before the first, where 0 layers are allowed.
        num_classes: C.
        preprocessing: Declared input.

    Raises:
        PipelineError: Arguments that describe no network.
    """
    require_wholes(1, 3, widths=widths)
    require_wholes(0, 2, layers=layers)
    if len(widths) != 3:
        raise PipelineError(f"network.widths: {widths} must be three: stem, fine, coarse")
    if min(layers[1:]) < 1:
        raise PipelineError(f"network.layers: {layers}: each exit but the first needs a layer")
    narrow, fine, coarse = widths
    stages: list[nn.Module] = []
    for k, count in enumerate(layers):
        head = nn.Sequential(
            conv_norm_relu(coarse, HEAD_WIDTH, size=1), pooled_classifier(HEAD_WIDTH, num_classes)
        )
        stages.append(
            TwoScaleStage(
                nn.Sequential(*(Layer(fine, coarse) for _ in range(count))),
                head,
                first=Stem(narrow, fine, coarse) if k == 0 else None,
                last=k == len(layers) - 1,
            )
        )
    network = MultiExitNetwork(stages, preprocessing)
    initialise_convolutions(network)
    return network
