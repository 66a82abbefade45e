"""A node as a subprocess, a real mosquitto, a real subscriber."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Delivery
from streamexit.sinks.mqtt import MqttSession
from streamexit.sinks.visits import subscribe
from tests.conftest import ROOT, MakeClip, Mosquitto
from tests.sinks.rig import run

pytestmark = pytest.mark.broker

TIME_LIMIT = 90

CONFIG = """
node: {{id: test}}
mqtt: {{url: {url}}}
pipelines: {{toy: {pipeline}}}
streams:
  - {{id: a, source: {clip}, pipeline: toy, budget: {{fraction: 0.7}}, {mode}}}
  - {{id: b, source: "synthetic:seed=1,frames=4000", pipeline: toy, budget: {{fraction: 0.9}}, {mode}}}
"""

SCHEMAS = {
    path.stem: jsonschema.Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))
    for path in (ROOT / "docs" / "schemas").glob("*.json")
}
"""Made once: checking the schema each time costs ten times as much as checking the message."""


class Subscriber:
    """Reads everything a node says, checking each message against its published schema."""

    def __init__(self, broker: Mosquitto) -> None:
        self.results: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
        self.latest: dict[str, Any] = {}
        self._address = BrokerAddress.parse(broker.url)
        self._stream = subscribe(self._address, "streamexit/test/#")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read on until `condition` holds."""
        while not condition():
            topic, payload, _ = await anext(self._stream)
            self._note(topic.removeprefix("streamexit/test/"), payload)

    def resubscribe(self) -> None:
        """After the broker was away."""
        self._stream = subscribe(self._address, "streamexit/test/#")

    async def close(self) -> None:
        """Leave."""
        await self._stream.aclose()

    def _note(self, topic: str, payload: bytes) -> None:
        leaf = topic.split("/")[-1]
        if leaf == "availability":
            self.latest[topic] = payload.decode()
            return
        message = json.loads(payload)
        SCHEMAS[leaf].validate(message)
        self.latest[topic] = message
        if leaf == "result":
            self.results[message["stream"]].append(message)


def start(config: Path) -> subprocess.Popen[str]:
    """The node as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "streamexit", "run", str(config), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_config(folder: Path, broker: Mosquitto, pipeline: Path, clip: Path, mode: str) -> Path:
    """A node of two streams."""
    path = folder / "node.yaml"
    path.write_text(CONFIG.format(url=broker.url, pipeline=pipeline, clip=clip, mode=mode))
    return path


def test_every_result_arrives(
    mosquitto: Mosquitto, toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    """As many results as frames answered, seq without gaps, all topics as the schemas say."""
    clip = make_clip("traffic.mp4", frames=300)
    config = write_config(tmp_path, mosquitto, toy_pipeline, clip, "pace: fast")

    async def body() -> None:
        subscriber = Subscriber(mosquitto)
        listening = asyncio.create_task(
            subscriber.until(lambda: subscriber.latest.get("availability") == "stopped")
        )
        process = await asyncio.to_thread(start, config)
        stdout, stderr = await asyncio.to_thread(process.communicate, timeout=TIME_LIMIT)
        assert process.returncode == 0, stderr
        await listening
        await subscriber.close()
        report = json.loads(stdout)
        assert report["results_lost"] == {}
        assert report["results_confirmed"] == 4300
        for stream, count in (("a", 300), ("b", 4000)):
            assert report["streams"][stream]["answered"] == count
            assert [r["seq"] for r in subscriber.results[stream]] == list(range(count))
            status = subscriber.latest[f"stream/{stream}/status"]
            assert (status["state"], status["answered"]) == ("ended", count)
            assert subscriber.latest[f"stream/{stream}/budget"]["state"] == "on_budget"
            assert subscriber.latest[f"stream/{stream}/availability"] == "offline"
            last = subscriber.results[stream][-1]["answer"]["label"]
            assert subscriber.latest[f"stream/{stream}/state"]["label"] == last
        assert subscriber.latest["info"]["streams"] == ["a", "b"]
        assert subscriber.latest["stats"]["node"] == "test"
        (network,) = subscriber.latest["stats"]["networks"]
        assert (network["pipeline"], network["policy"], network["notes"]) == ("toy", "direct", [])
        assert len(network["batch"]) == len(network["fill"]) == 3

    run(body)


def test_broker_dies_and_returns(
    mosquitto: Mosquitto, toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    """While the broker is away frames are answered; afterwards each result is confirmed or still kept."""
    clip = make_clip("loop.mp4", frames=50)
    config = write_config(tmp_path, mosquitto, toy_pipeline, clip, "loop: true")

    async def body() -> None:
        subscriber = Subscriber(mosquitto)
        process = await asyncio.to_thread(start, config)
        await subscriber.until(lambda: len(subscriber.results["a"]) >= 20)
        mosquitto.kill()
        await subscriber.close()
        before = subscriber.results["a"][-1]["seq"]
        await asyncio.to_thread(mosquitto.start)
        subscriber.resubscribe()
        await subscriber.until(lambda: subscriber.results["a"][-1]["seq"] > before + 30)
        process.send_signal(signal.SIGINT)
        await subscriber.until(lambda: subscriber.latest.get("availability") == "stopped")
        stdout, stderr = await asyncio.to_thread(process.communicate, timeout=TIME_LIMIT)
        await subscriber.close()
        assert process.returncode == 0, stderr
        report = json.loads(stdout)
        answered = sum(s["answered"] for s in report["streams"].values())
        assert report["results_lost"] == {}
        assert report["results_confirmed"] + report["results_kept"] == answered
        live = [r["seq"] for r in subscriber.results["a"] if not r["historical"]]
        assert live == sorted(set(live))
        assert "check that it runs" in stderr
        assert "their results are kept until it is back" in stderr
        said = [line for line in stderr.splitlines() if "MQTT broker" in line]
        assert 1 <= len(said) == len(set(said)) <= 3  # each kind of failure once

    run(body)


def test_refused_login_does_not_stop_the_work(
    mosquitto: Mosquitto, toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    """A broker that refuses us is named, with the remedy; the frames are answered all the same."""
    mosquitto.kill()
    mosquitto.start(extra="allow_anonymous false")
    clip = make_clip("short.mp4", frames=30)
    config = write_config(tmp_path, mosquitto, toy_pipeline, clip, "pace: fast")
    process = start(config)
    stdout, stderr = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0
    assert "refused the login; it wants a user and a password" in stderr
    assert "Traceback" not in stderr
    report = json.loads(stdout)
    assert report["streams"]["a"]["answered"] == 30
    assert (report["results_lost"], report["results_kept"]) == ({}, 4030)


def test_watch_prints_results(
    mosquitto: Mosquitto, toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    """`streamexit watch` shows results readably, a line each."""
    clip = make_clip("looped.mp4", frames=50)
    config = write_config(tmp_path, mosquitto, toy_pipeline, clip, "loop: true")
    node = start(config)
    watch = subprocess.run(
        [sys.executable, "-m", "streamexit", "watch", "--url", mosquitto.url, "--count", "10"],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    node.send_signal(signal.SIGTERM)
    node.communicate(timeout=TIME_LIMIT)
    assert watch.returncode == 0, watch.stderr
    lines = watch.stdout.splitlines()
    assert len(lines) == 10
    assert all("exit " in line and "gflops" in line for line in lines)


def test_watch_says_that_nothing_comes(mosquitto: Mosquitto) -> None:
    """A node with another prefix, or none at all, looks the same from there."""
    command = [sys.executable, "-m", "streamexit", "watch", "--url", mosquitto.url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stderr
        assert "nothing under streamexit/+/stream/+/result yet" in watch.stderr.readline()
        watch.send_signal(signal.SIGINT)
        assert watch.wait(TIME_LIMIT) == 0


def test_sample_subscriber(
    mosquitto: Mosquitto, toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    """The ten lines that the README points to print a stream, a label and an exit."""
    clip = make_clip("sampled.mp4", frames=50)
    node = start(write_config(tmp_path, mosquitto, toy_pipeline, clip, "loop: true"))
    script = [sys.executable, str(ROOT / "samples" / "subscriber.py")]
    subscriber = subprocess.Popen(
        [*script, "127.0.0.1", str(mosquitto.port)], stdout=subprocess.PIPE, text=True
    )
    assert subscriber.stdout
    words = subscriber.stdout.readline().split()
    for process in (subscriber, node):
        process.terminate()
        process.communicate(timeout=TIME_LIMIT)
    assert words[0] in ("a", "b")
    assert words[1] in ("ant", "bee", "cat", "dog")
    assert words[2] in ("1", "2", "3")


@pytest.mark.parametrize("prefer_v5", [True, False])
def test_embedded_broker(prefer_v5: bool) -> None:
    """The broker of our own, which has no MQTT 5: `watch` sees results, a session falls back."""
    node = subprocess.Popen(
        [sys.executable, "-m", "streamexit", "run", str(ROOT / "configs" / "first-run.yaml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},  # the address on the line that announces it
    )
    assert node.stderr
    announced = next(
        line for line in node.stderr if "results on " in line
    )  # preparations come first
    url = announced.split("results on ")[1].split()[0]
    watch = subprocess.run(
        [sys.executable, "-m", "streamexit", "watch", "--url", url, "--count", "5"],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )

    async def body() -> None:
        session = MqttSession(
            [BrokerAddress.parse(url)],
            client_id="other",
            availability_topic="other/availability",
            delivery=Delivery(qos=1, spool=None, historical=bytes),
            prefer_v5=prefer_v5,
        )
        listener = subscribe(BrokerAddress.parse(url), "other/availability")
        task = asyncio.create_task(session.run())
        async for topic, payload, _ in listener:  # amqtt sends others that nobody asked for
            if topic == "other/availability":
                assert payload == b"online"
                break
        session.finish()
        await asyncio.wait([task])
        await listener.aclose()

    run(body)
    node.send_signal(signal.SIGINT)
    node.communicate(timeout=TIME_LIMIT)
    assert node.returncode == 0
    assert watch.returncode == 0, watch.stderr
    assert len(watch.stdout.splitlines()) == 5


def test_watch_without_broker() -> None:
    """No broker: one line, exit code 1."""
    done = subprocess.run(
        [sys.executable, "-m", "streamexit", "watch", "--url", "mqtt://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 1
    assert "check that it runs" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_does_not_end_the_node(
    mosquitto: Mosquitto, toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    """The results reach the broker; that the file cannot be written is said once."""
    clip = make_clip("short.mp4", frames=30)
    config = write_config(tmp_path, mosquitto, toy_pipeline, clip, "pace: fast")
    config.write_text(config.read_text() + "results_file: /dev/full\n")
    process = start(config)
    stdout, stderr = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0, stderr
    report = json.loads(stdout)
    assert (report["results_confirmed"], report["results_lost"]) == (4030, {})
    assert stderr.count("No space left on device") == 1
    assert "of 4030 results 0 were written, 4030 refused" in stderr
