"""Frames per second, ours beside the loops written by hand: `python -m benchmarks.throughput CLIP`.

Every row runs in a process of its own; rows take turns, so that what else the machine does hits all
of them. Prints a table or, with --json, one document. --roboflow PYTHON adds rows of Roboflow's
InferencePipeline, run by the interpreter of another environment (`benchmarks.roboflow_loop`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

NETWORKS = {"MobileNetV3-Large": "mobilenet_v3_large", "ResNet-50": "resnet50"}
EXITS = [0.25, 0.5, 0.75]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: What runs.
        network: torchvision's name.
        streams: How many copies of the clip.
        fraction: The budget; None for loops of others.
        exits: Early ones.
        engine: Settings of ours.
        python: Interpreter of the environment of others.
    """

    label: str
    network: str
    streams: int = 1
    fraction: float | None = None
    exits: tuple[float, ...] = ()
    engine: tuple[tuple[str, Any], ...] = ()
    python: str = ""


def rows(roboflow: str) -> Iterator[Row]:
    """All of them, in the order of the table."""
    from benchmarks.loops import LOOPS

    for network in NETWORKS.values():
        for streams in (1, 4) if roboflow else ():
            label = "Roboflow InferencePipeline + OpenVINO"
            yield Row(label, network, streams, python=roboflow)
        for label in LOOPS:
            yield Row(label, network)
        for streams in (4, 16):
            yield Row("decode and resize only", network, streams)
            yield Row("PyAV + OpenVINO, async queue", network, streams)
        for streams in (1, 4, 16):
            yield Row("streamexit, never exits", network, streams, 1.0)
    exits = tuple(EXITS)
    for streams in (1, 4, 16):
        for fraction in (1 / 2, 1 / 3):
            yield Row("streamexit", "resnet50", streams, fraction, exits)
    eight = (("batch", 8),)
    yield Row("streamexit, batches of 8", "resnet50", 16, 0.5, exits, eight)
    yield Row("streamexit, batches of 8, no regrouping", "resnet50", 16, 0.5, exits, eight)


def run_row(row: Row, clip: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Run in this process."""
    from benchmarks.loops import LOOPS
    from benchmarks.ours import pipeline_of, run_node

    if row.python:
        return _run_elsewhere(row, clip, folder, seconds)
    if row.fraction is None:
        loop: Callable[[Path, str, int, float], float] = LOOPS[row.label]
        torch.set_num_threads(os.cpu_count() or 1)
        began, spent = time.perf_counter(), time.process_time()
        outcome: dict[str, Any] = {"rate": loop(clip, row.network, row.streams, seconds)}
    else:
        name = f"{row.network}-{len(row.exits)}"
        pipeline = pipeline_of(row.network, list(row.exits), clip, folder / name)
        began, spent = time.perf_counter(), time.process_time()
        outcome = asdict(
            run_node(
                pipeline,
                clip,
                streams=row.streams,
                fraction=row.fraction,
                seconds=seconds,
                engine=dict(row.engine),
                regroup="no regrouping" not in row.label,
            )
        )
    wall, busy = time.perf_counter() - began, time.process_time() - spent
    outcome["cpu_share"] = busy / wall / (os.cpu_count() or 1)
    outcome["rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return outcome


def _run_elsewhere(row: Row, clip: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """By another interpreter, whose import is not part of the time; its CPU share is not known."""
    from benchmarks.loops import WARM_UP_SHARE, long_clip, save_network

    model, script = folder / f"{row.network}.xml", Path(__file__).with_name("roboflow_loop.py")
    save_network(row.network, model)
    command = [row.python, str(script), str(long_clip(clip, folder)), str(model), str(row.streams)]
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    times = [(1 - WARM_UP_SHARE) * seconds, WARM_UP_SHARE * seconds]
    done = subprocess.run(
        [*command, *map(str, times)], stdout=subprocess.PIPE, text=True, check=True, env=elsewhere
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**outcome, "cpu_share": float("nan"), "rss_mib": used.ru_maxrss / 1024}


def run_all(
    wanted: list[Row], clip: Path, *, seconds: float, rounds: int
) -> dict[Row, list[dict[str, Any]]]:
    """Every row, `rounds` times, taking turns."""
    found: dict[Row, list[dict[str, Any]]] = {row: [] for row in wanted}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for row in wanted:
                command = [sys.executable, "-m", "benchmarks.throughput", str(clip)]
                command += ["--row", json.dumps(asdict(row)), "--folder", folder]
                command += ["--seconds", str(seconds)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"{row}: {done.stderr[-2000:]}")
                found[row].append(json.loads(done.stdout.splitlines()[-1]))
                print(
                    f"{turn + 1}/{rounds} {row.label} {row.network} x{row.streams}: "
                    f"{found[row][-1]['rate']:.1f}",
                    file=sys.stderr,
                )
    return found


def table(found: dict[Row, list[dict[str, Any]]]) -> str:
    """Markdown: medians, lowest and highest, and the ratio to the best loop written by hand."""
    lines = [
        "| network | streams | what | budget | frames per second | lowest .. highest | "
        "x best loop | CPU | RSS MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rates = {row: [one["rate"] for one in runs] for row, runs in found.items()}
    for row, runs in found.items():
        loops = [
            median(rates[other])
            for other in found
            if other.fraction is None
            and "only" not in other.label
            and (other.network, other.streams) == (row.network, row.streams)
        ]
        ratio = f"{median(rates[row]) / max(loops):.2f}" if loops and row.fraction else ""
        budget = "" if row.fraction is None else f"{row.fraction:.2f}"
        lines.append(
            f"| {row.network} | {row.streams} | {row.label} | {budget} | "
            f"{median(rates[row]):.0f} | {min(rates[row]):.0f} .. {max(rates[row]):.0f} | {ratio} | "
            f"{_percent(median(one['cpu_share'] for one in runs))} | "
            f"{median(one['rss_mib'] for one in runs):.0f} |"
        )
    lines += ["", *_own_table(found)]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"


def _own_table(found: dict[Row, list[dict[str, Any]]]) -> Iterator[str]:
    yield (
        "| network | streams | budget | mean cost | batch sizes | fill of batches | network | decode | "
        "engine | event loop | overhead |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row, runs in found.items():
        if row.fraction is None:
            continue
        spent = {key: median(one["core_ms"][key] for one in runs) for key in runs[0]["core_ms"]}
        overhead = (spent["engine"] + spent["loop"]) / sum(spent.values())
        fill = [median(column) for column in zip(*(one["fill"] for one in runs), strict=True)]
        yield (
            f"| {row.network} | {row.streams} | {row.fraction:.2f} | "
            f"{median(one['mean_fraction'] for one in runs):.3f} | "
            f"{' '.join(map(str, runs[-1]['sizes']))} | {' '.join(f'{f:.0%}' for f in fill)} | "
            + " | ".join(f"{spent[k]:.2f}" for k in ("network", "decode", "engine", "loop"))
            + f" | {overhead:.1%} |"
        )


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only",
        default="",
        help="rows in whose 'label network xSTREAMS ' this regular expression is found",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--roboflow", default="", help="a Python with inference-cpu and openvino")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        spec = json.loads(options.row)
        engine = tuple((key, value) for key, value in spec.pop("engine"))
        row = Row(**{**spec, "exits": tuple(spec["exits"]), "engine": engine})
        print(json.dumps(run_row(row, options.clip, options.folder, options.seconds)))
        return
    every = rows(options.roboflow)
    wanted = [
        row
        for row in every
        if re.search(options.only, f"{row.label} {row.network} x{row.streams} ")
    ]
    found = run_all(wanted, options.clip, seconds=options.seconds, rounds=options.rounds)
    if options.json:
        print(json.dumps([{**asdict(row), "runs": runs} for row, runs in found.items()], indent=1))
    else:
        print(table(found))


if __name__ == "__main__":
    main()
