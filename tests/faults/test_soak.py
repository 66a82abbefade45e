"""A minute of random troubles, a quarter of one of damaged recordings; hours are run by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Mosquitto
from tests.faults.fuzz import fuzz
from tests.faults.soak import soak

MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.usefixtures("rtsp_server")
def test_a_minute_of_troubles(mosquitto: Mosquitto, toy_pipeline: Path, tmp_path: Path) -> None:
    """Every camera comes back from every fault; no frame is lost in silence; nothing grows."""
    report = soak(tmp_path, mosquitto.url, toy_pipeline, 60.0, rest=(1.0, 5.0), longest=6.0, seed=3)
    assert report.lost == 0
    assert sum(report.suffered.values()) > 15
    assert "Traceback" not in report.stderr
    first, last = report.resources[0], report.resources[-1]
    assert last["threads"] <= first["threads"] + 4  # those that are being given up just then
    assert last["descriptors"] <= first["descriptors"] + 12
    assert last["memory"] - first["memory"] < 48 * MIB
    for stream in report.streams.values():
        assert stream["answered"] > 100


@pytest.mark.slow
def test_damaged_recordings_end_in_pictures_or_a_reason(tmp_path: Path) -> None:
    """Decoders may die; whoever reads them does not."""
    findings = fuzz(tmp_path, 15.0, workers=1)
    assert findings.wrong == []
    assert findings.outcomes.total() > 3
    assert findings.outcomes["read"]
