"""Doubles for tests, ours and those of whoever builds on streamexit: small, real, deterministic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from streamexit.calibration.collect import read_exits
from streamexit.errors import SourceError
from streamexit.models.cost import gflops_per_exit
from streamexit.models.network import MultiExitNetwork, Stage
from streamexit.models.pipeline import load_pipeline, register_policies, save_pipeline
from streamexit.preprocessing import Preprocessing
from streamexit.scheduling.policy import fit_policy, save_policy
from streamexit.sources.source import DropReport, Picture, Watch
from streamexit.tasks.segmentation import SegmentationTask

TOY_LABELS = ("ant", "bee", "cat", "dog")
TOY_PREPROCESSING = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class ManualClock:
    """A clock that goes when told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class ListSource:
    """A source that yields given pictures.

    Args:
        pictures: In order.
        live: As in `Source`.
        error: Raised after the last picture.
    """

    def __init__(
        self, pictures: Sequence[Picture], *, live: bool = False, error: SourceError | None = None
    ) -> None:
        self.live = live
        self._pictures = pictures
        self._error = error

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`."""
        yield from self._pictures
        if self._error:
            raise self._error


TOY_POLICIES = ("direct", "msdnet", "eenet")


def toy_pictures(count: int, *, seed: int = 0, rate: float = 25.0) -> list[Picture]:
    """Random pictures of the toy network's size, labelled at random."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels = random.integers(0, len(TOY_LABELS), count)
    return [Picture(images[i], i / rate, int(labels[i])) for i in range(count)]


def toy_network(
    *, num_exits: int = 3, num_classes: int = 4, preprocessing: Preprocessing = TOY_PREPROCESSING
) -> MultiExitNetwork:
    """A network of a few thousand weights; also a factory that `pipeline.yaml` can name."""
    stages = []
    for k in range(num_exits):
        trunk = nn.Sequential(nn.Conv2d(8 if k else 3, 8, 3, padding=1), nn.ReLU())
        head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes))
        stages.append(Stage(trunk, head, last=k == num_exits - 1))
    return MultiExitNetwork(stages, preprocessing)


def toy_segmenter(
    *, num_exits: int = 3, num_classes: int = 4, preprocessing: Preprocessing = TOY_PREPROCESSING
) -> MultiExitNetwork:
    """The same with maps: logits at half of the input's size."""
    stages = []
    for k in range(num_exits):
        trunk = nn.Sequential(nn.Conv2d(8 if k else 3, 8, 3, 1 if k else 2, 1), nn.ReLU())
        stages.append(Stage(trunk, nn.Conv2d(8, num_classes, 1), last=k == num_exits - 1))
    return MultiExitNetwork(stages, preprocessing)


def write_toy_pipeline(
    folder: Path, *, num_exits: int = 3, seed: int = 0, kind: str = "classification"
) -> Path:
    """A complete pipeline folder with policies, in seconds.

    Args:
        folder: Where to.
        num_exits: K.
        seed: Of the weights.
        kind: "classification" or "segmentation". The truth of a random picture's pixels is then
            what the last exit says.
    """
    torch.manual_seed(seed)
    maps = kind == SegmentationTask.kind
    factory = toy_segmenter if maps else toy_network
    network = factory(num_exits=num_exits).eval()
    for parameter in network.parameters():
        parameter.data *= 3  # scores that differ from frame to frame
    save_pipeline(
        folder,
        name="toy",
        task={"kind": kind} if maps else {"kind": kind, "top_k": 2},
        network_spec={
            "architecture": f"streamexit.testing:{factory.__name__}",
            "num_exits": num_exits,
        },
        network=network,
        labels=TOY_LABELS,
        calibration=None,
    )
    pictures = toy_pictures(400, seed=seed)
    readings = read_exits(
        network,
        load_pipeline(folder).build_task(),
        torch.from_numpy(np.stack([p.image for p in pictures])),
        None if maps else [p.label for p in pictures],
    )
    costs = gflops_per_exit(network)
    fractions = tuple(round(c, 9) / round(costs[-1], 9) for c in costs)
    files = {name: folder / "policies" / f"{name}.safetensors" for name in TOY_POLICIES}
    for name, file in files.items():
        save_policy(fit_policy(name, readings.evidence, fractions), file)
    register_policies(folder, files, default="direct")
    return folder
