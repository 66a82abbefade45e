"""The PyTorch backend: stages run eagerly on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamexit.backends.backend import Pending, RowState, StageResult
from streamexit.backends.scored_stage import ScoredOutput, ScoredStage
from streamexit.errors import ConfigurationError
from streamexit.models.network import MultiExitNetwork
from streamexit.scheduling.scorers import Scorer
from streamexit.tasks.readout import Task, to_host


class TorchBackend:
    """See `Backend`.

    Args:
        network: Moved to `device`.
        task: Reads the logits.
        scorer: Moved to `device`.
        device: From `pick_device`.
        max_batch: Rows per batch at most.
    """

    def __init__(
        self,
        network: MultiExitNetwork,
        task: Task,
        scorer: Scorer,
        *,
        device: torch.device,
        max_batch: int = 32,
    ) -> None:
        network = network.to(device).to(memory_format=torch.channels_last).eval()
        scorer = scorer.to(device).eval()
        self.num_stages = network.num_exits
        self.max_batch = max_batch
        self.depth = 1 if device.type == "cpu" else 2
        self.device = _describe(device)
        self._device = device
        self._stages = [ScoredStage(network, task, scorer, k) for k in range(self.num_stages)]

    def submit(self, stage: int, states: Sequence[RowState]) -> Pending:
        """See `Backend`. On CUDA this returns as soon as the kernels are queued."""
        with torch.inference_mode():
            return _TorchPending(self._stages[stage](self._gather(stage, states)))

    def _gather(self, stage: int, states: Sequence[RowState]) -> tuple[Tensor, ...]:
        if stage == 0:
            return (torch.from_numpy(np.stack(states)).to(self._device),)
        return tuple(torch.stack(rows) for rows in zip(*states, strict=True))


class _TorchPending:
    """Kernels that are queued or done."""

    def __init__(self, output: ScoredOutput) -> None:
        self._output = output

    def result(self) -> StageResult:
        """Bring the small tensors to the host; features stay on the device."""
        output = self._output
        states: list[Any] = list(zip(*(t.unbind(0) for t in output.state), strict=True))
        return StageResult(output.scores.tolist(), to_host(output.answer), states)


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu" or "cuda:0" into a device that is there.

    Raises:
        ConfigurationError: Unknown, or a CUDA device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device: {name!r} is not one of auto, cpu, cuda:0, cuda:1 ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device: {name!r} is not here ({torch.cuda.device_count()} CUDA devices); use auto"
        )
    return device


def _describe(device: torch.device) -> str:
    return str(device) if device.type == "cpu" else f"{device} {torch.cuda.get_device_name(device)}"
