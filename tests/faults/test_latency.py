"""A camera that sends five times as fast as the network can be run: answers stay fresh."""

from __future__ import annotations

import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mosquitto
from tests.faults.rig import Camera, node


def age(result: dict[str, Any]) -> float:
    """Seconds from the camera to the answer."""
    taken, sent = (datetime.fromisoformat(result[key]) for key in ("captured_at", "published_at"))
    return (sent - taken).total_seconds()


@pytest.mark.slow
@pytest.mark.usefixtures("rtsp_server")
def test_latency_stays_flat_when_inference_is_five_times_too_slow(
    mosquitto: Mosquitto, toy_pipeline: Path, tmp_path: Path
) -> None:
    """Old frames are dropped and counted, no answer is older than `max_age_s`, and ages do not grow."""
    pipeline = tmp_path / "slow"
    shutil.copytree(toy_pipeline, pipeline)
    file = pipeline / "pipeline.yaml"
    text = file.read_text()
    assert "streamexit.testing:toy_network" in text
    file.write_text(
        text.replace("streamexit.testing:toy_network", "tests.faults.slow_network:build")
    )
    camera = Camera(rate=15)
    camera.start()
    try:
        streams = {"cam": {"source": camera.url, "max_age_s": 2.0, "budget": {"fraction": 1.0}}}
        environment = {"SLOW_MS": "110"}  # three stages: a third of a second per frame
        with node(
            tmp_path, mosquitto.url, pipeline, streams, environment=environment, backend="torch"
        ) as (running, ear):
            begun = time.monotonic()
            ear.result("cam", since=begun)
            time.sleep(20.0)
            results = [one.content for one in ear.said if one.leaf == "result"]
            summary, _ = running.stop()
    finally:
        camera.kill()
    ages = [age(result) for result in results]
    third = len(ages) // 3
    middle, end = ages[third : 2 * third], ages[2 * third :]
    assert len(ages) > 20
    assert max(ages) < 2.5  # and what it takes to be sent
    assert sum(end) / len(end) < sum(middle) / len(middle) + 0.3
    stream = summary["streams"]["cam"]
    assert stream["frames"] > 3.5 * stream["answered"]
    assert stream["frames"] == stream["answered"] + sum(stream["dropped"].values())
