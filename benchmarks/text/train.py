"""Joint training of all exits, with a checkpoint after every epoch.

A training that was interrupted goes on where its last epoch ended and arrives at the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.text.data import Encoded
from benchmarks.text.network import MultiExitText
from streamexit.errors import DataError
from streamexit.training.losses import multi_exit_loss


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Passes over the training part.
        batch_size: Texts at a time.
        learning_rate: At its highest.
        warm_up: Share of all steps in which the rate rises; then it falls as a cosine to nothing.
        weight_decay: On matrices only.
        distillation: See `multi_exit_loss`.
        temperature: See `multi_exit_loss`.
        seed: Of shuffling and dropout.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    warm_up: float = 0.1
    weight_decay: float = 0.01
    distillation: float = 0.3
    temperature: float = 2.0
    seed: int = 0


def train(
    network: MultiExitText,
    data: Encoded,
    recipe: Recipe,
    checkpoint: Path,
    *,
    say: Callable[[str], None] = print,
) -> None:
    """Train `network` in place, or as far as `checkpoint` has not yet; leaves it in eval mode.

    Args:
        network: On the device to train on.
        data: What to learn.
        recipe: How.
        checkpoint: Written after every epoch.
        say: Told a line per epoch.

    Raises:
        DataError: The checkpoint is of another network, recipe or data.
    """
    device = next(network.parameters()).device
    optimiser = _optimiser(network, recipe)
    steps = recipe.epochs * math.ceil(len(data) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps, recipe))
    identity = _identity(network, data, recipe)
    done = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["identity"] != identity:
            raise DataError(
                f"{checkpoint}: is of another network, recipe or data; move it away to train anew"
            )
        done = state["epoch"]
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        say(f"{checkpoint}: {done} of {recipe.epochs} epochs were done")
    for epoch in range(done, recipe.epochs):
        began = time.monotonic()
        loss = _one_epoch(network, data, recipe, optimiser, schedule, epoch)
        state = {
            "identity": identity,
            "epoch": epoch + 1,
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
        }
        _save(state, checkpoint)
        seconds = time.monotonic() - began
        say(f"epoch {epoch + 1}/{recipe.epochs}: loss {loss:.4f}, {seconds:.0f} s")
    network.eval()


def _one_epoch(
    network: MultiExitText,
    data: Encoded,
    recipe: Recipe,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    epoch: int,
) -> float:
    """One pass; returns the mean loss. The seed is set anew, so that epochs can be resumed."""
    device = next(network.parameters()).device
    torch.manual_seed(recipe.seed + epoch)
    generator = torch.Generator().manual_seed(recipe.seed + epoch)
    network.train()
    total = 0.0
    for rows in data.shuffled(recipe.batch_size, generator):
        tokens, mask, labels = (part.to(device) for part in data.batch(rows))
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(tokens, mask)
        loss = multi_exit_loss(
            logits, labels, distillation=recipe.distillation, temperature=recipe.temperature
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        total += loss.item() * len(rows)
    return total / len(data)


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that leaves biases and norms alone."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _rate(step: int, steps: int, recipe: Recipe) -> float:
    """Share of the highest learning rate."""
    rising = max(1, round(recipe.warm_up * steps))
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


def _identity(network: nn.Module, data: Encoded, recipe: Recipe) -> str:
    """A digest of all that makes a training what it is."""
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    content = [asdict(recipe), shapes, data.tokens, data.labels.tolist()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)
