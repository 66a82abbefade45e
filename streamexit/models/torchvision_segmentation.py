"""torchvision's segmentation networks, cut into stages.

Their backbone is a row of named layers; an exit can stand behind any of them. Where torchvision has
an auxiliary classifier, that is the exit's head; the last exit's is the network's own. Other exits
get a head of the same kind as the auxiliary one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models.segmentation.fcn import FCNHead

from streamexit.errors import PipelineError
from streamexit.models.network import Features, MultiExitNetwork, StageOutput
from streamexit.preprocessing import Preprocessing

NETWORKS = (
    "lraspp_mobilenet_v3_large",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "fcn_resnet50",
)
"""Names in torchvision.models.segmentation."""


class CutStage(nn.Module):
    """Layers of a backbone, and the exit behind them.

    Features that are carried: the backbone's, and whatever the last head wants of earlier layers.

    Args:
        layers: Name -> layer, in order.
        head: Maps a tensor, or a mapping from torchvision's names to tensors, to logits.
        wanted: Layer -> name under which the last head takes its output.
        collects: Whether the head takes the mapping.
        last: Whether nothing comes after it.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        head: nn.Module,
        *,
        wanted: dict[str, str],
        collects: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.head = head
        self.wanted = wanted
        self.collects = collects
        self.last = last

    def forward(self, features: Features) -> StageOutput:
        """The first stage takes one tensor [N, 3, H, W]."""
        x, *kept = features
        for name, layer in self.layers.items():
            x = layer(x)
            if name in self.wanted:
                kept.append(x)
        passed_on = () if self.last else (x, *kept)
        return StageOutput(passed_on, self._answer(x, kept))

    def _answer(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        if not self.collects:
            return self.head(x)  # type: ignore[no-any-return]
        names = [*self.wanted.values()]
        return self.head(dict(zip(names, kept, strict=True)))  # type: ignore[no-any-return]


def build(
    *,
    name: str,
    num_classes: int,
    preprocessing: Preprocessing,
    exits: list[str] | None = None,
) -> MultiExitNetwork:
    """Build a torchvision network with fresh weights, and cut it into stages.

    Args:
        name: One of `NETWORKS`.
        num_classes: C.
        preprocessing: Declared input.
        exits: Names of the backbone's layers behind which exits stand; the last is where the
            network's own head stands. Left out: the auxiliary classifier's and that one.

    Raises:
        PipelineError: Arguments that describe no network.
    """
    if name not in NETWORKS:
        raise PipelineError(f"network.name: {name!r} is not one of {', '.join(NETWORKS)}")
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    whole = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=num_classes, **options
    )
    return cut(whole, num_classes=num_classes, preprocessing=preprocessing, exits=exits)


def cut(
    whole: Any, *, num_classes: int, preprocessing: Preprocessing, exits: list[str] | None
) -> MultiExitNetwork:
    """Cut one of torchvision's segmentation networks into stages that share its layers and weights.

    Args:
        whole: The network.
        num_classes: Of heads that it lacks.
        preprocessing: Declared input.
        exits: See `build`.

    Raises:
        PipelineError: Exits where there is no layer.
    """
    layers = dict(whole.backbone.items())
    returned: dict[str, str] = dict(whole.backbone.return_layers)
    final = list(layers)[-1]
    early = next(layer for layer in returned if layer != final)
    places = [early, final] if exits is None else list(exits)
    order = [list(layers).index(place) if place in layers else -1 for place in places]
    if not order or -1 in order or order != sorted(set(order)) or places[-1] != final:
        raise PipelineError(
            f"network.exits: {places} must rise in {', '.join(layers)} and end with {final}"
        )
    widths = _widths(layers)
    heads = {early: getattr(whole, "aux_classifier", None), final: whole.classifier}
    collects = "out" not in returned.values()
    wanted = returned if collects else {}
    stages: list[nn.Module] = []
    for begin, end in pairwise([-1, *order]):
        part = dict(list(layers.items())[begin + 1 : end + 1])
        place, last = list(layers)[end], end == order[-1]
        own = heads.get(place)
        head = own if own is not None else FCNHead(widths[place], num_classes)
        stages.append(CutStage(part, head, wanted=wanted, collects=collects and last, last=last))
    return MultiExitNetwork(stages, preprocessing)


def _widths(layers: dict[str, nn.Module]) -> dict[str, int]:
    """Channels behind each layer, found by running them on a little of nothing."""
    widths = {}
    x = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        for name, layer in layers.items():
            x = layer.eval()(x)
            widths[name] = x.shape[1]
    return widths
