"""Ours on a GPU beside the network alone: `python -m benchmarks.cuda CLIP`. Needs a CUDA device.

The network alone: captured graphs at their best batch size, pictures already there, nothing decided.
Then a node that decodes in software, and one that decodes on the GPU; never exiting, and at a half, with
and without regrouping. Correctness beside the CPU: `python -m benchmarks.precision`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.ours import Outcome, pipeline_of, run_node
from streamexit.backends.opening import BackendOptions, measure_profile
from streamexit.models.pipeline import load_pipeline
from streamexit.scheduling.policy import load_policy

NETWORKS = ("mobilenet_v3_large", "resnet50")
EXITS = [0.25, 0.5, 0.75]
STREAMS = 16


def alone(folder: Path, most: int) -> float:
    """Frames per second of all stages at their best batch sizes."""
    pipeline = load_pipeline(folder)
    scorer = load_policy(pipeline.policy_file(None), pipeline.costs.fractions).scorer
    options = BackendOptions(device="cuda:0", max_batch=most)
    profile = measure_profile(pipeline, scorer, options)
    stages = zip(*profile.milliseconds.values(), strict=True)
    return 1000 / float(sum(min(times) for times in stages))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--max-batch", type=int, default=128)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.cuda needs a CUDA device; there is none")
    print(torch.cuda.get_device_name(0))
    print("| network | what | frames per second | of the network alone | batch sizes | fill |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for network in NETWORKS:
            whole = pipeline_of(network, [], options.clip, Path(scratch) / network)
            cut = pipeline_of(network, EXITS, options.clip, Path(scratch) / f"{network}-exits")
            full = alone(whole, options.max_batch)
            print(f"| {network} | network alone | {full:.0f} | 100% | | |", flush=True)

            def show(
                label: str,
                folder: Path,
                fraction: float,
                decoder: str,
                *,
                network: str = network,
                full: float = full,
                regroup: bool = True,
            ) -> None:
                engine: dict[str, Any] = {"device": "cuda:0", "max_batch": options.max_batch}
                found: Outcome = run_node(
                    folder,
                    options.clip,
                    streams=STREAMS,
                    fraction=fraction,
                    seconds=options.seconds,
                    engine={**engine, "decoder": decoder},
                    regroup=regroup,
                )
                fill = " ".join(f"{share:.0%}" for share in found.fill)
                sizes = " ".join(map(str, found.sizes))
                print(
                    f"| {network} | {label} | {found.rate:.0f} | {found.rate / full:.0%} | {sizes} | "
                    f"{fill} |",
                    flush=True,
                )

            for decoder in ("software", "nvdec"):
                show(f"never exits, {decoder}", whole, 1.0, decoder)
                show(f"a half, {decoder}", cut, 0.5, decoder)
            show("a half, nvdec, without regrouping", cut, 0.5, "nvdec", regroup=False)


if __name__ == "__main__":
    main()
