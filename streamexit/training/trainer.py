"""The training loop: joint multi-exit loss, mixed precision, averaged weights, resumable.

With the same recipe, data, device and thread count, two runs give the same weights: all randomness,
that of dropout too, is seeded by (seed, epoch), so that a resumed run goes on as if never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from streamexit.errors import ConfigurationError
from streamexit.models.cost import gflops_per_exit
from streamexit.models.network import MultiExitNetwork, StageOutput
from streamexit.tasks.readout import Task
from streamexit.training.augment import build_augmentation
from streamexit.training.labelled import LabelledImages
from streamexit.training.losses import class_weights, cost_aware_loss, multi_exit_loss
from streamexit.training.recipe import CostAwareLoss, JointLoss, Recipe

STATISTICS_ROWS = 64
"""Pictures at a time whose mean and variance are taken, in batches as equal as can be."""

FEW_STEPS = 1000
"""In fewer, running means of batch normalisation have not arrived; slow ones (momentum 0.01) least of all."""


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch did.

    Attributes:
        epoch: From 1.
        epochs: In all.
        loss: Mean joint loss over the epoch.
        exit_accuracy: Per exit, share of rows (frames or pixels) that are right, on the augmented
            training pictures.
        seconds: That the epoch took.
        seconds_left: Estimate for the epochs to come, from those of this process.
    """

    epoch: int
    epochs: int
    loss: float
    exit_accuracy: tuple[float, ...]
    seconds: float
    seconds_left: float


class Trainer:
    """One training run.

    Args:
        network: Trained in place; holds the averaged weights at the end.
        task: Says what counts as a row of the loss: a frame or a pixel.
        data: The training part.
        recipe: See `Recipe`.
        device: Where to train.
        checkpoint: File that is written after each epoch and resumed from when it exists.
        on_epoch: Called after each epoch.

    Raises:
        ConfigurationError: From `run`: the checkpoint is of another recipe or other pictures, or the
            loss is no number any more.
    """

    def __init__(
        self,
        network: MultiExitNetwork,
        task: Task,
        data: LabelledImages,
        recipe: Recipe,
        *,
        device: torch.device,
        checkpoint: Path,
        on_epoch: Callable[[EpochReport], None],
    ) -> None:
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._images = torch.from_numpy(data.images).to(device)
        self._labels = torch.from_numpy(data.labels).to(device)
        self._trained_on = data.digest()
        self._task = task
        self._recipe = recipe
        self._augment = build_augmentation(recipe.augmentation)
        self._class_weights = (
            class_weights(data.labels, len(data.classes)).to(device)
            if isinstance(recipe.loss, JointLoss) and recipe.loss.class_weights == "rare"
            else None
        )
        self._device = device
        self._checkpoint = checkpoint
        self._on_epoch = on_epoch
        costs = gflops_per_exit(self._network)
        self._fractions = [cost / costs[-1] for cost in costs]
        per_epoch = math.ceil(len(self._labels) / recipe.optimiser.batch_size)
        self._steps = recipe.optimiser.epochs * per_epoch
        self._average = AveragedModel(
            self._network,
            multi_avg_fn=get_ema_multi_avg_fn(  # type: ignore[no-untyped-call]
                recipe.optimiser.decay(self._steps)
            ),
            use_buffers=True,
        )
        self._optimiser = self._build_optimiser()

    def run(self) -> None:
        """Train from the checkpoint, or from the start, to the last epoch."""
        epochs = self._recipe.optimiser.epochs
        first = self._resume()
        started = time.monotonic()
        for epoch in range(first, epochs):
            begun = time.monotonic()
            loss, accuracy = self._run_epoch(epoch)
            if not math.isfinite(loss):
                raise ConfigurationError(
                    f"optimiser.peak_learning_rate: {self._recipe.optimiser.peak_learning_rate:g}: the "
                    f"loss of epoch {epoch + 1} is {loss}; write a smaller one, delete "
                    f"{self._checkpoint} and train again"
                )
            self._save(epoch + 1)
            now = time.monotonic()
            mean = (now - started) / (epoch + 1 - first)
            left = mean * (epochs - epoch - 1)
            self._on_epoch(EpochReport(epoch + 1, epochs, loss, accuracy, now - begun, left))
        self._network.load_state_dict(self._average.module.state_dict())
        if self._steps < FEW_STEPS:
            self._settle_statistics()
        self._network.eval()

    def _settle_statistics(self) -> None:
        """Measure what batch normalisation keeps of the pictures: in few steps its running mean gets nowhere."""
        layers = [
            m for m in self._network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
        ]
        momenta = [layer.momentum for layer in layers]
        self._network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.train()
        order = torch.randperm(len(self._labels), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for rows in torch.tensor_split(order, math.ceil(len(order) / STATISTICS_ROWS)):
                self._network(self._images[rows.to(self._device)])
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def _run_epoch(self, epoch: int) -> tuple[float, tuple[float, ...]]:
        recipe = self._recipe
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        torch.manual_seed(recipe.seed * 100_003 + epoch)  # of dropout and the like, in the network
        order = torch.randperm(len(self._labels), generator=generator).to(self._device)
        batches = torch.split(order, recipe.optimiser.batch_size)
        total_loss = torch.zeros((), device=self._device)
        correct = torch.zeros(self._network.num_exits, device=self._device)
        counted = 0
        self._network.train()
        for step, rows in enumerate(batches):
            self._set_learning_rate(epoch + step / len(batches))
            images, labels = self._augment(self._images[rows], self._labels[rows], generator)
            loss, logits, truth = self._train_batch(images, labels, epoch)
            total_loss += loss * len(rows)
            correct += torch.stack([(z.argmax(1) == truth).sum() for z in logits])
            counted += len(truth)
        return float(total_loss / len(self._labels)), tuple((correct / max(counted, 1)).tolist())

    def _train_batch(
        self, images: Tensor, labels: Tensor, epoch: int
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        with self._mixed_precision():
            outputs = self._network(images)
        logits, truth = self._task.training_rows([output.logits for output in outputs], labels)
        loss = self._loss(outputs, logits, truth, epoch)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._average.update_parameters(self._network)
        return loss.detach(), [z.detach() for z in logits], truth

    def _loss(
        self, outputs: list[StageOutput], logits: list[Tensor], truth: Tensor, epoch: int
    ) -> Tensor:
        recipe = self._recipe
        if isinstance(recipe.loss, CostAwareLoss):
            confidence = [o.confidence for o in outputs if o.confidence is not None]
            if len(confidence) < len(outputs):
                raise ConfigurationError(
                    "loss.kind: cost_aware needs a network with confidence branches, as "
                    "cifar_resnet has with heads: confidence"
                )
            version = "v0" if epoch < recipe.loss.v0_epochs else recipe.loss.version
            return cost_aware_loss(
                logits,
                confidence,
                truth,
                self._fractions,
                version=version,
                cost_weight=recipe.loss.cost_weight,
            )
        teaching = epoch >= recipe.distillation.starts_at * recipe.optimiser.epochs
        return multi_exit_loss(
            logits,
            truth,
            distillation=recipe.distillation.weight if teaching else 0.0,
            temperature=recipe.distillation.temperature,
            rising=recipe.loss.exit_weights == "rising",
            class_weights=self._class_weights,
        )

    def _mixed_precision(self) -> AbstractContextManager[None]:
        enabled = self._recipe.precision == "bfloat16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    def _set_learning_rate(self, epoch: float) -> None:
        o = self._recipe.optimiser
        if epoch < o.warmup:
            share = epoch / o.warmup
        else:
            progress = (epoch - o.warmup) / max(o.epochs - o.warmup, 1e-9)
            share = (1 + math.cos(math.pi * progress)) / 2
        for group in self._optimiser.param_groups:
            group["lr"] = o.peak_learning_rate * share

    def _build_optimiser(self) -> torch.optim.Optimizer:
        o = self._recipe.optimiser
        if o.kind == "adamw":
            return torch.optim.AdamW(self._parameter_groups(), lr=o.peak_learning_rate)
        return torch.optim.SGD(
            self._parameter_groups(),
            lr=o.peak_learning_rate,
            momentum=o.momentum,
            nesterov=o.momentum > 0,
        )

    def _parameter_groups(self) -> list[dict[str, object]]:
        """Weight decay for matrices and kernels only, not for norms and biases."""
        parameters = list(self._network.parameters())
        decay = self._recipe.optimiser.weight_decay
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def _save(self, epochs_done: int) -> None:
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._checkpoint.with_suffix(".partial")
        state = {
            "recipe": self._recipe.model_dump_json(exclude_unset=True),
            "trained_on": self._trained_on,
            "epochs_done": epochs_done,
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }
        torch.save(state, unfinished)
        unfinished.replace(self._checkpoint)

    def _resume(self) -> int:
        """Load the checkpoint, if there is one; return the epochs done."""
        if not self._checkpoint.is_file():
            return 0
        state = torch.load(self._checkpoint, map_location=self._device, weights_only=True)
        if Recipe.model_validate_json(state["recipe"]) != self._recipe:
            raise ConfigurationError(
                f"{self._checkpoint}: belongs to another recipe, or to another number of epochs; restore those to go on, or "
                "delete the checkpoint to start anew"
            )
        if state.get("trained_on") != self._trained_on:
            raise ConfigurationError(
                f"{self._checkpoint}: was trained on other pictures than there are now (files added, removed "
                "or renamed); restore those to go on, or delete the checkpoint to start anew"
            )
        self._network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        return int(state["epochs_done"])
