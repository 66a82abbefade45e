"""The OpenVINO backend: the default on CPUs.

One infer request runs on one core, and there are as many as cores, so nothing is split and nobody
waits for a slower half. A row's features stay in the tensor that its stage wrote; the next stage
reads them there when the batch is the one that was written (always so for batches of one row), and
copies rows together otherwise.

N: rows, K: exits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray

from streamexit.backends.backend import Pending, RowState, StageResult
from streamexit.backends.devices import title, usable_cores
from streamexit.backends.openvino_int8 import load_quantised_stages
from streamexit.backends.openvino_stages import ANSWER, STATE, load_stages, row_shape
from streamexit.errors import ConfigurationError
from streamexit.models.network import MultiExitNetwork
from streamexit.scheduling.scorers import Scorer
from streamexit.tasks.readout import Task

PRECISIONS = ("float32", "bf16", "int8")


class OpenVinoBackend:
    """See `Backend`.

    Args:
        network: In eval mode, float32, on the CPU.
        task: Reads the logits.
        scorer: On the CPU.
        sizes: Rows of a full batch, per stage.
        precision: One of `PRECISIONS`, or "auto": bf16 where the processor has it.
        cache: Folder of converted stages.
        quantised: The pipeline's stages in 8-bit integers, for precision int8; what is not quantised
            there computes in the processor's best precision.
        say: Called with a sentence before something that takes seconds.

    Raises:
        ConfigurationError: bf16 on a processor without it, int8 without quantised stages.
    """

    def __init__(
        self,
        network: MultiExitNetwork,
        task: Task,
        scorer: Scorer,
        *,
        sizes: Sequence[int],
        precision: str,
        cache: Path,
        quantised: Sequence[Path] = (),
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._core = ov.Core()
        self.precision = pick_precision(precision)
        self._cores = usable_cores()
        if self.precision == "int8":
            if not quantised:
                raise ConfigurationError(
                    "precision: int8 needs quantised stages; make them with: streamexit quantise "
                    "PIPELINE"
                )
            self._models = load_quantised_stages(quantised, task, scorer)
        else:
            self._models = load_stages(network, task, scorer, cache=cache, say=say)
        self.num_stages = len(self._models)
        self.sizes = tuple(sizes)
        self.depth = 2 * self._cores
        self.notes: list[str] = []
        self.device = title("openvino", torch.device("cpu"), self.precision)
        self._stages = [
            {size: self._compile(stage, size) for size in {1, full}}
            for stage, full in enumerate(self.sizes)
        ]

    def submit(self, stage: int, states: Sequence[RowState]) -> Pending:
        """See `Backend`. Rows that fill no batch run one by one, side by side."""
        parts = []
        left = states
        while left:
            size = self.sizes[stage] if len(left) >= self.sizes[stage] else 1
            parts.append(self._stages[stage][size].start(left[:size]))
            left = left[size:]
        return _OpenVinoPending(parts)

    def release(self, states: Sequence[RowState]) -> None:
        """See `Backend`."""
        for block, _ in states:
            block.let_go()

    def _compile(self, stage: int, size: int) -> _CompiledStage:
        """A stage and a batch size as one program."""
        model = self._models[stage].clone()
        model.reshape({i: [size, *row_shape(port)] for i, port in enumerate(model.inputs)})
        compiled = self._core.compile_model(
            model,
            "CPU",
            {
                "NUM_STREAMS": self._cores,
                "INFERENCE_NUM_THREADS": self._cores,
                "INFERENCE_PRECISION_HINT": "f32" if self.precision == "float32" else _hint(),
                # Every stage has threads of its own; pinned, two could share a core while another
                # core is idle.
                "ENABLE_CPU_PINNING": False,
            },
        )
        return _CompiledStage(
            compiled,
            size,
            first=stage == 0,
            last=stage == self.num_stages - 1,
            untouched=_untouched(model),
        )


def pick_precision(name: str) -> str:
    """Turn "auto" into what the processor is best at.

    Raises:
        ConfigurationError: Unknown, or bf16 on a processor without it.
    """
    if name == "auto":
        return "bf16" if _has_bf16() else "float32"
    if name not in PRECISIONS:
        raise ConfigurationError(f"precision: {name!r} is not one of auto, {', '.join(PRECISIONS)}")
    if name == "bf16" and not _has_bf16():
        raise ConfigurationError("precision: this processor has no bf16; use auto or float32")
    return name


def _hint() -> str:
    """What the processor computes fastest in, of floating-point numbers."""
    return "bf16" if _has_bf16() else "f32"


def _has_bf16() -> bool:
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _places(compiled: ov.CompiledModel, kind: str) -> list[int]:
    """Indices of the outputs whose names begin with `kind`."""
    return [
        i
        for i, output in enumerate(compiled.outputs)
        if any(name.startswith(kind) for name in output.get_names())
    ]


def _untouched(model: ov.Model) -> dict[int, int]:
    """Outputs that are inputs, as they are: output index -> input index."""
    found = {}
    for i, result in enumerate(model.get_results()):
        source = result.input_value(0).get_node()
        if source.get_type_name() == "Parameter":
            found[i] = model.get_parameter_index(source)
    return found


class _Block:
    """What one batch handed on: its state tensors, until the last of its rows has let go."""

    __slots__ = ("_free", "arrays", "rows", "tensors", "users")

    def __init__(self, tensors: list[ov.Tensor], rows: int, free: list[_Block]) -> None:
        self.tensors = tensors
        self.arrays: list[NDArray[Any]] = [tensor.data for tensor in tensors]
        self.rows = rows
        self.users = rows
        self._free = free

    def let_go(self) -> None:
        """One row needs it no longer."""
        self.users -= 1
        if not self.users:
            self.users = self.rows
            self._free.append(self)


class _Request:
    """An infer request with tensors of its own for inputs that have to be put together."""

    __slots__ = ("arrays", "infer", "inputs")

    def __init__(self, infer: ov.InferRequest, inputs: int) -> None:
        self.infer = infer
        self.inputs = [infer.get_input_tensor(i) for i in range(inputs)]
        self.arrays: list[NDArray[Any]] = [tensor.data for tensor in self.inputs]


class _CompiledStage:
    """A stage for one batch size.

    Args:
        compiled: The program.
        size: Rows.
        first: Whether it takes pictures.
        last: Whether it hands nothing on.
        untouched: Output -> input, where a stage hands on what it was given. OpenVINO (2026.4) does
            not write such an output into a tensor of ours, so it is copied.
    """

    def __init__(
        self,
        compiled: ov.CompiledModel,
        size: int,
        *,
        first: bool,
        last: bool,
        untouched: dict[int, int],
    ) -> None:
        self._compiled = compiled
        self._size = size
        self._first = first
        self._last = last
        self.answer_places = _places(compiled, ANSWER)
        places = [] if last else _places(compiled, STATE)
        self._written = [(i, place) for i, place in enumerate(places) if place not in untouched]
        self._copied = [(i, untouched[p]) for i, p in enumerate(places) if p in untouched]
        self._state_ports = [compiled.outputs[place] for place in places]
        self._free_requests: list[_Request] = []
        self._free_blocks: list[_Block] = []

    def start(self, states: Sequence[RowState]) -> _Running:
        """Run on `size` rows."""
        request = self._free_requests.pop() if self._free_requests else self._new_request()
        block = None if self._last else self._take_block()
        if self._first:
            self._put_pictures(request, states)
        else:
            self._put_rows(request, states)
        if block is not None:
            for i, place in self._written:
                request.infer.set_output_tensor(place, block.tensors[i])
        request.infer.start_async()
        return _Running(self, request, states, block)

    def finish(self, running: _Running) -> None:
        """Let the request be used again, and its rows' inputs too."""
        if running.block is not None:
            for i, place in self._copied:
                running.block.arrays[i][...] = running.request.infer.get_input_tensor(place).data
        self._free_requests.append(running.request)
        if not self._first:
            for block, _ in running.states:
                block.let_go()

    def _put_pictures(self, request: _Request, pictures: Sequence[NDArray[np.uint8]]) -> None:
        if self._size == 1 and pictures[0].flags.c_contiguous and pictures[0].flags.writeable:
            request.infer.set_input_tensor(0, ov.Tensor(pictures[0][None], shared_memory=True))
            return
        request.infer.set_input_tensor(0, request.inputs[0])
        for i, picture in enumerate(pictures):
            request.arrays[0][i] = picture

    def _put_rows(self, request: _Request, states: Sequence[tuple[_Block, int]]) -> None:
        first = states[0][0]
        if first.rows == self._size and all(
            block is first and row == i for i, (block, row) in enumerate(states)
        ):
            for place, tensor in enumerate(first.tensors):
                request.infer.set_input_tensor(place, tensor)
            return
        for place, tensor in enumerate(request.inputs):
            request.infer.set_input_tensor(place, tensor)
            array = request.arrays[place]
            for i, (block, row) in enumerate(states):
                array[i] = block.arrays[place][row]

    def _new_request(self) -> _Request:
        return _Request(self._compiled.create_infer_request(), len(self._compiled.inputs))

    def _take_block(self) -> _Block:
        if self._free_blocks:
            return self._free_blocks.pop()
        tensors = [
            ov.Tensor(port.get_element_type(), port.get_shape()) for port in self._state_ports
        ]
        return _Block(tensors, self._size, self._free_blocks)


class _Running:
    """A request that was started, with all that must stay as it is meanwhile."""

    __slots__ = ("block", "request", "stage", "states")

    def __init__(
        self,
        stage: _CompiledStage,
        request: _Request,
        states: Sequence[RowState],
        block: _Block | None,
    ) -> None:
        self.stage = stage
        self.request = request
        self.states = states
        self.block = block


class _OpenVinoPending:
    """Requests that are queued, running or done."""

    def __init__(self, parts: Sequence[_Running]) -> None:
        self._parts = parts

    @property
    def done(self) -> bool:
        return all(part.request.infer.wait_for(0) for part in self._parts)

    def result(self) -> StageResult:
        """Scores and small answers as lists; larger answers as tensors over OpenVINO's memory."""
        scores: list[float] = []
        states: list[tuple[_Block, int]] = []
        answers: list[list[Any]] = []
        for part in self._parts:
            infer = part.request.infer
            infer.wait()
            scores += infer.get_output_tensor(0).data.tolist()
            answers.append(
                [_for_host(infer.get_output_tensor(i).data) for i in part.stage.answer_places]
            )
            if part.block is not None:
                states += [(part.block, row) for row in range(part.block.rows)]
            part.stage.finish(part)
        return StageResult(scores, tuple(map(_join, zip(*answers, strict=True))), states)


def _for_host(answer: NDArray[Any]) -> Any:
    return answer.tolist() if answer.ndim <= 2 else torch.from_numpy(answer)


def _join(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    return torch.cat(list(parts))
