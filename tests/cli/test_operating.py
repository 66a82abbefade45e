"""What an operator sees: logs, systemd's messages, the doctor."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from streamexit.backends.torch_backend import TorchBackend
from streamexit.cli.commands import app
from streamexit.cli.logs import formatter
from tests.conftest import Mosquitto
from tests.faults.rig import deaf_port

TIME_LIMIT = 90


def record(level: int, message: str, **extra: object) -> logging.LogRecord:
    """A log record."""
    made = logging.makeLogRecord({"levelno": level, "levelname": logging.getLevelName(level)})
    made.msg, made.name = message, "streamexit.test"
    made.__dict__.update(extra)
    return made


def test_json_lines_are_objects_without_credentials() -> None:
    """One per event, with the stream that it is about."""
    line = formatter("json").format(
        record(logging.ERROR, "rtsp://me:hunter2@camera/1\nis gone", stream="gate")
    )
    assert "\n" not in line
    event = json.loads(line)
    assert (event["level"], event["stream"], event["logger"]) == (
        "error",
        "gate",
        "streamexit.test",
    )
    assert event["message"] == "rtsp://***@camera/1\nis gone"


def test_problems_look_the_same_everywhere() -> None:
    """As those of all commands do."""
    assert formatter("console").format(record(logging.ERROR, "no")) == "error: no"
    assert formatter("console").format(record(logging.WARNING, "hm")) == "warning: hm"


def node(folder: Path, pipeline: Path, **more: object) -> Path:
    """A configuration of one endless generated stream."""
    path = folder / "node.yaml"
    stream = {
        "id": "a",
        "source": "synthetic:frames=1000000",
        "pipeline": "toy",
        "budget": {"fraction": 0.7},
    }
    path.write_text(json.dumps({"pipelines": {"toy": str(pipeline)}, "streams": [stream], **more}))
    return path


def test_systemd_is_told(tmp_path: Path, toy_pipeline: Path) -> None:
    """Ready, alive, reloading, stopping; SIGTERM ends in order, and the log is JSON."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(TIME_LIMIT)
        # the HTTP server, which could reach for the log, too
        config = node(tmp_path, toy_pipeline, http={"port": 0})
        process = subprocess.Popen(
            [sys.executable, "-m", "streamexit", "run", str(config), "--log-format", "json"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "WATCHDOG_USEC": "200000",
            },
        )

        def hear(word: str) -> None:
            while word not in supervisor.recv(1000).decode():
                pass

        hear("READY=1")
        hear("WATCHDOG=1")
        hear("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        hear("RELOADING=1")
        hear("READY=1")
        process.send_signal(signal.SIGTERM)
        hear("STOPPING=1")
        _, log = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0
    events = [json.loads(line) for line in log.splitlines()]
    assert any(e["message"] == "a: online" and e["stream"] == "a" for e in events)
    assert any("configuration read again by SIGHUP" in e["message"] for e in events)


def test_the_end_of_its_terminal_ends_a_node_in_order(tmp_path: Path, toy_pipeline: Path) -> None:
    """Where nobody can have meant a reload."""
    parent, terminal = os.openpty()
    config = str(node(tmp_path, toy_pipeline))
    command = [sys.executable, "-m", "streamexit", "run", config, "--json", "--log-format", "json"]
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    while "a: online" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGHUP)
    summary, _ = process.communicate(timeout=TIME_LIMIT)
    os.close(parent)
    os.close(terminal)
    assert process.returncode == 0
    assert json.loads(summary)["streams"]["a"]["state"] == "ended"


def examined(config: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code, and outcome and message by check."""
    done = CliRunner().invoke(app, ["doctor", str(config), "--json", "--timeout", "5"])
    findings = json.loads(done.stdout)["findings"]
    return done.exit_code, {f["check"]: (f["outcome"], f["message"]) for f in findings}


@pytest.mark.broker
def test_the_doctor_finds_everything_well(
    mosquitto: Mosquitto, tmp_path: Path, toy_pipeline: Path
) -> None:
    """With a broker that passes a message on, and a source that shows a picture."""
    config = node(tmp_path, toy_pipeline, mqtt={"url": mosquitto.url}, http={"port": 0})
    code, found = examined(config)
    assert code == 0
    assert {check: outcome for check, (outcome, _) in found.items() if outcome == "bad"} == {}
    assert "MQTT 5, a message to streamexit/node/doctor came back" in found["broker"][1]
    assert "the first after" in found["source a"][1]
    assert found["overlay_file"][0] == "good"


def test_the_doctor_knows_what_waits_and_what_cannot_be_kept(
    tmp_path: Path, toy_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watched folder may be empty; a missing clip is one finding; a network that does not run is one, too."""
    (tmp_path / "in").mkdir()
    files = {"state_file": "nowhere/state.json", "overlay_file": "nowhere/overlay.yaml"}
    engine = {"backend": "torch"}
    config = node(tmp_path, toy_pipeline, engine=engine, results_file="out/r.jsonl", **files)
    document = yaml.safe_load(config.read_text())
    rest = {key: value for key, value in document["streams"][0].items() if key != "id"}
    for name, source in (("b", "watch:in"), ("c", "gone.mp4")):
        document["streams"].append({**rest, "id": name, "source": source})
    config.write_text(yaml.safe_dump(document))

    def breaks(*arguments: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(TorchBackend, "submit", breaks)
    code, found = examined(config)
    assert code == 1
    assert found["source b"][0] == "good"
    assert found["source c"][0] == "bad"
    assert "no such file" in found["source c"][1]
    assert "no kernel image" in found["backend"][1]
    assert found["results_file"][0] == "good"
    assert [found[name][0] for name in files] == ["bad", "bad"]


def test_the_doctor_says_what_to_do(tmp_path: Path, toy_pipeline: Path) -> None:
    """Of a broker that is not there, a port that is taken, a camera that refuses, a folder that cannot be."""
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken, deaf_port() as deaf:
        config = node(
            tmp_path,
            toy_pipeline,
            mqtt={"url": "mqtt://127.0.0.1:1", "spool": {"file": "file/spool"}},
            http={"port": taken.getsockname()[1]},
        )
        text = config.read_text().replace("synthetic:frames=1000000", f"tcp://127.0.0.1:{deaf}")
        config.write_text(text)
        code, found = examined(config)
    assert code == 1
    assert "check that it runs" in found["broker"][1]
    assert "http.port" in found["http"][1]
    assert "mqtt.spool.file" in found["spool"][1]
    assert found["source a"][0] == "bad"
