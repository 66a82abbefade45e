"""How many cameras fit: `python -m benchmarks.live_streams CLIP`.

Every stream is the clip at 10 frames per second, at the speed of its timestamps. Of each answer the
age is taken, from the moment at which a camera would have given the frame; nobody may drop frames, so
whoever is too slow falls behind and the ages grow. The number of streams is doubled and then narrowed
down to find the largest at which 99 of 100 answers are younger than half a second. Ours beside the
loop written by hand, each trial in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import openvino as ov

from benchmarks.loops import compiled_network, frames
from benchmarks.ours import pipeline_of
from streamexit.config.schema import NodeConfiguration
from streamexit.documents import Document
from streamexit.preprocessing import Image
from streamexit.runtime import Node

RATE = 10
LIMIT_SECONDS = 0.5
WARM_UP_SECONDS = 2.0
BUFFER = 4
CLOSE_ENOUGH = 1.06
"""The search ends when the largest that held and the smallest that did not are this near."""


@dataclass(frozen=True)
class Contender:
    """Who is asked.

    Attributes:
        label: In the table.
        network: torchvision's name.
        fraction: Ours: the budget; None is the loop written by hand.
        exits: Ours: early ones.
    """

    label: str
    network: str
    fraction: float | None = None
    exits: tuple[float, ...] = ()


THREE = (0.25, 0.5, 0.75)
CONTENDERS = (
    Contender("PyAV + OpenVINO, async queue", "mobilenet_v3_large"),
    Contender("streamexit, never exits", "mobilenet_v3_large", 1.0),
    Contender("PyAV + OpenVINO, async queue", "resnet50"),
    Contender("streamexit, never exits", "resnet50", 1.0),
    Contender("streamexit, a half", "resnet50", 1 / 2, THREE),
    Contender("streamexit, a third", "resnet50", 1 / 3, THREE),
)


def retimed(clip: Path, folder: Path) -> Path:
    """The clip at `RATE` frames per second: the same packets with other timestamps."""
    path = folder / "clip.mp4"
    if path.exists():
        return path
    with av.open(str(clip)) as source, av.open(str(path), "w") as copy:
        stream = source.streams.video[0]
        out = copy.add_stream_from_template(stream)
        step = 1 / (RATE * stream.time_base) if stream.time_base else Fraction(1)
        own = Fraction(1) / (stream.average_rate or RATE) / (stream.time_base or 1)
        for packet in source.demux(stream):
            if packet.pts is None or packet.dts is None:
                continue
            packet.pts = int(packet.pts / own * step)
            packet.dts = int(packet.dts / own * step)
            packet.stream = out
            copy.mux(packet)
    return path


def by_hand(network: str, clip: Path, streams: int, seconds: float) -> list[float]:
    """A decode thread and a bounded buffer per stream, one feeder, OpenVINO's AsyncInferQueue."""
    ages: list[float] = []
    waiting: queue.Queue[tuple[float, Image]] = queue.Queue(BUFFER * streams)
    jobs = ov.AsyncInferQueue(compiled_network(network, {"PERFORMANCE_HINT": "THROUGHPUT"}))
    begin = time.perf_counter()
    end = begin + WARM_UP_SECONDS + seconds

    def camera() -> None:
        for i, image in zip(range(int((end - begin) * RATE)), frames(clip), strict=False):
            due = begin + i / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            waiting.put((due, image))

    def answered(request: ov.InferRequest, due: float) -> None:
        request.get_output_tensor(0).data.argmax(1)
        if due >= begin + WARM_UP_SECONDS:
            ages.append(time.perf_counter() - due)

    jobs.set_callback(answered)
    for _ in range(streams):
        threading.Thread(target=camera, daemon=True).start()
    for _ in range(streams * int((end - begin) * RATE)):
        due, image = waiting.get()
        if time.perf_counter() > end + LIMIT_SECONDS:
            break  # hopelessly behind
        jobs.start_async([image[None]], userdata=due)
    jobs.wait_all()
    return ages


def ours(
    contender: Contender, clip: Path, folder: Path, streams: int, seconds: float
) -> list[float]:
    """A node with so many streams; the ages are read off its results."""
    name = f"{contender.network}-{len(contender.exits)}"
    pipeline = pipeline_of(contender.network, list(contender.exits), clip, folder / name)
    results = folder / f"results-{time.monotonic_ns()}.jsonl"
    configuration = NodeConfiguration.model_validate(
        {
            "results_file": str(results),
            "pipelines": {"p": str(pipeline)},
            "streams": [
                {
                    "id": f"s{i}",
                    "source": str(clip),
                    "pipeline": "p",
                    "budget": {"fraction": contender.fraction},
                    "loop": True,
                    "buffer": BUFFER,
                }
                for i in range(streams)
            ],
        }
    )
    node = Node(Document(Path("benchmark"), configuration, {}), on_problem=print)
    asyncio.run(node.run(duration=WARM_UP_SECONDS + seconds))
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    results.unlink()
    return _ages(lines)


def _ages(lines: list[dict[str, Any]]) -> list[float]:
    """Of results after the warm-up; a camera's clock starts when its first frame is there."""
    zero: dict[str, float] = {}
    for line in lines:
        started = _seconds(line["captured_at"]) - line["pts_s"]
        zero[line["stream"]] = min(started, zero.get(line["stream"], started))
    return [
        _seconds(line["published_at"]) - zero[line["stream"]] - line["pts_s"]
        for line in lines
        if line["pts_s"] >= WARM_UP_SECONDS
    ]


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def trial(contender: Contender, clip: Path, folder: Path, streams: int, seconds: float) -> float:
    """The 99th percentile of the ages, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.live_streams", str(clip)]
    command += ["--trial", json.dumps(asdict(contender)), "--streams", str(streams)]
    command += ["--folder", str(folder), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    p99: float = json.loads(done.stdout.splitlines()[-1])
    print(f"{contender.label} {contender.network} x{streams}: p99 {p99:.3f} s", file=sys.stderr)
    return p99


def most_streams(contender: Contender, clip: Path, folder: Path, seconds: float) -> int:
    """The largest number that holds."""
    held, failed, streams = 0, 0, 4
    while not failed or failed > max(CLOSE_ENOUGH * held, held + 1):
        if trial(contender, clip, folder, streams, seconds) < LIMIT_SECONDS:
            held = streams
        else:
            failed = streams
        streams = (held + failed) // 2 if failed else 2 * streams
    return held


def main() -> None:
    """Parse, search, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each trial")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trial:
        spec = json.loads(options.trial)
        contender = Contender(**{**spec, "exits": tuple(spec["exits"])})
        arguments = options.clip, options.streams, options.seconds
        if contender.fraction is None:
            ages = by_hand(contender.network, *arguments)
        else:
            ages = ours(contender, arguments[0], options.folder, *arguments[1:])
        print(float(np.quantile(ages, 0.99)) if ages else "Infinity")
        return
    print("| network | who | streams of 10 frames per second held, p99 age < 500 ms |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        clip = retimed(options.clip, Path(folder))
        for contender in CONTENDERS:
            held = most_streams(contender, clip, Path(folder), options.seconds)
            print(f"| {contender.network} | {contender.label} | {held} |", flush=True)


if __name__ == "__main__":
    main()
