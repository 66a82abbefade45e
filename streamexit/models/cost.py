"""What it takes to reach each exit, counted from the network itself."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

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
    with torch.inference_mode():
        for k in range(network.num_exits):
            with FlopCounterMode(display=False) as counter:
                features = network.run_stage(k, features).features
            costs.append((costs[-1] if costs else 0.0) + counter.get_total_flops() / 1e9)
    network.train(training)
    return tuple(costs)
