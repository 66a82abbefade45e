"""Cameras at real pace for a long time, each with troubles of its own, drawn at random.

python -m tests.faults.soak --minutes 120
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamexit.testing import write_toy_pipeline
from tests.conftest import Mosquitto
from tests.faults.proxy import Proxy, Weather
from tests.faults.rig import Camera, Ear, RunningNode, free_port, node

SEED = 7
WATCH_SECONDS = 5.0
CODECS = (("h264", "160x120"), ("mjpeg", "320x240"), ("h264", "320x180"))


@dataclass
class Sufferer:
    """A camera behind a proxy, and what happened to it."""

    name: str
    camera: Camera
    proxy: Proxy
    random: random.Random
    suffered: Counter[str] = field(default_factory=Counter)
    back_after: list[tuple[float, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def suffer(
        self, ear: Ear, rest: tuple[float, float], longest: float, over: threading.Event
    ) -> None:
        """Rest and suffer in turn until it is over."""
        while not over.wait(self.random.uniform(*rest)):
            name, begin, end = self.random.choice(self._faults())
            self.suffered[name] += 1
            begin()
            over.wait(self.random.uniform(0, longest))
            end()
            returned = time.monotonic()
            try:
                back = ear.result(self.name, since=returned)
            except AssertionError as silence:
                if self.camera.shows_something():
                    raise AssertionError(
                        f"{self.name} is not back after {name!r}; its camera is"
                    ) from silence
                self.broken.append(name)  # GStreamer's server did not survive it
                self.camera.kill()
                self.camera.start()
                continue
            self.back_after.append((back.at - returned, name))

    def _faults(self) -> list[tuple[str, Callable[[], None], Callable[[], None]]]:
        camera, proxy = self.camera, self.proxy

        def weather(**changes: Any) -> Callable[[], None]:
            def begin() -> None:
                proxy.weather = Weather(**changes)

            return begin

        def restart_as_another() -> None:
            codec, size = self.random.choice(CODECS)
            camera.start(codec=codec, size=size)

        def refuse() -> None:
            proxy.weather = Weather(refuse=True)
            proxy.cut(reset=True)

        clear = weather()
        return [
            ("killed", camera.kill, restart_as_another),
            ("frozen", camera.freeze, camera.thaw),
            ("cut", proxy.cut, clear),
            ("reset", lambda: proxy.cut(reset=True), clear),
            ("refused", refuse, clear),
            ("held up", weather(held=True), clear),
            ("half open", weather(silent=True), clear),
            ("delayed", weather(delay=0.02), clear),
            ("rate limited", weather(bytes_per_second=4000), clear),
            ("damaged", weather(corrupt=0.05), clear),
        ]


@dataclass
class Report:
    """What a soak found.

    Attributes:
        seconds: How long it took.
        streams: Summary of the node, per stream.
        suffered: Faults, over all cameras.
        back_after: Seconds from the end of each fault to the next result, with its name; sorted.
        broken: Faults after which a camera itself served nobody any more; it was started again.
        resources: Threads, descriptors, memory in bytes: early, and at the end.
        stderr: What the node complained about.
    """

    seconds: float
    streams: dict[str, Any]
    suffered: Counter[str]
    back_after: list[tuple[float, str]]
    broken: list[str]
    resources: list[dict[str, int]]
    stderr: str

    @property
    def lost(self) -> int:
        """Frames that are in no book."""
        return sum(
            s["frames"] - s["answered"] - sum(s["dropped"].values()) for s in self.streams.values()
        )


def soak(
    folder: Path,
    broker: str,
    pipeline: Path,
    seconds: float,
    *,
    rest: tuple[float, float] = (5.0, 25.0),
    longest: float = 20.0,
    seed: int = SEED,
) -> Report:
    """Four cameras, one of them decoded in a process of its own."""
    with ExitStack() as stack:
        sufferers = []
        for i in range(4):
            camera = Camera(rate=10)
            stack.callback(camera.kill)
            camera.start()
            proxy = Proxy(camera.port, seed=seed + i)
            stack.callback(proxy.close)
            sufferers.append(Sufferer(f"cam{i}", camera, proxy, random.Random(seed + i)))
        streams: dict[str, dict[str, Any]] = {
            s.name: {
                "source": f"rtsp://127.0.0.1:{s.proxy.port}/stream",
                "decode": "process" if i == 0 else "thread",
            }
            for i, s in enumerate(sufferers)
        }
        started = time.monotonic()
        running, ear = stack.enter_context(node(folder, broker, pipeline, streams))
        for one in sufferers:
            ear.result(one.name, since=started)
        over = threading.Event()
        threads = [
            threading.Thread(target=one.suffer, args=(ear, rest, longest, over), daemon=True)
            for one in sufferers
        ]
        for thread in threads:
            thread.start()
        resources = _watch(running, ear, seconds, threads)
        over.set()
        for thread in threads:
            thread.join()
        summary, stderr = running.stop()
        return Report(
            time.monotonic() - started,
            summary["streams"],
            sum((one.suffered for one in sufferers), Counter()),
            sorted((pair for one in sufferers for pair in one.back_after), reverse=True),
            [name for one in sufferers for name in one.broken],
            resources,
            stderr,
        )


def _watch(
    running: RunningNode, ear: Ear, seconds: float, threads: list[threading.Thread]
) -> list[dict[str, int]]:
    """Look at the node now and then; the first look comes after a tenth of the time."""
    begun, seen = time.monotonic(), []
    while (passed := time.monotonic() - begun) < seconds:
        time.sleep(min(WATCH_SECONDS, seconds - passed))
        assert all(thread.is_alive() for thread in threads), "a camera did not come back"
        if passed > seconds / 10:
            seen.append(running.resources())
        ear.forget(older_than=time.monotonic() - 60)
    return seen


def describe(report: Report) -> str:
    """As Markdown."""
    first, last = report.resources[0], report.resources[-1]
    peak = {key: max(r[key] for r in report.resources) for key in first}
    faults = ", ".join(f"{name} {count}" for name, count in report.suffered.most_common())
    times = [seconds for seconds, _ in report.back_after]
    lines = [
        f"{report.seconds / 60:.0f} minutes, {sum(report.suffered.values())} faults ({faults}).",
        "",
        "| | early | end | most |",
        "|---|---|---|---|",
        *(f"| {key} | {first[key]} | {last[key]} | {peak[key]} |" for key in first),
        "",
        "| stream | frames | answered | dropped | reconnects | abandoned threads |",
        "|---|---|---|---|---|---|",
    ]
    for name, s in report.streams.items():
        dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(s["dropped"].items())) or "0"
        lines.append(
            f"| {name} | {s['frames']} | {s['answered']} | {dropped} | {s['reconnects']} "
            f"| {s['abandoned']} |"
        )
    late = sum(t > 3 for t in times)
    worst = "; ".join(f"{t:.1f} s after {name!r}" for t, name in report.back_after[:3])
    lines += [
        "",
        f"Frames that are in no book: {report.lost}. From the end of a fault to the next result: median "
        f"{sorted(times)[len(times) // 2]:.2f} s, more than 3 s in {late} of {len(times)}; the longest "
        f"{worst}. Cameras that served nobody any more after a fault, asked directly, and were started anew: "
        f"{len(report.broken)} ({', '.join(report.broken) or 'none'}).",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run one, print what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--out", type=Path, help="also write it there")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    broker = Mosquitto(folder, free_port())
    broker.start()
    try:
        pipeline = write_toy_pipeline(folder / "toy")
        report = soak(folder, broker.url, pipeline, 60 * arguments.minutes)
    finally:
        broker.kill()
    print(text := describe(report))
    print(json.dumps(report.resources[:: max(1, len(report.resources) // 20)]))
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
