"""Streams whose content drifts: CIFAR-10 test frames that grow noisy, blurred, dark or flat; clips.

What every exit says about every frame is worked out once for a network and its policies, and kept in
a folder.

N: frames, K: exits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from streamexit.calibration.collect import read_exits
from streamexit.metrics import DropReason
from streamexit.models.pipeline import WEIGHTS, load_pipeline, sha256
from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.policy import load_policy
from streamexit.scheduling.scorers import score_all_exits
from streamexit.scheduling.thresholds import ThresholdTable
from streamexit.sources.opening import open_source
from streamexit.sources.source import Source
from streamexit.training.datasets import load_part

POLICIES = ("direct", "eenet")
PERIOD = 2000
"""Frames."""

SHAPES: dict[str, Callable[[int, int], float]] = {
    "step": lambda i, n: float(i >= n // 2),
    "ramp": lambda i, n: i / n,
    "period": lambda i, n: 0.5 - 0.5 * float(np.cos(2 * np.pi * i / PERIOD)),
}
"""How bad frame i of n is, from 0 to 1."""

KINDS = ("noise", "blur", "darkness", "contrast")


@dataclass(frozen=True)
class Seen:
    """What every exit says about the frames of a stream.

    Attributes:
        scores: [N, K] by policy.
        quality: [N, K]: right or wrong; of clips, whether it agrees with the last exit.
        agreement: [N, K] with the last exit.
        last: [N], the last exit's answers.
        truth: [N], the right ones; of clips, the last exit's.
    """

    scores: dict[str, Floats]
    quality: Floats
    agreement: Floats
    last: NDArray[np.int64]
    truth: NDArray[np.int64]


def spoilt(
    image: NDArray[np.uint8], kind: str, level: float, chance: np.random.Generator
) -> NDArray[np.uint8]:
    """A picture made worse.

    At level 1: Gaussian noise of sigma 40, Gaussian blur of sigma 1.5, light or contrast down to 15%.
    """
    if level <= 0:
        return image
    x = image.astype(np.float32)
    if kind == "noise":
        x = x + chance.normal(0, 40 * level, x.shape).astype(np.float32)
    elif kind == "blur":
        x = np.asarray(cv2.GaussianBlur(x, (0, 0), 0.3 + 1.2 * level), np.float32)
    elif kind == "darkness":
        x = x * (1 - 0.85 * level)
    else:
        x = (x - x.mean()) * (1 - 0.85 * level) + x.mean()
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


class Traces:
    """Makes what is asked for, or reads it where it was made before.

    Args:
        pipeline: Folder of a classification pipeline for CIFAR-10.
        data: Folder with the data sets.
        folder: Where traces are kept.
    """

    def __init__(self, pipeline: Path, data: Path, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self.pipeline = load_pipeline(pipeline)
        costs = self.pipeline.costs.fractions
        self._policies = {
            name: load_policy(self.pipeline.policy_file(name), costs) for name in POLICIES
        }
        self._test = load_part("cifar10", data, "test", calibration_size=5000)
        files = (self.pipeline.folder / WEIGHTS, *map(self.pipeline.policy_file, POLICIES))
        self._made_of = " ".join(sha256(file) for file in files)

    def table(self, policy: str) -> ThresholdTable:
        """Of one of `POLICIES`."""
        return self._policies[policy].table

    def cifar(self, kind: str, shape: str) -> Seen:
        """The 10,000 test frames in their order, spoilt; kind "clean" leaves them."""
        n, chance = len(self._test.labels), np.random.default_rng(0)

        def frames() -> tuple[NDArray[np.uint8], list[int]]:
            levels = [0.0 if kind == "clean" else SHAPES[shape](i, n) for i in range(n)]
            images = [
                spoilt(image, kind, level, chance)
                for image, level in zip(self._test.images, levels, strict=True)
            ]
            return np.stack(images), self._test.labels.tolist()

        return self._kept(f"{kind}-{shape}", frames)

    def spoilt_evenly(self, kind: str, level: float) -> Seen:
        """The test frames, all as bad as each other."""
        chance = np.random.default_rng(1)

        def frames() -> tuple[NDArray[np.uint8], list[int]]:
            images = [spoilt(image, kind, level, chance) for image in self._test.images]
            return np.stack(images), self._test.labels.tolist()

        return self._kept(f"{kind}-{level:g}", frames)

    def clip(self, path: Path) -> Seen:
        """All frames of a recording; nobody knows the truth, so the last exit's answers stand in."""

        def frames() -> tuple[NDArray[np.uint8], None]:
            p = self.pipeline
            source: Source = open_source(
                str(path), preprocessing=p.network.preprocessing, labels=p.labels
            )
            return np.stack(
                [np.asarray(picture.image) for picture in source.pictures(_ignore)]
            ), None

        return self._kept(f"clip-{path.stem}", frames)

    def _kept(
        self, name: str, frames: Callable[[], tuple[NDArray[np.uint8], Sequence[int] | None]]
    ) -> Seen:
        path = self._folder / f"{self.pipeline.name}-{name}.npz"
        if not self._is_ours(path):
            images, labels = frames()
            found = self._run(images, labels)
            with path.open("wb") as file:
                np.savez(file, allow_pickle=False, made_of=np.array(self._made_of), **found)
        with np.load(path) as kept:
            return Seen(
                {policy: kept[f"scores_{policy}"] for policy in POLICIES},
                kept["quality"],
                kept["agreement"],
                kept["last"].astype(np.int64),
                kept["truth"].astype(np.int64),
            )

    def _is_ours(self, path: Path) -> bool:
        """Whether it was made with these weights and policies."""
        if not path.exists():
            return False
        with np.load(path) as kept:
            return "made_of" in kept and str(kept["made_of"]) == self._made_of

    def _run(
        self, images: NDArray[np.uint8], labels: Sequence[int] | None
    ) -> dict[str, NDArray[np.float64]]:
        found: dict[str, list[NDArray[np.float64]]] = {}
        task = self.pipeline.build_task()
        for begin in range(0, len(images), 500):
            part = slice(begin, begin + 500)
            targets = None if labels is None else labels[part]
            evidence = read_exits(
                self.pipeline.network, task, torch.from_numpy(images[part]), targets
            ).evidence
            answers = evidence.distribution.argmax(2)
            columns = {
                "quality": evidence.quality,
                "agreement": (answers == answers[:, -1:]).float(),
                "last": answers[:, -1],
                "truth": answers[:, -1] if targets is None else torch.tensor(targets),
                **{
                    f"scores_{name}": score_all_exits(policy.scorer, evidence)
                    for name, policy in self._policies.items()
                },
            }
            for name, values in columns.items():
                found.setdefault(name, []).append(values.double().numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}


def _ignore(reason: DropReason, count: int = 1) -> None:
    """Frames that a codec could not decode are not part of the trace."""
