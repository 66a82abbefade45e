"""Pictures of a stream that has few."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from streamexit import pictures
from streamexit.config.load import load_configuration
from streamexit.http.app import _motion_jpeg
from streamexit.runtime import Node

TIME_LIMIT = 60


def test_a_slow_stream_is_shown(
    toy_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its latest picture is there when somebody asks, and a preview waits for the next."""
    monkeypatch.setattr(pictures, "PICTURE_SECONDS", 0.5)
    stream = {"id": "a", "source": "synthetic:", "rate": 0.45, "pipeline": "toy"}
    content = {"pipelines": {"toy": str(toy_pipeline)}, "mqtt": {"url": "mqtt://127.0.0.1:1"}}
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump({**content, "streams": [{**stream, "budget": {"fraction": 1}}]}))
    node = Node(load_configuration(path), on_problem=lambda sentence: None)
    operations: Any = SimpleNamespace(roster=node)

    async def body() -> None:
        running = asyncio.Event()
        task = asyncio.create_task(node.run(ready=running.set))
        async with asyncio.timeout(TIME_LIMIT):
            await running.wait()
            while not node.streams["a"].counters.answered:  # noqa: ASYNC110 - a thread counts
                await asyncio.sleep(0.01)
            preview = _motion_jpeg(operations, "a", asyncio.Semaphore())
            shown = [await anext(preview), await anext(preview)]
            await preview.aclose()  # type: ignore[attr-defined]
            node.stop()
            await task
        assert all(picture.startswith(b"--picture") for picture in shown)

    asyncio.run(body())
