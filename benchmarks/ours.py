"""A node of ours under measurement: a configuration, a clip, and where each thread's time went."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.loops import MEAN, SIDE, STD, WARM_UP_SHARE, frames
from streamexit import roster
from streamexit.calibration.collect import read_exits
from streamexit.config.schema import NodeConfiguration
from streamexit.documents import Document
from streamexit.models.architectures import build_network
from streamexit.models.pipeline import load_pipeline, register_policies, save_pipeline
from streamexit.preprocessing import Preprocessing
from streamexit.runtime import Node
from streamexit.scheduling.policy import fit_policy, save_policy

CALIBRATION_FRAMES = 128


@dataclass(frozen=True)
class Outcome:
    """What a run of a node came to.

    Attributes:
        rate: Answers per second of all streams.
        mean_fraction: What they cost, as a share of the full network.
        core_ms: Milliseconds of one core per answer, by who spent them.
        fill: Mean rows of a batch as a share of a full one, per stage.
        sizes: Rows of a full batch, per stage.
    """

    rate: float
    mean_fraction: float
    core_ms: dict[str, float]
    fill: list[float]
    sizes: list[int]


def pipeline_of(network: str, exits: list[float], clip: Path, folder: Path) -> Path:
    """A pipeline with random weights, its policy fitted on frames of the clip; made once."""
    if (folder / "pipeline.yaml").exists():
        return folder
    torch.manual_seed(0)
    spec = {"torchvision": network, "exits": exits}
    built = build_network(spec, Preprocessing(SIDE, SIDE, MEAN, STD)).eval()
    save_pipeline(
        folder,
        name=folder.name,
        task={"kind": "classification"},
        network_spec=spec,
        network=built,
        labels=tuple(f"class{i}" for i in range(1000)),
        calibration=None,
    )
    pipeline = load_pipeline(folder)
    source = frames(clip)
    pictures = np.stack([next(source) for _ in range(CALIBRATION_FRAMES)])
    labels = np.random.default_rng(0).integers(0, 1000, len(pictures)).tolist()
    readings = read_exits(
        pipeline.network, pipeline.build_task(), torch.from_numpy(pictures), labels
    )
    policy = fit_policy("msdnet", readings.evidence, pipeline.costs.fractions)
    save_policy(policy, folder / "policies" / "msdnet.safetensors")
    register_policies(
        folder, {"msdnet": folder / "policies" / "msdnet.safetensors"}, default="msdnet"
    )
    return folder


def run_node(
    folder: Path,
    clip: Path,
    *,
    streams: int,
    fraction: float,
    seconds: float,
    engine: dict[str, object],
    regroup: bool = True,
) -> Outcome:
    """Streams of one clip, as fast as they can be read, for some seconds.

    Without `regroup` nobody waits for company: those that stay after an exit go on with whoever else
    stayed of their batch.
    """
    if not regroup:
        roster.PATIENT_SECONDS = 0.0
    configuration = NodeConfiguration.model_validate(
        {
            "engine": engine,
            "pipelines": {"p": str(folder)},
            "streams": [
                {
                    "id": f"s{i}",
                    "source": str(clip),
                    "pipeline": "p",
                    "budget": {"fraction": fraction},
                    "pace": "fast",
                    "loop": True,
                }
                for i in range(streams)
            ],
        }
    )
    node = Node(Document(Path("benchmark"), configuration, {}), on_problem=print)
    return asyncio.run(_measured(node, seconds))


async def _measured(node: Node, seconds: float) -> Outcome:
    run = asyncio.create_task(node.run())
    await asyncio.sleep(WARM_UP_SHARE * seconds)
    before, began = _snapshot(node), time.perf_counter()
    await asyncio.sleep((1 - WARM_UP_SHARE) * seconds)
    after, ended = _snapshot(node), time.perf_counter()
    node.stop()
    await run
    answers = after["answers"] - before["answers"]
    lanes = list(node.lanes.values())
    return Outcome(
        rate=answers / (ended - began),
        mean_fraction=float(
            np.mean([s.mean_fraction for s in node.streams.values() if s.mean_fraction])
        ),
        core_ms={
            name: (after[name] - before.get(name, 0.0)) / answers / 1e6
            for name in ("decode", "engine", "loop", "network")
        },
        fill=[
            load.rows / load.batches / size if load.batches else 0.0
            for lane in lanes
            for load, size in zip(lane.loads, lane.backend.sizes, strict=True)
        ],
        sizes=[size for lane in lanes for size in lane.backend.sizes],
    )


def _kind(thread: str) -> str:
    """Whose work a Python thread does; threads that Python does not know are the network's."""
    return {"MainThread": "loop", "engine": "engine"}.get(thread, "decode")


def _snapshot(node: Node) -> dict[str, float]:
    """Answers so far, and nanoseconds that threads of each kind have run."""
    names = {thread.native_id: _kind(thread.name) for thread in threading.enumerate()}
    spent = {"decode": 0.0, "engine": 0.0, "loop": 0.0, "network": 0.0}
    for thread in os.listdir("/proc/self/task"):
        ran = int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0])
        spent[names.get(int(thread), "network")] += ran
    return {**spent, "answers": float(sum(s.counters.answered for s in node.streams.values()))}
