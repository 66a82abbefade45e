"""How old answers are while a network takes longer than a camera leaves it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.faults.rig import Camera, node

RATE = 15
STAGES = 3


@dataclass(frozen=True)
class Latency:
    """What was seen.

    Attributes:
        ages: Seconds from the camera to each answer, in order.
        stream: The node's summary of the stream.
    """

    ages: list[float]
    stream: dict[str, Any]

    @property
    def thirds(self) -> list[float]:
        """Mean age over the first, the second and the last third of the answers."""
        n = len(self.ages) // 3
        return [sum(self.ages[i * n : (i + 1) * n]) / n for i in range(3)]


def overload(folder: Path, broker: str, pipeline: Path, *, times: float, seconds: float) -> Latency:
    """Analyse a camera with a network that takes `times` as long as there is between two frames."""
    slow = folder / "slow"
    shutil.copytree(pipeline, slow)
    file = slow / "pipeline.yaml"
    text = file.read_text()
    assert "streamexit.testing:toy_network" in text
    file.write_text(
        text.replace("streamexit.testing:toy_network", "tests.faults.slow_network:build")
    )
    camera = Camera(rate=RATE)
    camera.start()
    try:
        streams = {"cam": {"source": camera.url, "max_age_s": 2.0, "budget": {"fraction": 1.0}}}
        environment = {"SLOW_MS": str(1000 / RATE * times / STAGES)}
        with node(folder, broker, slow, streams, environment=environment, backend="torch") as (
            running,
            ear,
        ):
            ear.result("cam", since=0.0)
            time.sleep(seconds)
            results = [one.content for one in ear.said if one.leaf == "result"]
            summary, _ = running.stop()
    finally:
        camera.kill()
    return Latency([_age(result) for result in results], summary["streams"]["cam"])


def _age(result: dict[str, Any]) -> float:
    taken, sent = (datetime.fromisoformat(result[key]) for key in ("captured_at", "published_at"))
    return (sent - taken).total_seconds()
