"""The PyTorch backend: stages run eagerly, or compiled by TorchInductor, on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamexit.backends.backend import Pending, RowState, StageResult
from streamexit.backends.devices import title
from streamexit.backends.scored_stage import ScoredOutput, ScoredStage, joined
from streamexit.models.network import MultiExitNetwork
from streamexit.preprocessing import Image
from streamexit.scheduling.scorers import Scorer
from streamexit.tasks.readout import Task, to_host


class TorchBackend:
    """See `Backend`.

    A batch that does not fit into the device's memory is run in halves, then and from then on.

    Args:
        network: Moved to `device`.
        task: Reads the logits.
        scorer: Moved to `device`.
        device: From `pick_device`.
        sizes: Rows of a full batch, per stage.
        compiled: Compile the stages with TorchInductor: seconds to minutes at the first batch.
    """

    def __init__(
        self,
        network: MultiExitNetwork,
        task: Task,
        scorer: Scorer,
        *,
        device: torch.device,
        sizes: Sequence[int],
        compiled: bool = False,
    ) -> None:
        network = network.to(device).to(memory_format=torch.channels_last).eval()
        scorer = scorer.to(device).eval()
        self.num_stages = network.num_exits
        self.sizes = tuple(sizes)
        self.depth = 1 if device.type == "cpu" else 2
        kind = "torch-compiled" if compiled else "torch"
        self.device = title(kind, device, "float32")
        self.notes: list[str] = []
        self._fitting = list(self.sizes)
        self._device = device
        stages: list[nn.Module] = [
            ScoredStage(network, task, scorer, k) for k in range(self.num_stages)
        ]
        self._stages = [torch.compile(s, dynamic=True) if compiled else s for s in stages]

    def submit(self, stage: int, states: Sequence[RowState]) -> Pending:
        """See `Backend`. On CUDA this returns as soon as the kernels are queued."""
        parts: list[ScoredOutput] = []
        left = list(states)
        while left:
            part = left[: self._fitting[stage]]
            try:
                parts.append(self._run(stage, part))
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._shrink(stage, len(part) // 2)
                continue
            left = left[len(part) :]
        return _TorchPending(parts, self._device, last=stage == self.num_stages - 1)

    def release(self, states: Sequence[RowState]) -> None:
        """Nothing: tensors go when nobody holds them."""

    def _run(self, stage: int, states: Sequence[RowState]) -> ScoredOutput:
        with torch.inference_mode():
            output = self._stages[stage](self._gather(stage, states))
        assert isinstance(output, ScoredOutput)
        return output

    def _gather(self, stage: int, states: Sequence[RowState]) -> tuple[Tensor, ...]:
        if stage == 0:
            return (stack_pictures(states, self._device),)
        return tuple(torch.stack(rows) for rows in zip(*states, strict=True))

    def _shrink(self, stage: int, rows: int) -> None:
        self._fitting[stage] = rows
        self.notes.append(f"out of memory: stage {stage + 1} runs {rows} rows at a time")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def stack_pictures(pictures: Sequence[Image | Tensor], device: torch.device) -> Tensor:
    """As a batch on the device, where some of them may have been decoded."""
    if any(isinstance(picture, Tensor) for picture in pictures):
        return torch.stack([torch.as_tensor(picture, device=device) for picture in pictures])
    return torch.from_numpy(np.stack(pictures)).to(device)


class _TorchPending:
    """Kernels that are queued or done."""

    def __init__(self, parts: Sequence[ScoredOutput], device: torch.device, *, last: bool) -> None:
        self._parts = parts
        self._last = last
        self._queued = torch.cuda.Event() if device.type == "cuda" else None
        if self._queued:
            self._queued.record(torch.cuda.current_stream(device))

    @property
    def done(self) -> bool:
        return self._queued is None or self._queued.query()

    def result(self) -> StageResult:
        """Bring the small tensors to the host; features stay on the device."""
        scores: list[float] = []
        states: list[Any] = []
        for part in self._parts:
            scores += part.scores.tolist()
            states += zip(*(t.unbind(0) for t in part.state), strict=True)
        answer = to_host(joined([part.answer for part in self._parts]))
        return StageResult(scores, answer, [] if self._last else states)
