"""Memory over many frames: `python -m benchmarks.soak pipelines/cifar10-resnet20`.

200,000 generated frames of eight streams through a node, results into a file. Prints what is resident
at every tenth of the way, and how full each queue ever was.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from streamexit.config.schema import NodeConfiguration
from streamexit.documents import Document
from streamexit.runtime import Node

STREAMS = 8
BUDGETS = (0.3, 0.45, 0.6, 0.8)


def resident_mib() -> float:
    """Of this process, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


async def watched(node: Node, total: int) -> list[tuple[int, float]]:
    """Run to the end; (frames answered, MiB resident) on the way."""
    seen: list[tuple[int, float]] = []
    run = asyncio.create_task(node.run())
    while not run.done():
        await asyncio.sleep(0.05)
        answered = sum(stream.counters.answered for stream in node.streams.values())
        if answered >= len(seen) * total / 10:
            seen.append((answered, resident_mib()))
    await run
    return seen


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--frames", type=int, default=200_000)
    options = parser.parse_args()
    each = options.frames // STREAMS
    with tempfile.TemporaryDirectory() as folder:
        configuration = NodeConfiguration.model_validate(
            {
                "results_file": f"{folder}/results.jsonl",
                "pipelines": {"p": str(options.pipeline.resolve())},
                "streams": [
                    {
                        "id": f"s{i}",
                        "source": f"synthetic:seed={i},frames={each}",
                        "pipeline": "p",
                        "budget": {"fraction": BUDGETS[i % len(BUDGETS)]},
                        "pace": "fast",
                    }
                    for i in range(STREAMS)
                ],
            }
        )
        node = Node(Document(Path("soak"), configuration, {}), on_problem=print)
        seen = asyncio.run(watched(node, each * STREAMS))
    print("| frames answered | resident MiB |\n|---|---|")
    for answered, mib in seen:
        print(f"| {answered} | {mib:.0f} |")
    buffers = [stream.buffer.statistics() for stream in node.streams.values()]
    print(
        f"\nframe buffers: at most {max(b.peak for b in buffers)} of {buffers[0].capacity} frames"
    )
    outbox = node.outbox.statistics()
    print(f"outbox: at most {outbox.peak} of {outbox.capacity} results, {outbox.dropped} dropped")
    for lane in node.lanes.values():
        print(f"engine: {lane.inside} rows left of {lane.capacity} at most")
    counters = [stream.counters for stream in node.streams.values()]
    print(f"frames {sum(c.frames for c in counters)}, answered {sum(c.answered for c in counters)}")


if __name__ == "__main__":
    main()
