"""Stages as OpenVINO models: converted once, kept on disk by content.

N: rows, k: stage (from 0).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from streamexit.backends.content import content_key
from streamexit.backends.scored_stage import ScoredStage
from streamexit.cache import filling
from streamexit.models.network import MultiExitNetwork
from streamexit.scheduling.scorers import Scorer
from streamexit.tasks.readout import Task

SCORES, ANSWER, STATE = "scores", "answer", "state"
"""Names of a model's outputs: one `scores` [N], then "answer0" ..., "state0" ..., all [N, ...]."""

FORM = "3"
"""Of the conversion below; to be raised with each change of it."""


def load_stages(
    network: MultiExitNetwork,
    task: Task,
    scorer: Scorer,
    *,
    cache: Path,
    say: Callable[[str], None] = lambda sentence: None,
) -> list[ov.Model]:
    """The K stages with readout and scorer, each with a free number of rows.

    Args:
        network: In eval mode, float32, on the CPU.
        task: Reads the logits.
        scorer: On the CPU.
        cache: Folder of converted stages; one that is missing is made. They are found by the content
            of weights and code, so nothing stale is ever used.
        say: Called with a sentence before something that takes seconds.

    Returns:
        Stage 0 takes uint8 [N, H, W, 3]; stage k takes what stage k-1 gives as `STATE`, in order.
    """
    folder = cache / "openvino" / content_key(network, task, scorer, ov.__version__, FORM)
    files = [folder / f"stage{k}.xml" for k in range(network.num_exits)]
    core = ov.Core()
    if not all(file.is_file() for file in files):
        say("converting the network for OpenVINO, once")
        converted = convert_stages(network, task, scorer)
        with contextlib.suppress(OSError), filling(folder) as unfinished:
            for model, file in zip(converted, files, strict=True):
                ov.save_model(model, unfinished / file.name, compress_to_fp16=False)
        if not all(file.is_file() for file in files):  # the folder cannot be written
            return converted
    return [core.read_model(file) for file in files]


def convert_stages(network: MultiExitNetwork, task: Task, scorer: Scorer) -> list[ov.Model]:
    """See `load_stages`, without the cache."""
    state = pictures_of(network)
    converted = []
    for k in range(network.num_exits):
        stage = _FlatStage(ScoredStage(network, task, scorer, k))
        model, outputs = convert(stage, state)
        converted.append(model)
        state = tuple(
            t for t, name in zip(outputs, stage.names, strict=True) if name.startswith(STATE)
        )
    return converted


def convert(module: NamedOutputs, inputs: Sequence[Tensor]) -> tuple[ov.Model, tuple[Tensor, ...]]:
    """Trace a module on some inputs, and convert it.

    Args:
        module: In any mode; it is traced in eval mode.
        inputs: Tensors [N, ...].

    Returns:
        The model with a free number of rows, and what the module gave.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: that sizes become constants is meant
        decoder = TorchScriptPythonDecoder(module.eval(), example_input=tuple(inputs))
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        outputs: tuple[Tensor, ...] = module(*inputs)
    model.reshape({i: [-1, *tensor.shape[1:]] for i, tensor in enumerate(inputs)})
    for output, name in zip(model.outputs, module.names, strict=True):
        output.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    return model, outputs


class NamedOutputs(nn.Module):
    """Takes tensors, gives tensors, and says what they are.

    Attributes:
        names: Of the outputs, once it has run.
    """

    names: list[str]


def pictures_of(network: MultiExitNetwork) -> tuple[Tensor, ...]:
    """Two pictures of nothing, as the first stage takes them."""
    p = network.preprocessing
    return (torch.zeros(2, p.height, p.width, 3, dtype=torch.uint8),)


def row_shape(port: ov.Output) -> list[int]:
    """What one row of a model's input or output measures."""
    return [dimension.get_length() for dimension in list(port.get_partial_shape())[1:]]


class _FlatStage(NamedOutputs):
    """A scored stage with its state as arguments and its outputs in a row."""

    def __init__(self, stage: ScoredStage) -> None:
        super().__init__()
        self._stage = stage

    def forward(self, *state: Tensor) -> tuple[Tensor, ...]:
        """`scores`, then the answer, then the state.

        The last stage gives a state, too, which nobody wants: an input that no output depended on
        would be lost in the conversion.
        """
        output = self._stage(tuple(state))
        self.names = [
            SCORES,
            *(f"{ANSWER}{i}" for i in range(len(output.answer))),
            *(f"{STATE}{i}" for i in range(len(output.state))),
        ]
        return (output.scores, *output.answer, *output.state)
