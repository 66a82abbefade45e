"""The toy network, made slow: each stage takes $SLOW_MS milliseconds."""

from __future__ import annotations

import os
import time
from typing import Any

from torch import Tensor, nn

from streamexit.models.network import MultiExitNetwork
from streamexit.testing import toy_network


class Nap(nn.Module):
    """Takes its time."""

    def forward(self, features: Tensor) -> Tensor:
        """Sleep, and hand on what came."""
        time.sleep(float(os.environ.get("SLOW_MS", "0")) / 1000)
        return features


def build(**options: Any) -> MultiExitNetwork:
    """Named in `pipeline.yaml`."""
    network = toy_network(**options)
    for stage in network.stages:
        stage.trunk.append(Nap())  # type: ignore[operator, union-attr]
    return network
