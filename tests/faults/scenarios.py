"""What is done to cameras and networks, and what is measured meanwhile.

The tests run these with short absences, `python -m tests.faults` with long ones, for the table in
docs/reliability.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.proxy import Proxy, Weather
from tests.faults.rig import Camera, Ear, RunningNode, node

PASSWORD = "s3cr:t@/#?%&"
RATE = 15
QUIET_SECONDS = 5.0
"""Between two faults, and to see how fast the streams are when all is well."""


@dataclass(frozen=True)
class Outcome:
    """What a fault did.

    Attributes:
        fault: In words.
        others: Slowest other stream during the fault, as a share of its own rate before.
        back_after: Seconds from the camera's return to the first result.
        states: Of the mistreated stream: (state, reason), each time they changed.
    """

    fault: str
    others: float
    back_after: float
    states: list[tuple[str, str]]


@dataclass
class Street:
    """Four cameras and their node; the fourth camera is the one that suffers."""

    running: RunningNode
    ear: Ear
    victim: Camera
    proxy: Proxy

    OTHERS = ("one", "two", "three")

    def suffers(
        self, fault: str, begin: Callable[[], None], end: Callable[[], None], away: float
    ) -> Outcome:
        """Let something happen to the fourth camera for `away` seconds."""
        calm = time.monotonic()
        self.ear.result("four", since=calm)
        time.sleep(QUIET_SECONDS)
        begun = time.monotonic()
        usual = {name: self.ear.rate(name, calm, begun) for name in self.OTHERS}
        begin()
        time.sleep(away)
        end()
        returned = time.monotonic()
        back = self.ear.until(
            lambda one: (one.stream, one.leaf) == ("four", "result"), since=returned
        )
        self.ear.state("four", "online", since=returned)
        time.sleep(max(0.0, begun + QUIET_SECONDS - time.monotonic()))
        ended = time.monotonic()
        others = min(self.ear.rate(name, begun, ended) / usual[name] for name in self.OTHERS)
        return Outcome(fault, others, back.at - returned, self.ear.states("four", since=begun))


@contextmanager
def street(folder: Path, broker: str, pipeline: Path, **keys: Any) -> Iterator[Street]:
    """Start everything; `keys` are of the fourth stream."""
    with ExitStack() as stack:
        cameras = [Camera(rate=RATE, pattern=p) for p in ("smpte", "snow", "ball", "ball")]
        victim = cameras[3]
        for camera in cameras:
            stack.callback(camera.kill)
        for camera in cameras[:3]:
            camera.start()
        victim.start(user="viewer", password=PASSWORD)
        proxy = Proxy(victim.port)
        stack.callback(proxy.close)
        four = {
            "source": {
                "url": f"rtsp://127.0.0.1:{proxy.port}/stream",
                "username": "viewer",
                "password": "${CAMERA_PASSWORD}",
            },
            **keys,
        }
        streams: dict[str, dict[str, Any]] = {
            name: {"source": camera.url}
            for name, camera in zip(Street.OTHERS, cameras, strict=False)
        }
        environment = {"CAMERA_PASSWORD": PASSWORD}
        started = time.monotonic()
        running, ear = stack.enter_context(
            node(folder, broker, pipeline, {**streams, "four": four}, environment=environment)
        )
        for name in (*Street.OTHERS, "four"):
            ear.result(name, since=started)
        yield Street(running, ear, victim, proxy)


def camera_faults(scene: Street, away: float) -> Iterator[Outcome]:
    """What cameras do."""
    victim = scene.victim
    yield scene.suffers("killed, then started again", victim.kill, victim.start, away)
    yield scene.suffers("frozen, sockets open", victim.freeze, victim.thaw, away)

    def change_password() -> None:
        victim.kill()
        victim.start(password="another")

    def change_it_back() -> None:
        victim.kill()
        victim.start(password=PASSWORD)

    yield scene.suffers("another password", change_password, change_it_back, away)

    def become_another() -> None:
        victim.kill()
        victim.start(codec="mjpeg", size="320x240")

    yield scene.suffers("another codec and size at once", become_another, lambda: None, 0.0)

    def restart() -> None:
        victim.kill()
        victim.start(codec="h264", size="160x120")

    yield scene.suffers("restarted, timestamps from zero", restart, lambda: None, 0.0)


def network_faults(scene: Street, away: float) -> Iterator[Outcome]:
    """What networks do."""
    proxy = scene.proxy

    def weather(**changes: Any) -> Callable[[], None]:
        def begin() -> None:
            proxy.weather = Weather(**changes)

        return begin

    def clear() -> None:
        proxy.weather = Weather()

    def cut(reset: bool) -> Callable[[], None]:
        return lambda: proxy.cut(reset=reset)

    yield scene.suffers("connection cut", cut(False), lambda: None, 0.0)
    yield scene.suffers("connection reset", cut(True), lambda: None, 0.0)

    def refuse() -> None:
        proxy.weather = Weather(refuse=True)
        proxy.cut(reset=True)

    yield scene.suffers("every new connection reset", refuse, clear, away)
    yield scene.suffers("held up, then all at once", weather(held=True), clear, away)
    yield scene.suffers("half open: bytes vanish", weather(silent=True), clear, away)
    yield scene.suffers("delayed by 20 ms a chunk", weather(delay=0.02), clear, away)
    yield scene.suffers("rate limited to 4 kB/s", weather(bytes_per_second=4000), clear, away)
    yield scene.suffers("a tenth of the chunks damaged", weather(corrupt=0.1), clear, away)
