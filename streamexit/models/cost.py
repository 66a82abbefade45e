"""What it takes to reach each exit, counted from the network itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from streamexit.models.network import Features, MultiExitNetwork


def gflops_per_exit(network: MultiExitNetwork) -> tuple[float, ...]:
    """Cumulative GFLOPs per frame to leave at each exit; one multiply-add counts as 2 FLOPs.

    The heads of passed exits are included, because a frame that goes deep has paid for them.
    Convolutions and matrix products are counted, as is usual; element-wise work is not, nor is
    the scorer (a few dozen multiply-adds).
    """
    p = network.preprocessing
    device = next(network.parameters()).device
    features: Features = (torch.zeros(1, p.height, p.width, 3, dtype=torch.uint8, device=device),)
    training = network.training
    network.eval()
    costs: list[float] = []
    with torch.inference_mode(), _FlopCounter() as counter:
        for k in range(network.num_exits):
            features = network.run_stage(k, features).features
            costs.append(counter.flops / 1e9)
    network.train(training)
    return tuple(costs)


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """PyTorch's own formulas, without its `FlopCounterMode`.

    That one imports TorchDynamo for its first operation, which takes as long as importing PyTorch
    does, at every start of every node.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:  # such as a linear layer, which consists of others
            with self:
                parts = func.decompose(*args, **kwargs or {})
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs or {})
        if formula is not None:
            self.flops += formula(*args, **kwargs or {}, out_val=result)
        return result
