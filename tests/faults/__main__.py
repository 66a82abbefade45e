"""Run the fault suite at length and write what was measured into docs/reliability.md.

python -m tests.faults            # about seventeen minutes, on a machine that does nothing else
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil

from streamexit.testing import write_toy_pipeline
from tests.conftest import ROOT, Mosquitto
from tests.faults.brokers import SCENARIOS, ledger, suffer, town
from tests.faults.latency import overload
from tests.faults.rig import free_port
from tests.faults.scenarios import Outcome, camera_faults, network_faults, street
from tests.faults.test_resources import MIB, Trial, resources
from tests.sources.servers import mjpeg_camera, web_server

EACH = ("faults", "resources", "latency", "brokers", "many")
MANY, MANY_RATE, MANY_SECONDS = 200, 2.0, 60.0
SMALL_SPOOL = 10_000_000
"""Bytes; so that the bound is reached early in an outage of an hour."""

PAGE = ROOT / "docs" / "reliability.md"


def faults_table(folder: Path, broker: str, pipeline: Path, away: float) -> str:
    """What happened to four cameras, one of which suffered."""
    outcomes: list[Outcome] = []
    with street(folder, broker, pipeline) as scene:
        outcomes += camera_faults(scene, away)
        outcomes += network_faults(scene, away)
        summary, _ = scene.running.stop()
    lines = [
        "| fault | slowest other stream | answers again after | what its status said |",
        "|---|---|---|---|",
    ]
    for outcome in outcomes:
        said = ", ".join(f"{state} ({why})" if why else state for state, why in outcome.states)
        print(outcome, flush=True)
        lines.append(
            f"| {outcome.fault} | {outcome.others:.0%} | {outcome.back_after:.1f} s | {said} |"
        )
    books = [
        f"{name}: {s['frames']} = {s['answered']} answered + "
        + (" + ".join(f"{n} {reason}" for reason, n in sorted(s["dropped"].items()) if n) or "0")
        for name, s in summary["streams"].items()
    ]
    return "\n".join([*lines, "", "The books of the four streams: " + "; ".join(books) + "."])


def resources_table(folder: Path) -> str:
    """What failed connects and reconnections leave behind."""
    lines = ["| | threads | descriptors | resident memory |", "|---|---|---|---|"]

    def measure(name: str, url: str, warm_up: int, count: int) -> None:
        trial = Trial(url)
        trial.attempts(warm_up)
        before = resources()
        trial.attempts(count)
        after = resources()
        trial.stop()
        threads, descriptors, memory = (b - a for a, b in zip(before, after, strict=True))
        lines.append(f"| {name} | {threads:+d} | {descriptors:+d} | {memory / MIB:+.1f} MiB |")

    for scheme in ("rtsp", "http", "tcp"):
        url = f"{scheme}://127.0.0.1:{free_port()}/stream"
        measure(f"1,000 failed connects, {scheme}", url, 200, 1000)
    jpeg = cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))[1].tobytes()
    with web_server(folder, {"/v": mjpeg_camera([jpeg] * 3, pause=0.0)}) as (url, _):
        measure("200 reconnections, MJPEG (the server's side included)", f"{url}/v", 60, 200)
    return "\n".join(lines)


def latency_table(folder: Path, broker: str, pipeline: Path, seconds: float) -> str:
    """How old answers are."""
    lines = [
        "| inference takes, of the time between two frames | answers | mean age by thirds | oldest | dropped |",
        "|---|---|---|---|---|",
    ]
    for times in (0.5, 5.0):
        here = folder / str(times)
        here.mkdir()
        seen = overload(here, broker, pipeline, times=times, seconds=seconds)
        thirds = ", ".join(f"{age:.2f}" for age in seen.thirds)
        dropped = ", ".join(f"{n} {why}" for why, n in sorted(seen.stream["dropped"].items()) if n)
        lines.append(
            f"| {times:g} times | {len(seen.ages)} | {thirds} s | {max(seen.ages):.2f} s | {dropped or 0} |"
        )
    return "\n".join(lines)


def brokers_table(folder: Path, pipeline: Path, seconds: float) -> str:
    """What became of the results of two streams when the broker failed."""
    lines = [
        "| what happened | results | missing | late | twice | out of order | frame rate, of before | "
        "retained topics |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for happen in SCENARIOS:
        here = folder / happen.__name__
        here.mkdir()
        with town(here, pipeline) as place:
            outage = suffer(place, happen, seconds)
        print(outage, flush=True)
        found = outage.ledger
        rate = f"{outage.rate_during / outage.rate_before:.0%}" if outage.rate_during else "-"
        lines.append(
            f"| {outage.name} | {found.got} | {found.missing} | {found.late} | {found.duplicates} "
            f"| {found.disordered} | {rate} | {'right' if outage.retained else 'wrong'} |"
        )
    return "\n".join(lines)


def many_table(folder: Path, pipeline: Path) -> str:
    """A node of very many streams."""
    here = folder / "many"
    here.mkdir()
    with town(here, pipeline, streams=MANY, rate=MANY_RATE) as place:
        inside = psutil.Process(place.node.process.pid)
        before, began = sum(inside.cpu_times()[:2]), time.monotonic()
        rate = place.rate(MANY_SECONDS)
        busy = (sum(inside.cpu_times()[:2]) - before) / (time.monotonic() - began)
        found, seen = ledger(list(place.collector.results)), place.node.resources()
    return "\n".join(
        [
            "| streams | frames/s wanted | answered | results got | missing | CPU of the node | threads | memory |",
            "|---|---|---|---|---|---|---|---|",
            f"| {MANY} | {MANY * MANY_RATE:.0f} | {rate:.0f} | {found.got} | {found.missing} "
            f"| {busy:.0%} of a core | {seen['threads']} | {seen['memory'] / MIB:.0f} MiB |",
        ]
    )


def away_table(folder: Path, pipeline: Path, minutes: float) -> str:
    """What a node takes while there is no broker, and its spool fills and overflows."""
    here = folder / "away"
    here.mkdir()
    lines = [
        "| minutes without a broker | resident memory | threads | descriptors | kept | lost |",
        "|---|---|---|---|---|---|",
    ]
    with town(here, pipeline, spool={"max_bytes": SMALL_SPOOL}) as place:
        place.cut_off()
        begun, shown = time.monotonic(), 0.0
        while shown <= minutes:
            time.sleep(max(0.0, begun + 60 * shown - time.monotonic()))
            seen, kept = place.node.resources(), place.metric("spool_results")
            lines.append(
                f"| {shown:.0f} | {seen['memory'] / MIB:.1f} MiB | {seen['threads']} | {seen['descriptors']} "
                f"| {kept:.0f} | {place.metric('results_lost_total'):.0f} |"
            )
            print(lines[-1], flush=True)
            shown += max(minutes / 12, 1.0)
    return "\n".join(lines)


def write(name: str, text: str) -> None:
    """Put a table between its marks in the page."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    assert rest, f"{PAGE} has no mark {name}"
    PAGE.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--away", type=float, default=20.0, help="seconds that a fault lasts")
    parser.add_argument("--only", choices=(*EACH, "away"))
    parser.add_argument("--minutes", type=float, default=60.0, help="of `--only away`")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds without a broker")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = Mosquitto(folder, free_port())
        broker.start()
        try:
            pipeline = write_toy_pipeline(folder / "toy")
            tables: dict[str, Callable[[], str]] = {
                "faults": lambda: faults_table(folder, broker.url, pipeline, arguments.away),
                "resources": lambda: resources_table(folder),
                "latency": lambda: latency_table(folder, broker.url, pipeline, 30.0),
                "brokers": lambda: brokers_table(folder, pipeline, arguments.outage),
                "many": lambda: many_table(folder, pipeline),
            }
            for title, make in tables.items():
                if arguments.only in (None, title):
                    write(title, make())
            if arguments.only == "away":  # takes an hour, and is not among the rest
                write("away", away_table(folder, pipeline, arguments.minutes))
        finally:
            broker.kill()
    print(f"{PAGE.relative_to(ROOT)} written after {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
