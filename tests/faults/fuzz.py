"""Damaged recordings by the thousand, each read by a decoder in a process of its own.

    python -m tests.faults.fuzz --minutes 10

What is looked for: anything but pictures, counted losses and an error with a reason. A decoder may
crash or hang: that is what the process is for, and it is counted; nothing else may.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from streamexit.errors import SourceError
from streamexit.sources.decode_process import ProcessSource
from streamexit.sources.source import Watch
from streamexit.testing import TOY_LABELS, TOY_PREPROCESSING
from tests.sources.servers import command

SEED = 20261121
LONGEST_SECONDS = 30.0

PICTURE = "-f lavfi -i testsrc2=s=96x64:r=25 -t 0.6"
RECORDINGS = {
    "h264.mp4": f"{PICTURE} -c:v libx264 -bf 2",
    "h264.mkv": f"{PICTURE} -c:v libx264",
    "h264.ts": f"{PICTURE} -c:v libx264",
    "h264.flv": f"{PICTURE} -c:v libx264",
    "hevc.mp4": f"{PICTURE} -c:v libx265 -x265-params log-level=none",
    "mpeg4.avi": f"{PICTURE} -c:v mpeg4 -bf 2",
    "mpeg2.mpg": f"{PICTURE} -c:v mpeg2video",
    "mjpeg.avi": f"{PICTURE} -c:v mjpeg",
    "vp8.webm": f"{PICTURE} -c:v libvpx",
    "vp9.webm": f"{PICTURE} -c:v libvpx-vp9",
    "ffv1.mkv": f"{PICTURE} -c:v ffv1",
    "prores.mov": f"{PICTURE} -c:v prores",
    "wmv2.asf": f"{PICTURE} -c:v wmv2",
    "theora.ogg": f"{PICTURE} -c:v libtheora",
    "picture.gif": f"{PICTURE}",
    "raw.h264": f"{PICTURE} -c:v libx264",
}


def make_recordings(folder: Path) -> list[Path]:
    """Small ones of many kinds."""
    made = []
    for name, arguments in RECORDINGS.items():
        path = folder / name
        subprocess.run(
            [command("ffmpeg"), "-v", "error", "-nostdin", "-y", *arguments.split(), str(path)],
            check=True,
        )
        made.append(path)
    return made


def flip_bits(data: bytearray, dice: random.Random, place: int, length: int) -> None:
    """Some, anywhere."""
    for _ in range(dice.randint(1, 40)):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def put_extreme(data: bytearray, dice: random.Random, place: int, length: int) -> None:
    """A number as large, or as small, as it can be."""
    data[place : place + 4] = dice.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))


def remove(data: bytearray, dice: random.Random, place: int, length: int) -> None:
    """A piece."""
    del data[place : place + length]


def repeat(data: bytearray, dice: random.Random, place: int, length: int) -> None:
    """A piece."""
    data[place:place] = data[place : place + length]


def cut_off(data: bytearray, dice: random.Random, place: int, length: int) -> None:
    """The end."""
    del data[max(1, place) :]


def put_noise(data: bytearray, dice: random.Random, place: int, length: int) -> None:
    """Over a piece."""
    data[place : place + length] = dice.randbytes(length)


def copy(data: bytearray, dice: random.Random, place: int, length: int) -> None:
    """A piece from elsewhere."""
    other = dice.randrange(len(data))
    data[place : place + length] = data[other : other + length]


DAMAGES = (flip_bits, put_extreme, remove, repeat, cut_off, put_noise, copy)


def damaged(content: bytes, dice: random.Random) -> bytes:
    """One to four kinds of damage."""
    data = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data))
        length = min(len(data) - place, dice.choice((1, 4, 16, 200, 2000)))
        dice.choice(DAMAGES)(data, dice, place, length)
        if not data:
            return b"\0"
    return bytes(data)


@dataclass
class Findings:
    """What came of it.

    Attributes:
        outcomes: Reason of the error, or "read", by number of cases.
        crashed: Cases whose decoder died: recording and seed.
        hung: Cases whose decoder had to be ended.
        wrong: Whatever must not be.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    crashed: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def try_one(recording: Path, seed: int, findings: Findings) -> None:
    """Damage a recording as `seed` says, and read it."""
    name = f"{recording.name} seed {seed}"
    with tempfile.NamedTemporaryFile(suffix=recording.suffix) as file:
        file.write(damaged(recording.read_bytes(), random.Random(seed)))
        file.flush()
        source = ProcessSource(
            file.name, preprocessing=TOY_PREPROCESSING, base=Path(), labels=TOY_LABELS
        )
        watch = Watch()
        keeper = threading.Timer(LONGEST_SECONDS, watch.stop)
        keeper.start()
        times: list[float] = []
        try:
            times.extend(p.pts_seconds for p in source.pictures(lambda reason: None, watch))
            findings.outcomes["hung" if watch.stopped else "read"] += 1
        except SourceError as error:
            findings.outcomes[error.reason] += 1
            if error.reason == "crashed":
                findings.crashed.append(name)
            elif error.reason == "internal":
                findings.wrong.append(f"{name}: {error}")
        finally:
            keeper.cancel()
        if watch.stopped:
            findings.hung.append(name)
        if not all(a < b for a, b in pairwise(times)):
            findings.wrong.append(f"{name}: times do not rise")


def fuzz(folder: Path, seconds: float, *, workers: int = 2, first_seed: int = SEED) -> Findings:
    """Go on for so long."""
    recordings, findings = make_recordings(folder), Findings()
    over = time.monotonic() + seconds
    seeds = iter(range(first_seed, first_seed + 1_000_000))
    lock = threading.Lock()

    def work() -> None:
        while time.monotonic() < over:
            with lock:
                seed = next(seeds)
            try_one(recordings[seed % len(recordings)], seed, findings)

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()
    return findings


def main() -> None:
    """Run it and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        findings = fuzz(Path(folder), 60 * arguments.minutes, first_seed=arguments.seed)
    print(f"{findings.outcomes.total()} damaged recordings, seeds from {arguments.seed} on")
    for outcome, count in findings.outcomes.most_common():
        print(f"  {outcome}: {count}")
    for what in ("crashed", "hung", "wrong"):
        print(f"{what}: {getattr(findings, what) or 'none'}")
    if findings.wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
