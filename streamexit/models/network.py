"""The multi-exit network: a list of stages, each ending in an exit. It runs; it never decides.

N: rows of a batch, C: classes, H, W: pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamexit.preprocessing import Preprocessing

Features = tuple[Tensor, ...]
"""What one stage hands to the next: tensors [N, ...]; one for a ResNet, several for an MSDNet."""


class StageOutput(NamedTuple):
    """What running one stage yields.

    Attributes:
        features: Input of the next stage; empty after the last.
        logits: [N, C] for classification, [N, C, h, w] for segmentation.
        confidence: [N] in [0, 1], from networks with a confidence branch (EENets).
    """

    features: Features
    logits: Tensor
    confidence: Tensor | None = None


class Stage(nn.Module):
    """A piece of trunk and the head of the exit behind it, for trunks that carry one tensor.

    The head gives logits, or a tuple (logits, confidence).
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, *, last: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.last = last

    def forward(self, features: Features) -> StageOutput:
        """Run on `features` (one tensor [N, C', H', W'])."""
        carried = self.trunk(features[0])
        passed_on = () if self.last else (carried,)
        answer = self.head(carried)
        if isinstance(answer, tuple):
            return StageOutput(passed_on, *answer)
        return StageOutput(passed_on, answer)


class Normalise(nn.Module):
    """uint8 [N, H, W, 3] to float [N, 3, H, W], standardised per channel; part of the first stage."""

    scale: Tensor
    shift: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (mean / std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Standardise `images`. The memory format stays NHWC, which convolutions on CPU like."""
        return images.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale - self.shift


class MultiExitNetwork(nn.Module):
    """K stages; stage k maps features to the next features and exit k's logits.

    Args:
        stages: Modules that map `Features` to `StageOutput`, in order.
        preprocessing: What the first stage's input went through; its mean and std are applied here.
    """

    def __init__(self, stages: Iterable[nn.Module], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalise = Normalise(preprocessing)
        self.stages = nn.ModuleList(stages)
        self.preprocessing = preprocessing

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.stages)

    def run_stage(self, k: int, features: Features) -> StageOutput:
        """Run stage k (from 0). Stage 0 takes one uint8 tensor [N, H, W, 3]."""
        if k == 0:
            features = (self.normalise(features[0]),)
        output = self.stages[k](features)
        assert isinstance(output, StageOutput)
        return output

    def forward(self, images: Tensor) -> list[StageOutput]:
        """Run all stages on uint8 [N, H, W, 3]; one output per exit. For training and calibration."""
        outputs: list[StageOutput] = []
        features: Features = (images,)
        for k in range(self.num_exits):
            outputs.append(self.run_stage(k, features))
            features = outputs[-1].features
        return outputs
