"""Streams of a whole node whose sources are not wanted, or cannot be had."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.rig import deaf_port

TIME_LIMIT = 120.0


def run(folder: Path, pipeline: Path, *streams: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
    """Exit code, summary and complaints of a node that ends by itself."""
    lines = [f"pipelines: {{toy: {pipeline}}}\nstreams:\n"]
    for stream in streams:
        keys = {"pipeline": "toy", "budget": {"fraction": 0.7}, **stream}
        lines.append(f"  - {json.dumps(keys)}\n")
    file = folder / "node.yaml"
    file.write_text("".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "streamexit", "run", str(file), "--json"],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    return done.returncode, json.loads(done.stdout)["streams"], done.stderr


def test_a_node_ends_with_its_recordings(toy_pipeline: Path, tmp_path: Path) -> None:
    """Beside a stream that is not enabled, and a camera that is given up; each says how it ended."""
    recording = {"id": "a", "source": "synthetic:frames=30", "pace": "fast"}
    off = {"id": "b", "source": "rtsp://127.0.0.1:9/x", "enabled": False}
    with deaf_port() as port:
        gone = {"id": "c", "source": f"tcp://127.0.0.1:{port}", "attempts": 2}
        code, streams, complaints = run(tmp_path, toy_pipeline, recording, off, gone)
    ends = {name: (stream["state"], stream["reason"]) for name, stream in streams.items()}
    assert ends == {
        "a": ("ended", "end_of_stream"),
        "b": ("disabled", "disabled"),
        "c": ("error", "refused"),
    }
    assert streams["a"]["answered"] == 30
    assert code == 2
    assert "2 attempts" in complaints
    assert "enabled" not in complaints  # it is as it should be


def test_a_recording_that_is_not_there_keeps_no_node(toy_pipeline: Path, tmp_path: Path) -> None:
    """It is in error at the end; the others are answered."""
    there = {"id": "a", "source": "synthetic:frames=30", "pace": "fast"}
    code, streams, complaints = run(tmp_path, toy_pipeline, there, {"id": "b", "source": "b.mp4"})
    assert (streams["b"]["state"], streams["b"]["reason"]) == ("error", "not_found")
    assert streams["a"]["answered"] == 30
    assert "b.mp4: no such file" in complaints
    assert code == 2


def test_a_refused_stream_is_left_alone(toy_pipeline: Path, tmp_path: Path) -> None:
    """Nobody knocks at a camera that the device has no room for."""
    pipeline = shutil.copytree(toy_pipeline, tmp_path / "toy")  # its profile is written into it
    with socket.create_server(("127.0.0.1", 0)) as camera:
        camera.setblocking(False)
        file = tmp_path / "node.yaml"
        stream = {
            "source": f"tcp://127.0.0.1:{camera.getsockname()[1]}",
            "pipeline": "toy",
            "budget": {"fraction": 1.0},
        }
        file.write_text(
            f"pipelines: {{toy: {pipeline}}}\n"
            "engine: {milliseconds_per_second: 0.000001, admission: refuse}\n"
            f"streams:\n  - {json.dumps({'id': 'cam', **stream})}\n"
        )
        profiled = subprocess.run(
            [sys.executable, "-m", "streamexit", "profile", str(pipeline)],
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
        assert profiled.returncode == 0, profiled.stderr
        command = [sys.executable, "-m", "streamexit", "run", str(file), "--json"]
        done = subprocess.run(
            [*command, "--duration", "3s"], capture_output=True, text=True, timeout=TIME_LIMIT
        )
        assert json.loads(done.stdout)["streams"]["cam"]["reason"] == "no_capacity", done.stderr
        try:
            camera.accept()
        except BlockingIOError:
            return
    raise AssertionError("the camera was connected to")
