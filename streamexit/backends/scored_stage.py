"""A stage as it is deployed: network, readout and scorer in one module, so little comes back.

N: rows, k: this stage (from 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, cat, nn

from streamexit.models.network import MultiExitNetwork
from streamexit.scheduling.evidence import Evidence
from streamexit.scheduling.scorers import Scorer
from streamexit.tasks.readout import Task


class ScoredOutput(NamedTuple):
    """Tensors that leave a stage.

    Attributes:
        scores: [N] exit scores.
        answer: Task's answer tensors [N, ...].
        state: What the rows that stay carry on: (past scores, task carry, *features).
    """

    scores: Tensor
    answer: tuple[Tensor, ...]
    state: tuple[Tensor, ...]


def joined(answers: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """The answer tensors of a batch that was run in parts."""
    return answers[0] if len(answers) == 1 else [cat(parts) for parts in zip(*answers, strict=True)]


class ScoredStage(nn.Module):
    """Stage k of a network, then the task's readout, then the scorer."""

    def __init__(self, network: MultiExitNetwork, task: Task, scorer: Scorer, k: int) -> None:
        super().__init__()
        self._network = network
        self._task = task
        self._scorer = scorer
        self._k = k

    def forward(self, state: tuple[Tensor, ...]) -> ScoredOutput:
        """Run on a batch; `state` is (images,) at stage 0, else the stage before's `state`."""
        k = self._k
        past, carry, features = (None, None, state) if k == 0 else (state[0], state[1], state[2:])
        output = self._network.run_stage(k, features)
        branch = None if output.confidence is None else output.confidence.float()
        read = read_and_score(self._task, self._scorer, k, output.logits, branch, past, carry)
        return read._replace(state=(*read.state, *output.features))


def read_and_score(
    task: Task,
    scorer: Scorer,
    k: int,
    logits: Tensor,
    branch: Tensor | None,
    past: Tensor | None,
    carry: Tensor | None,
) -> ScoredOutput:
    """What follows on stage k of the network itself; the state is without features.

    Args:
        task: Reads the logits.
        scorer: Scores what was read.
        k: This stage.
        logits: [N, C, ...].
        branch: [N], of networks with a confidence branch.
        past: [N, k], scores so far; None at stage 0.
        carry: The task's, from the stage before; None at stage 0.
    """
    readout = task.read(logits, carry)
    if past is None:
        past = readout.distribution.new_zeros((readout.distribution.shape[0], 0))
    evidence = Evidence(readout.distribution, readout.confidence, past, branch)
    scores = scorer.score(k, evidence)
    return ScoredOutput(
        scores, readout.answer, (cat([past, scores[:, None]], dim=1), readout.carry)
    )
