"""Four cameras, of which one suffers: the others go on, it comes back, and its status tells the truth.

How fast it comes back, and how little the others notice, is measured by `python -m tests.faults` on a
machine that does nothing else; here both have room for the tests beside them.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from streamexit.sources.life import REASONS
from tests.conftest import Mosquitto
from tests.faults.scenarios import Outcome, camera_faults, network_faults, street

pytestmark = [pytest.mark.usefixtures("rtsp_server"), pytest.mark.slow]

AWAY = 5.0
QUICK: dict[str, Any] = {"stalled_after_s": 1.0, "frame_timeout_s": 3.0, "open_timeout_s": 3.0}


def check(outcome: Outcome) -> None:
    """What holds for every fault."""
    assert outcome.others > 0.6, outcome
    assert outcome.back_after < 20, outcome
    assert outcome.states[-1] == ("online", ""), outcome
    assert all(reason in REASONS for _, reason in outcome.states), outcome


def test_what_cameras_do(mosquitto: Mosquitto, toy_pipeline: Path, tmp_path: Path) -> None:
    """Killed, frozen, another password, another codec and size, restarted with times from zero."""
    with street(tmp_path, mosquitto.url, toy_pipeline, **QUICK) as scene:
        outcomes = {o.fault: o for o in camera_faults(scene, AWAY)}
        results = [s.content for s in scene.ear.said if (s.stream, s.leaf) == ("four", "result")]
        summary, stderr = scene.running.stop()
    for outcome in outcomes.values():
        check(outcome)
    said = {fault: outcome.states for fault, outcome in outcomes.items()}
    killed = said["killed, then started again"]
    assert "reconnecting" in [state for state, _ in killed]
    assert ("offline", "connection_lost") in killed
    assert ("stalled", "timeout") in said["frozen, sockets open"]
    assert ("offline", "unauthorised") in said["another password"]
    check_books(summary)
    times, epochs = [r["pts_s"] for r in results], [r["epoch"] for r in results]
    assert all(a < b for a, b in pairwise(times))
    assert epochs == sorted(epochs)
    assert epochs[-1] == summary["streams"]["four"]["reconnects"] >= 4
    assert "s3cr" not in stderr  # the password
    assert not any("s3cr" in str(one.content) for one in scene.ear.said)


def test_what_networks_do(mosquitto: Mosquitto, toy_pipeline: Path, tmp_path: Path) -> None:
    """Cut, reset, refused, held up, half open, delayed, too narrow, damaged."""
    with street(tmp_path, mosquitto.url, toy_pipeline, **QUICK) as scene:
        outcomes = {o.fault: o for o in network_faults(scene, AWAY)}
        summary, _ = scene.running.stop()
    for outcome in outcomes.values():
        check(outcome)
    said = {fault: [state for state, _ in outcome.states] for fault, outcome in outcomes.items()}
    for fault in ("connection cut", "connection reset", "every new connection reset"):
        assert "reconnecting" in said[fault], fault
    assert "offline" in said["every new connection reset"]
    assert "stalled" in said["held up, then all at once"]
    assert "stalled" in said["half open: bytes vanish"]
    check_books(summary)
    assert summary["streams"]["four"]["dropped"]["too_old"] > 0  # of what was held up


def check_books(summary: dict[str, Any]) -> None:
    """Every frame is answered or dropped for a reason."""
    for name, stream in summary["streams"].items():
        assert stream["frames"] == stream["answered"] + sum(stream["dropped"].values()), name
