"""Take the picture of the page that the documentation shows: a node of four streams, one of them dead.

python docs/page_picture.py        # needs Chromium and the extras broker, http, clips and test
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import sync_playwright

from streamexit.cli.demo import OBJECTS, SCENES, demo_sources, shipped_pipelines
from streamexit.config.load import load_configuration
from streamexit.runtime import Node

PICTURE = Path(__file__).with_name("page.png")
CHROMIUM = "/usr/bin/chromium"
SECONDS = 75


def configuration(folder: Path, port: int) -> Path:
    """Three streams of the demo, and a camera that is not there."""
    pipelines, _ = shipped_pipelines()
    sources, _ = demo_sources([])
    names = {"yard": OBJECTS, "crossing": SCENES, "gate": OBJECTS}
    streams: list[dict[str, Any]] = []
    for (name, pipeline), clip, fraction in zip(
        names.items(), sources, (0.4, 0.6, 0.7), strict=False
    ):
        (folder / f"{name}.mp4").symlink_to(clip)
        recorded = {"id": name, "source": f"{name}.mp4", "loop": True}
        streams.append({**recorded, "pipeline": pipeline, "budget": {"fraction": fraction}})
    gone = {"id": "back-door", "source": "rtsp://viewer:hidden@127.0.0.1:9/stream1"}
    streams.append({**gone, "pipeline": OBJECTS, "budget": {"fraction": 0.5}})
    content = {
        "node": {"id": "gatehouse"},
        "mqtt": {"url": "embedded"},
        "http": {"port": port},
        "pipelines": {name: str(path) for name, path in pipelines.items()},
        "streams": [{**stream, "shadow": 0.05} for stream in streams],
    }
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump(content).replace("viewer:hidden", "viewer:${CAMERA_PASSWORD}"))
    (folder / "secrets").write_text("CAMERA_PASSWORD=hidden\n")
    path.write_text(path.read_text() + "secrets: secrets\n")
    return path


def main() -> None:
    """Run the node for a while, change a budget in mid-course, take the picture."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        node = Node(load_configuration(configuration(Path(name), port)), on_problem=print)
        started = threading.Event()

        def serve() -> None:
            asyncio.run(node.run(duration=SECONDS + 15, ready=started.set))

        thread = threading.Thread(target=serve)
        thread.start()
        started.wait()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1900, "height": 880})
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_timeout(SECONDS * 400)
            page.get_by_test_id("stream-yard").get_by_test_id("budget-input").fill("55")
            page.get_by_test_id("stream-yard").get_by_test_id("budget-set").click()
            page.wait_for_timeout(SECONDS * 600)
            page.screenshot(path=PICTURE)
            browser.close()
        thread.join()


if __name__ == "__main__":
    main()
