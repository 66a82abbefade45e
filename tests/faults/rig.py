"""Cameras and a node of a fault test: real processes on loopback, and everything they said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.visits import subscribe

SERVER = Path(__file__).with_name("rtsp_server.py")
SYSTEM_PYTHON = "/usr/bin/python3"
PATIENCE = 60.0


def has_rtsp_server() -> bool:
    """Whether Debian's packages for it are installed."""
    script = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if not Path(SYSTEM_PYTHON).exists():
        return False
    done = subprocess.run([SYSTEM_PYTHON, "-c", script], capture_output=True)
    return done.returncode == 0


def free_port() -> int:
    """A loopback port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A loopback port that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


class Camera:
    """An RTSP camera that can be mistreated."""

    def __init__(self, **wanted: Any) -> None:
        self.wanted = {"port": free_port(), **wanted}
        self._process: subprocess.Popen[str] | None = None
        self._has_listened = False

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.wanted["port"]
        return port

    @property
    def url(self) -> str:
        """rtsp://..."""
        return f"rtsp://127.0.0.1:{self.port}/stream"

    def start(self, **changes: Any) -> None:
        """Start it; `changes` stay."""
        self.wanted |= changes
        if self._try_to_start():
            self._has_listened = True
            return
        self.kill()
        assert not self._has_listened, f"somebody took port {self.port}"
        self.start(port=free_port())  # somebody was faster

    def _try_to_start(self) -> bool:
        wanted = {key: value for key, value in self.wanted.items() if value is not None}
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(SERVER), json.dumps(wanted)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout
        return self._process.stdout.readline().strip() == "listening"

    def kill(self) -> None:
        """End it as a power failure would; connections are reset or closed by the kernel."""
        if self._process:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout
            self._process.stdout.close()
            self._process = None

    def shows_something(self) -> bool:
        """Whether another client than the node gets a picture of it, within 20 s."""
        command = ["ffmpeg", "-v", "error", "-rtsp_transport", "tcp", "-i", self.url]
        try:
            done = subprocess.run([*command, "-frames:v", "1", "-f", "null", "-"], timeout=20)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def freeze(self) -> None:
        """Stop it in mid-sentence, sockets open."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)


@dataclass
class Said:
    """A message of the node.

    Attributes:
        at: Monotonic time of arrival.
        stream: Which.
        leaf: Last part of its topic.
        content: Decoded.
    """

    at: float
    stream: str
    leaf: str
    content: Any


@dataclass
class Ear:
    """Hears everything that a node publishes, in a thread of its own."""

    url: str
    root: str
    said: list[Said] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        self._task = self._loop.create_task(self._hear())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.close()

    async def _hear(self) -> None:
        async for topic, payload, _ in subscribe(BrokerAddress.parse(self.url), f"{self.root}/#"):
            parts = topic.split("/")
            if "stream" not in parts or not payload:
                continue
            content = json.loads(payload) if payload.startswith(b"{") else payload.decode()
            with self._news:
                self.said.append(Said(time.monotonic(), parts[-2], parts[-1], content))
                self._news.notify_all()

    def until(
        self, wanted: Callable[[Said], bool], *, since: float, within: float = PATIENCE
    ) -> Said:
        """Wait for a message that came or comes after `since`."""
        deadline, looked_at, seen = time.monotonic() + within, 0, self.said
        with self._news:
            while True:
                if self.said is not seen:  # `forget` made a new list
                    seen, looked_at = self.said, 0
                while looked_at < len(seen):
                    one = seen[looked_at]
                    looked_at += 1
                    if one.at >= since and wanted(one):
                        return one
                left = deadline - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    raise AssertionError(
                        f"nothing of the kind within {within:.0f} s: {self.tail()}"
                    )

    def tail(self) -> list[Said]:
        """The latest status message of each stream, for people."""
        return list({one.stream: one for one in self.said if one.leaf == "status"}.values())

    def result(self, stream: str, *, since: float, within: float = PATIENCE) -> Said:
        """The first result of a stream after `since`."""
        return self.until(
            lambda one: (one.stream, one.leaf) == (stream, "result"), since=since, within=within
        )

    def state(
        self, stream: str, *states: str, since: float, within: float = PATIENCE
    ) -> dict[str, Any]:
        """The first status of a stream after `since` that has one of these states."""
        content: dict[str, Any] = self.until(
            lambda one: (
                (one.stream, one.leaf) == (stream, "status") and one.content["state"] in states
            ),
            since=since,
            within=within,
        ).content
        return content

    def states(self, stream: str, *, since: float) -> list[tuple[str, str]]:
        """State and reason of a stream, each time that they changed."""
        seen: list[tuple[str, str]] = []
        for one in list(self.said):
            if (one.stream, one.leaf) == (stream, "status") and one.at >= since:
                pair = (one.content["state"], one.content["reason"])
                if not seen or seen[-1] != pair:
                    seen.append(pair)
        return seen

    def rate(self, stream: str, begin: float, end: float) -> float:
        """Results per second between two times."""
        count = sum(
            begin <= one.at < end
            for one in list(self.said)
            if (one.stream, one.leaf) == (stream, "result")
        )
        return count / (end - begin)

    def forget(self, *, older_than: float) -> None:
        """Let go of what nobody will ask for any more; for long runs."""
        with self._news:
            self.said = [one for one in self.said if one.at >= older_than]

    def close(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(PATIENCE)


class RunningNode:
    """`streamexit run` in a process of its own."""

    def __init__(self, config: Path, *arguments: str, environment: dict[str, str] | None = None):
        # A pipe would have to be read all the time
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamexit", "run", str(config), "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._inside = psutil.Process(self.process.pid)

    def resources(self) -> dict[str, int]:
        """Threads, open descriptors, resident memory in bytes."""
        return {
            "threads": self._inside.num_threads(),
            "descriptors": self._inside.num_fds(),
            "memory": self._inside.memory_info().rss,
        }

    def stop(self) -> tuple[dict[str, Any], str]:
        """End it; its summary, and what it said on stderr."""
        self.process.send_signal(signal.SIGINT)
        stdout, _ = self.process.communicate(timeout=PATIENCE)
        self._stderr.seek(0)
        stderr = self._stderr.read()
        assert self.process.returncode in (0, 2), stderr
        return json.loads(stdout), stderr

    def kill(self) -> None:
        """End it in any case."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self._stderr.close()


CONFIG = """
node: {{id: faulty}}
mqtt: {{url: "{broker}", qos: 0}}
stats_every_s: 1
engine: {{batch: 1, backend: {backend}}}
pipelines: {{toy: {pipeline}}}
streams:
"""


def write_config(
    folder: Path,
    broker: str,
    pipeline: Path,
    streams: dict[str, dict[str, Any]],
    *,
    backend: str = "auto",
) -> Path:
    """A node of these streams; each says at least its `source`."""
    lines = [CONFIG.format(broker=broker, pipeline=pipeline, backend=backend)]
    for name, keys in streams.items():
        given = {"id": name, "pipeline": "toy", "budget": {"fraction": 0.7}, **keys}
        lines.append(f"  - {json.dumps(given)}\n")
    path = folder / "node.yaml"
    path.write_text("".join(lines))
    return path


@contextlib.contextmanager
def node(
    folder: Path,
    broker: str,
    pipeline: Path,
    streams: dict[str, dict[str, Any]],
    *,
    environment: dict[str, str] | None = None,
    backend: str = "auto",
) -> Iterator[tuple[RunningNode, Ear]]:
    """A running node, and an ear that hears it."""
    ear = Ear(broker, "streamexit/faulty")
    config = write_config(folder, broker, pipeline, streams, backend=backend)
    running = RunningNode(config, environment=environment)
    try:
        yield running, ear
    finally:
        running.kill()
        ear.close()
