"""A camera that sends five times as fast as the network can be run: answers stay fresh."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Mosquitto
from tests.faults.latency import overload


@pytest.mark.slow
@pytest.mark.usefixtures("rtsp_server")
def test_latency_stays_flat_when_inference_is_five_times_too_slow(
    mosquitto: Mosquitto, toy_pipeline: Path, tmp_path: Path
) -> None:
    """Old frames are dropped and counted, no answer is older than `max_age_s`, and ages do not grow."""
    seen = overload(tmp_path, mosquitto.url, toy_pipeline, times=5.0, seconds=20.0)
    assert len(seen.ages) > 20
    assert max(seen.ages) < 2.5  # and what it takes to be sent
    _, middle, end = seen.thirds
    assert end < middle + 0.3
    assert seen.stream["frames"] > 3.5 * seen.stream["answered"]
    assert seen.stream["frames"] == seen.stream["answered"] + sum(seen.stream["dropped"].values())
