"""torchvision's classifiers, cut into stages by share of cost.

The network is traced into a graph whose nodes are its blocks (torch.fx). An exit can stand behind
any node whose output, with whatever else is still needed later, has one height and width: a ResNet
hands on one tensor there, a DenseNet, inside a dense block, as many as it has grown so far. The last
stage ends in the network's own head, so its answer is the uncut network's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models.swin_transformer import SwinTransformer

from streamexit.documents import did_you_mean
from streamexit.errors import PipelineError
from streamexit.models.arguments import require_whole
from streamexit.models.blocks import pooled_classifier, separable
from streamexit.models.network import Features, MultiExitNetwork, StageOutput
from streamexit.preprocessing import Preprocessing

FAMILIES = ("resnet", "mobilenet", "efficientnet", "convnext", "densenet", "regnet", "swin")
"""Beginnings of the names in torchvision.models that are tested; others are refused."""

POOLED_SIDE = 8
"""Early heads halve the picture down to so many pixels before they pool it."""


class CutStage(nn.Module):
    """A piece of the graph, and the head of the exit behind it.

    Args:
        segment: Maps the tensors that are handed on to the next ones; in the last stage to logits.
        head: Of the exit, on all tensors that are handed on, concatenated; None in the last stage.
        channels_last: Whether the network's own tensors are [N, H, W, C] (Swin).
    """

    def __init__(
        self, segment: fx.GraphModule, head: nn.Module | None, *, channels_last: bool
    ) -> None:
        super().__init__()
        self.segment = segment
        self.head = head
        self.channels_last = channels_last

    def forward(self, features: Features) -> StageOutput:
        """The first stage takes one tensor [N, 3, H, W]."""
        carried: Features = self.segment(*features)
        if self.head is None:
            return StageOutput((), carried[0])
        seen = carried[0] if len(carried) == 1 else torch.cat(carried, 1)
        return StageOutput(carried, self.head(seen.movedim(-1, 1) if self.channels_last else seen))


def build(
    *,
    name: str,
    exits: Sequence[float],
    preprocessing: Preprocessing,
    num_classes: int = 1000,
) -> MultiExitNetwork:
    """Build a torchvision classifier with fresh weights, and cut it into stages.

    Args:
        name: A function of torchvision.models, of one of the `FAMILIES`.
        exits: Where early exits stand, as shares of the uncut network's cost, rising, each in
            (0, 1). Each goes to the nearest place that has one height and width. The last exit is
            added, where the network's own head is.
        preprocessing: Declared input.
        num_classes: C.

    Raises:
        PipelineError: Arguments that describe no network.
    """
    if name not in known_names():
        raise PipelineError(f"network.torchvision: {name!r}: {did_you_mean(name, known_names())}")
    require_whole(2, num_classes=num_classes)
    whole = getattr(models, name)(weights=None, num_classes=num_classes)
    return cut(whole, exits=exits, num_classes=num_classes, preprocessing=preprocessing)


def known_names() -> list[str]:
    """What `build` takes."""
    return [name for name in models.list_models(module=models) if name.startswith(FAMILIES)]


def cut(
    whole: nn.Module, *, exits: Sequence[float], num_classes: int, preprocessing: Preprocessing
) -> MultiExitNetwork:
    """Cut a network into stages that share its layers and weights.

    Args:
        whole: Maps [N, 3, H, W] to logits; torch.fx must be able to trace it.
        exits: See `build`.
        num_classes: Of the early exits' heads.
        preprocessing: Declared input.

    Raises:
        PipelineError: Exits that no place is left for.
    """
    _check_shares(exits)
    training = whole.training
    graph = _BlockTracer().trace(whole.eval())
    places = _places(whole, graph, preprocessing)
    chosen = _choose(places, exits)
    channels_last = isinstance(whole, SwinTransformer)
    nodes = list(graph.nodes)
    inputs: tuple[fx.Node, ...] = tuple(n for n in nodes if n.op == "placeholder")
    begin = len(inputs)
    stages: list[nn.Module] = []
    for place in chosen:
        segment = _segment(whole, nodes[begin : place.end], inputs, place.live)
        head = _early_head(place, num_classes, channels_last=channels_last)
        stages.append(CutStage(segment, head, channels_last=channels_last))
        begin, inputs = place.end, place.live
    rest = [node for node in nodes[begin:] if node.op != "output"]
    last = _segment(whole, rest, inputs, tuple(nodes[-1].all_input_nodes))
    stages.append(CutStage(last, None, channels_last=channels_last))
    whole.train(training)
    return MultiExitNetwork(stages, preprocessing)


def _check_shares(exits: Sequence[float]) -> None:
    shares: list[Any] = list(exits)
    fit = all(isinstance(share, float) and 0 < share < 1 for share in shares)
    if not fit or shares != sorted(set(shares)):
        raise PipelineError(
            f"network.exits: {list(exits)} must be shares of the cost between 0 and 1, rising, as in "
            "[0.25, 0.5, 0.75]; the last exit is added"
        )


class _BlockTracer(fx.Tracer):
    """Blocks are nodes, containers of blocks are not: nobody wants an exit inside a block."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        home = type(m).__module__
        if home.startswith("torchvision.models"):
            return not isinstance(m, nn.Sequential | nn.ModuleDict)
        return home.startswith("torchvision.ops") or super().is_leaf_module(
            m, module_qualified_name
        )


@dataclass(frozen=True)
class _Place:
    """Where an exit could stand.

    Attributes:
        end: Index of the first node behind it.
        live: Nodes whose outputs are still needed.
        share: Of the network's cost, up to here.
        shapes: Of the live tensors.
    """

    end: int
    live: tuple[fx.Node, ...]
    share: float
    shapes: tuple[torch.Size, ...]


class _Meter(fx.Interpreter):
    """Runs a graph and notes each node's cumulative cost and output shape."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.flops: dict[fx.Node, int] = {}
        self.shapes: dict[fx.Node, torch.Size | None] = {}
        self._total = 0

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            output = super().run_node(n)
        self._total += counter.get_total_flops()
        self.flops[n] = self._total
        self.shapes[n] = output.shape if isinstance(output, Tensor) else None
        return output


def _places(whole: nn.Module, graph: fx.Graph, preprocessing: Preprocessing) -> list[_Place]:
    meter = _Meter(whole, graph)
    with torch.inference_mode():
        meter.run(torch.zeros(1, 3, preprocessing.height, preprocessing.width))
    nodes = list(graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    last_use = {node: max((order[user] for user in node.users), default=0) for node in nodes}
    total = meter.flops[nodes[-1]]
    places = []
    for i, node in enumerate(nodes[:-1]):
        live = tuple(n for n in nodes[: i + 1] if last_use[n] > i and n.op != "get_attr")
        shapes = tuple(s for n in live if (s := meter.shapes[n]) is not None and len(s) == 4)
        pictures = len(shapes) == len(live) and len({shape[2:] for shape in shapes}) == 1
        if pictures and node in live and node.op != "placeholder":
            places.append(_Place(i + 1, live, meter.flops[node] / total, shapes))
    return places


def _choose(places: Sequence[_Place], exits: Sequence[float]) -> list[_Place]:
    """The nearest place of each share; of equally near ones the last, which is behind the pooling."""
    chosen = [min(reversed(places), key=lambda p: abs(p.share - share)) for share in exits]
    if len({place.end for place in chosen}) < len(chosen):
        shares = ", ".join(f"{share:.2f}" for share in sorted({p.share for p in places}))
        raise PipelineError(
            f"network.exits: {list(exits)}: two of them fall on one place; this network has places "
            f"at {shares}"
        )
    return chosen


def _segment(
    whole: nn.Module,
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
) -> fx.GraphModule:
    """Some nodes as a module of its own; parameters keep their names and are shared."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(whole, graph)


def _early_head(place: _Place, num_classes: int, *, channels_last: bool) -> nn.Sequential:
    """Separable steps down to `POOLED_SIDE` pixels, at least one, then pooled."""
    shape = place.shapes[0]
    channels = shape[-1] if channels_last else sum(shape[1] for shape in place.shapes)
    side = max(shape[1:3] if channels_last else shape[2:])
    steps: list[nn.Module] = []
    while not steps or side > POOLED_SIDE:
        steps.append(separable(channels, channels))
        side = (side + 1) // 2
    return nn.Sequential(*steps, pooled_classifier(channels, num_classes))
