"""Stages whose convolutions compute in 8-bit integers: made once per pipeline, joined with the readout.

Only the network itself is quantised. Softmax, confidence and exit score stay in floating point: they are
small, and a threshold cannot be set between 256 values.

N: rows, K: exits, k: stage (from 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import openvino as ov
import torch
from torch import Tensor

from streamexit.backends.openvino_stages import (
    ANSWER,
    SCORES,
    STATE,
    NamedOutputs,
    convert,
    pictures_of,
    row_shape,
)
from streamexit.backends.scored_stage import read_and_score
from streamexit.models.network import MultiExitNetwork
from streamexit.scheduling.scorers import Scorer
from streamexit.tasks.readout import Task

LOGITS, BRANCH, FEATURE = "logits", "branch", "feature"
"""Names of a bare stage's outputs; `BRANCH` of networks with a confidence branch only."""


def convert_bare_stages(network: MultiExitNetwork) -> list[ov.Model]:
    """The K stages without readout and scorer: features to logits and the next features."""
    features: tuple[Tensor, ...] = pictures_of(network)
    converted = []
    for k in range(network.num_exits):
        stage = _BareStage(network, k)
        model, outputs = convert(stage, features)
        converted.append(model)
        features = (
            outputs[stage.names.index(f"{FEATURE}0") :] if f"{FEATURE}0" in stage.names else ()
        )
    return converted


def load_quantised_stages(files: Sequence[Path], task: Task, scorer: Scorer) -> list[ov.Model]:
    """Bare stages from files, each with readout and scorer behind it; see `load_stages`."""
    core = ov.Core()
    joined = []
    carried: tuple[Tensor, ...] = ()
    for k, file in enumerate(files):
        bare = core.read_model(file)
        model, carried = _with_readout(bare, task, scorer, k, carried)
        joined.append(model)
    return joined


class _BareStage(NamedOutputs):
    """A stage of the network with its features as arguments."""

    def __init__(self, network: MultiExitNetwork, k: int) -> None:
        super().__init__()
        self._network = network
        self._k = k

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Logits, the confidence branch if there is one, then the features."""
        output = self._network.run_stage(self._k, features)
        branch = () if output.confidence is None else (output.confidence,)
        self.names = [
            LOGITS,
            *(BRANCH for _ in branch),
            *(f"{FEATURE}{i}" for i in range(len(output.features))),
        ]
        return (output.logits, *branch, *output.features)


class _Readout(NamedOutputs):
    """What follows on a stage.

    The branch comes out again: an input that no output depended on would be lost in the conversion.
    """

    def __init__(self, task: Task, scorer: Scorer, k: int, *, branch: bool) -> None:
        super().__init__()
        self._task = task
        self._scorer = scorer
        self._k = k
        self._branch = branch

    def forward(self, logits: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """`others`: the branch if there is one, then past scores and carry, if there are any."""
        branch = others[0] if self._branch else None
        past, carry = others[-2:] if self._k else (None, None)
        output = read_and_score(self._task, self._scorer, self._k, logits, branch, past, carry)
        through = () if branch is None else (branch + 0,)
        self.names = [
            SCORES,
            *(f"{ANSWER}{i}" for i in range(len(output.answer))),
            *(f"{STATE}{i}" for i in range(2)),
            *(BRANCH for _ in through),
        ]
        return (output.scores, *output.answer, *output.state, *through)


def _with_readout(
    bare: ov.Model, task: Task, scorer: Scorer, k: int, carried: tuple[Tensor, ...]
) -> tuple[ov.Model, tuple[Tensor, ...]]:
    """Join a bare stage and its readout.

    Args:
        bare: Stage k.
        task: Reads the logits.
        scorer: Scores what was read.
        k: This stage.
        carried: Examples of past scores and carry; empty at stage 0.

    Returns:
        What `convert_stages` gives for the stage, and examples for the next one.
    """
    sources = {name: output for output in bare.outputs for name in output.get_names()}
    first = [name for name in (LOGITS, BRANCH) if name in sources]
    examples = [torch.zeros(2, *row_shape(sources[name])) for name in first]
    module = _Readout(task, scorer, k, branch=BRANCH in sources)
    readout, outputs = convert(module, [*examples, *carried])
    parameters = readout.get_parameters()
    for name, parameter in zip(first, parameters, strict=False):
        parameter.output(0).replace(sources[name].get_node().input_value(0))
    results = [
        result
        for result, name in zip(readout.get_results(), module.names, strict=True)
        if name != BRANCH
    ]
    features = [sources[f"{FEATURE}{i}"] for i in range(len(sources)) if f"{FEATURE}{i}" in sources]
    for i, feature in enumerate(features):
        feature.get_tensor().set_names({f"{STATE}{2 + i}"})
    whole = ov.Model(
        [*results, *(feature.get_node() for feature in features)],
        [*parameters[len(first) :], *bare.get_parameters()],
        f"stage{k}",
    )
    state = [i for i, name in enumerate(module.names) if name.startswith(STATE)]
    return whole, tuple(outputs[i] for i in state)
