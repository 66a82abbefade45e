"""What a network computes, as a digest: what was made from it is found again, and never when stale."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save
from torch import fx, nn

from streamexit.backends import scored_stage
from streamexit.models.network import MultiExitNetwork
from streamexit.scheduling.scorers import Scorer
from streamexit.tasks.readout import Task


def content_key(network: MultiExitNetwork, task: Task, scorer: Scorer, *made_by: str) -> str:
    """A digest of all that scored stages depend on: weights, structure, code, versions.

    Args:
        network: Its weights and modules, and the code of those that come from elsewhere.
        task: Its options and labels.
        scorer: Likewise, and its options.
        made_by: Versions and settings of whatever is to be found under the key.
    """
    digest = hashlib.sha256()
    # torchvision's by its metadata: importing it takes as long as PyTorch itself
    for known in (torch.__version__, version("torchvision"), *made_by):
        digest.update(f"{known}\n".encode())
    digest.update(repr((task.kind, vars(task), network.preprocessing)).encode())
    digest.update(repr((scorer.kind, scorer.config())).encode())
    for module in (network, scorer):
        digest.update(save({name: t.detach().contiguous() for name, t in _tensors(module)}))
        digest.update(repr(module).encode())
    for file in sorted(_sources(network) | _sources(scorer)):
        digest.update(file.read_bytes())
    for part in network.modules():
        if isinstance(part, fx.GraphModule):
            digest.update(part.code.encode())
    return digest.hexdigest()[:32]


def _tensors(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _sources(module: nn.Module) -> set[Path]:
    """Code that a stage comes from, whoever wrote it; libraries are known by their version."""
    package = Path(__file__).parents[1]
    files = {f for room in ("models", "scheduling", "tasks") for f in (package / room).glob("*.py")}
    files.add(Path(scored_stage.__file__))
    for kind in {type(part) for part in module.modules()}:
        if kind.__module__.split(".")[0] not in ("torch", "torchvision", "streamexit"):
            files.add(Path(inspect.getfile(kind)))
    return files
