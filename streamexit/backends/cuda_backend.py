"""The CUDA backend: stages as captured graphs, so that a batch costs one launch.

Every graph reads its rows from a pool on the device by index, and writes what they carry on into the
pool of the next stage by index: survivors are put together where they are. What the host wants is
copied to pinned memory on a stream of its own, while the next batch is already running.

N: rows, K: exits, k: stage (from 0).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamexit.backends.backend import Pending, RowState, StageResult
from streamexit.backends.devices import title
from streamexit.backends.profile import LEAST_ROWS
from streamexit.backends.scored_stage import ScoredStage, joined
from streamexit.errors import EngineError
from streamexit.models.network import MultiExitNetwork
from streamexit.scheduling.scorers import Scorer
from streamexit.tasks.readout import Task, to_host

DEPTH = 3
"""One batch computes, one is copied out, one is being put together."""

WARM_UPS = 3
"""Runs before a capture, in which libraries choose their kernels (CUDA graphs' own advice)."""


class CudaBackend:
    """See `Backend`.

    A stage whose graph does not fit into the device's memory is captured for half as many rows, and
    `notes` says so.

    Args:
        network: Copied to `device`.
        task: Reads the logits.
        scorer: Copied to `device`; computes in float32 whatever the network does.
        device: A CUDA device.
        sizes: Rows of a full batch, per stage.
        precision: "bf16" or "float32", of the network.
    """

    def __init__(
        self,
        network: MultiExitNetwork,
        task: Task,
        scorer: Scorer,
        *,
        device: torch.device,
        sizes: Sequence[int],
        precision: str,
    ) -> None:
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        network = copy.deepcopy(network).to(device, kind)
        network = network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        scorer = copy.deepcopy(scorer).to(device).eval()
        self.num_stages = network.num_exits
        self.depth = DEPTH
        self.device = title("cuda", device, precision)
        self.notes: list[str] = []
        self.sizes = tuple(sizes)
        self._device = device
        self._task = task
        self._work = torch.cuda.Stream(device)
        self._copies = torch.cuda.Stream(device)
        self._modules = [ScoredStage(network, task, scorer, k) for k in range(self.num_stages)]
        p = network.preprocessing
        self._picture = (p.height, p.width, 3)
        self._pools: list[Pool] = []
        self._graphs: list[dict[int, _StageGraph]] = []
        self._free_transfers: list[list[_Transfer]] = [[] for _ in self.sizes]
        with torch.inference_mode(), torch.cuda.device(device):
            self._make_pools()
            self._capture_all()
            # the graphs run on another stream than they were made on
            torch.cuda.synchronize(device)

    def submit(self, stage: int, states: Sequence[RowState]) -> Pending:
        """See `Backend`. Returns as soon as the work is queued."""
        most = max(self._graphs[stage])
        with torch.inference_mode(), torch.cuda.device(self._device):
            parts = [
                self._start(stage, states[begin : begin + most])
                for begin in range(0, len(states), most)
            ]
        return _CudaPending(self, parts)

    def release(self, states: Sequence[RowState]) -> None:
        """See `Backend`."""
        for boundary, slot in states:
            self._pools[boundary].free.append(slot)

    def finish(self, transfer: _Transfer) -> None:
        """Let a batch's pinned memory and its rows' slots be used again."""
        self.release(transfer.consumed)
        self._free_transfers[transfer.stage].append(transfer)

    def _start(self, stage: int, states: Sequence[RowState]) -> _Transfer:
        graph = self._graphs[stage][min(n for n in self._graphs[stage] if n >= len(states))]
        free = self._free_transfers[stage]
        transfer = free.pop() if free else self._new_transfer(stage)
        last = stage == self.num_stages - 1
        slots = [] if last else self._pools[stage].take(len(states))
        with torch.cuda.stream(self._work):
            transfer.load(graph, states, slots, self._pools)
            graph.graph.replay()
            transfer.stage_outputs(graph, len(states))
            transfer.computed.record(self._work)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(transfer.computed)
            transfer.copy_out(len(states))
            transfer.copied.record(self._copies)
        transfer.consumed = list(states) if stage else []
        transfer.handed_on = [(stage, slot) for slot in slots]
        transfer.rows = len(states)
        return transfer

    def _make_pools(self) -> None:
        """Room for the rows between two stages, and one place for padding."""
        places = pool_places(self.sizes, self.depth)
        state: tuple[Tensor, ...] = (self._blank(1),)
        for module in self._modules[:-1]:
            state = module(state).state
            self._pools.append(Pool.like(state, places))

    def _blank(self, rows: int) -> Tensor:
        return torch.zeros(rows, *self._picture, dtype=torch.uint8, device=self._device)

    def _capture_all(self) -> None:
        """Every stage for every bucket, as far as the memory goes."""
        memory = torch.cuda.graph_pool_handle()
        for stage in range(self.num_stages):
            graphs: dict[int, _StageGraph] = {}
            for rows in _buckets(self.sizes[stage]):
                try:
                    graphs[rows] = self._capture(stage, rows, memory)
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    if not graphs:
                        raise
                    self.notes.append(
                        f"out of memory: stage {stage + 1} runs {max(graphs)} rows at a time"
                    )
                    break
            self._graphs.append(graphs)

    def _capture(self, stage: int, rows: int, memory: Any) -> _StageGraph:
        before = self._pools[stage - 1] if stage else None
        after = self._pools[stage] if stage < self.num_stages - 1 else None
        inputs = (
            self._blank(rows)
            if before is None
            else torch.full((rows,), before.padding, dtype=torch.int64, device=self._device)
        )
        places = torch.full(
            (rows,), after.padding if after else 0, dtype=torch.int64, device=self._device
        )

        def run() -> tuple[Tensor, ...]:
            state = (inputs,) if before is None else before.gather(inputs)
            output = self._modules[stage](state)
            if after is not None:
                after.scatter(places, output.state)
            return (output.scores, *self._task.for_host(output.answer))

        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # others may use the device meanwhile: decoders, or a pipeline that runs already
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            outputs = run()
        return _StageGraph(graph, inputs, places, outputs)

    def _new_transfer(self, stage: int) -> _Transfer:
        rows = max(self._graphs[stage])
        outputs = self._graphs[stage][rows].outputs
        return _Transfer(stage, rows, self._picture if stage == 0 else None, outputs)


def pool_places(sizes: Sequence[int], depth: int) -> int:
    """How many rows may lie between two stages: an engine's, or those of a measurement."""
    return max(sum(sizes) + (depth + 2) * max(sizes), LEAST_ROWS)


def _buckets(most: int) -> list[int]:
    """Powers of two below `most`, and `most`."""
    return [1 << i for i in range((most - 1).bit_length())] + [most]


class Pool:
    """Rows between two stages. The last place takes what padding rows write."""

    def __init__(self, tensors: list[Tensor], channels_last: list[bool], places: int) -> None:
        self._tensors = tensors
        self._channels_last = channels_last
        self.padding = places
        self.free = list(range(places))

    @classmethod
    def like(cls, state: Sequence[Tensor], places: int) -> Pool:
        """For rows such as those of `state`; channels-last tensors stay so."""
        last = [t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in state]
        shapes = [
            t.movedim(1, -1).shape if nhwc else t.shape for t, nhwc in zip(state, last, strict=True)
        ]
        tensors = [
            torch.zeros((places + 1, *shape[1:]), dtype=t.dtype, device=t.device)
            for t, shape in zip(state, shapes, strict=True)
        ]
        return cls(tensors, last, places)

    def take(self, rows: int) -> list[int]:
        """Places for `rows` rows.

        Raises:
            EngineError: The engine keeps more rows than it said it would.
        """
        if len(self.free) < rows:
            raise EngineError(f"{rows} rows wanted, {len(self.free)} of {self.padding} places free")
        return [self.free.pop() for _ in range(rows)]

    def gather(self, places: Tensor) -> tuple[Tensor, ...]:
        """The rows at `places`, as a batch."""
        rows = [t.index_select(0, places) for t in self._tensors]
        return tuple(
            t.movedim(-1, 1) if nhwc else t
            for t, nhwc in zip(rows, self._channels_last, strict=True)
        )

    def scatter(self, places: Tensor, state: Sequence[Tensor]) -> None:
        """Put a batch's rows to `places`."""
        for pool, t, nhwc in zip(self._tensors, state, self._channels_last, strict=True):
            pool.index_copy_(0, places, t.movedim(1, -1) if nhwc else t)


@dataclass(frozen=True, slots=True)
class _StageGraph:
    """A stage for one number of rows, with the memory that it reads and writes.

    Attributes:
        graph: Captured.
        inputs: Pictures at stage 0, else where the rows lie in the pool before.
        places: Where the rows are to lie in the pool behind.
        outputs: Scores, then the answer; written anew by each replay.
    """

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    places: Tensor
    outputs: tuple[Tensor, ...]


class _Transfer:
    """Pinned memory for one batch in flight, and what is known of that batch.

    Args:
        stage: Which.
        rows: At most.
        picture: Shape of a picture, at stage 0.
        outputs: Of a graph, for their shapes.
    """

    def __init__(
        self,
        stage: int,
        rows: int,
        picture: tuple[int, ...] | None,
        outputs: Sequence[Tensor],
    ) -> None:
        self.stage = stage
        self.rows = 0
        self.consumed: list[RowState] = []
        self.handed_on: list[RowState] = []
        self.computed = torch.cuda.Event()
        self.copied = torch.cuda.Event()
        self._pictures = (
            torch.empty((rows, *picture), dtype=torch.uint8, pin_memory=True) if picture else None
        )
        self._indices = torch.empty((2, rows), dtype=torch.int64, pin_memory=True)
        self._staged = [torch.empty_like(t) for t in outputs]
        self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in outputs]

    def load(
        self,
        graph: _StageGraph,
        states: Sequence[RowState],
        slots: Sequence[int],
        pools: Sequence[Pool],
    ) -> None:
        """Queue the copies that a graph's inputs are made of."""
        n, rows = len(states), len(graph.places)
        if self._pictures is not None:
            self._load_pictures(graph, states)
        else:
            self._indices[0, :n] = torch.tensor([slot for _, slot in states])
            self._indices[0, n:rows] = pools[self.stage - 1].padding
            graph.inputs.copy_(self._indices[0, :rows], non_blocking=True)
        if slots:
            self._indices[1, :n] = torch.tensor(slots)
            self._indices[1, n:rows] = pools[self.stage].padding
            graph.places.copy_(self._indices[1, :rows], non_blocking=True)

    def _load_pictures(
        self, graph: _StageGraph, pictures: Sequence[NDArray[np.uint8] | Tensor]
    ) -> None:
        """From the host through pinned memory; what was decoded on the device is there already."""
        assert self._pictures is not None
        pinned: NDArray[np.uint8] = self._pictures.numpy()
        on_host = [i for i, picture in enumerate(pictures) if not isinstance(picture, Tensor)]
        for i in on_host:
            pinned[i] = pictures[i]
        if on_host:
            n = len(pictures)
            graph.inputs[:n].copy_(self._pictures[:n], non_blocking=True)
        for i, picture in enumerate(pictures):
            if isinstance(picture, Tensor):
                graph.inputs[i].copy_(picture, non_blocking=True)
                picture.record_stream(torch.cuda.current_stream())  # its memory is still read

    def stage_outputs(self, graph: _StageGraph, rows: int) -> None:
        """Queue a copy of the outputs on the device: the graph's next replay writes over them."""
        for staged, output in zip(self._staged, graph.outputs, strict=True):
            staged[:rows].copy_(output[:rows])

    def copy_out(self, rows: int) -> None:
        """Queue their copy to the host."""
        for host, staged in zip(self._host, self._staged, strict=True):
            host[:rows].copy_(staged[:rows], non_blocking=True)

    def outputs(self) -> list[Tensor]:
        """On the host, once `copied` has happened."""
        return [host[: self.rows] for host in self._host]


class _CudaPending:
    """Work that is queued or done."""

    def __init__(self, backend: CudaBackend, parts: Sequence[_Transfer]) -> None:
        self._backend = backend
        self._parts = parts

    @property
    def done(self) -> bool:
        return all(part.copied.query() for part in self._parts)

    def result(self) -> StageResult:
        """Scores and answers, on the host."""
        scores: list[float] = []
        states: list[RowState] = []
        answers = []
        for part in self._parts:
            part.copied.synchronize()
            own_scores, *answer = part.outputs()
            scores += own_scores.tolist()
            states += part.handed_on
            answers.append(answer)
            self._backend.finish(part)
        return StageResult(scores, to_host(joined(answers)), states)
