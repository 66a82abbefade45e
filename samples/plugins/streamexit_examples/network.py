"""A network: MobileNetV3, cut in three, with an exit behind each piece."""

from itertools import pairwise

from torch import nn
from torchvision.models import mobilenet_v3_small

from streamexit import MultiExitNetwork, Preprocessing, Stage

CUTS, WIDTHS = (0, 4, 9, 13), (24, 48, 576)


def build(*, preprocessing: Preprocessing, num_classes: int = 10) -> MultiExitNetwork:
    """Fresh weights; whatever else stands under `network` in the recipe would be an argument, too."""
    blocks = mobilenet_v3_small().features
    stages = []
    for (begin, end), width in zip(pairwise(CUTS), WIDTHS, strict=True):
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        head = nn.Sequential(pool, nn.Linear(width, num_classes))
        stages.append(Stage(blocks[begin:end], head, last=end == CUTS[-1]))
    return MultiExitNetwork(stages, preprocessing)
