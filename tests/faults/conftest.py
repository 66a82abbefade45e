"""Fixtures of the fault suite."""

from __future__ import annotations

import pytest

from tests.conftest import absent
from tests.faults.rig import has_rtsp_server


@pytest.fixture(scope="session")
def rtsp_server() -> None:
    """GStreamer's RTSP server can be had."""
    if not has_rtsp_server():
        absent("GStreamer's RTSP server (apt install python3-gi gir1.2-gst-rtsp-server-1.0)")
