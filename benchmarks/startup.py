"""How long commands take to begin: `python -m benchmarks.startup`.

Each row is a fresh process, from its start to its end. The rows take turns, so that what else the machine
does falls on all of them alike. The first turn warms the file cache and is not counted. The ratio is of
the best times to that of importing torch, because the best is what other programs disturb least.
`streamexit --help` should stay under 0.3 of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

UNIT = "import torch"
OURS = (sys.executable, "-m", "streamexit")
COMMANDS: dict[str, tuple[str, ...]] = {
    "Python alone": (sys.executable, "-c", ""),
    UNIT: (sys.executable, "-c", "import torch"),
    "streamexit --version": (*OURS, "--version"),
    "streamexit --help": (*OURS, "--help"),
    "streamexit run --help": (*OURS, "run", "--help"),
    "streamexit check configs/files.yaml": (*OURS, "check", "configs/files.yaml"),
}


def seconds_of(command: Sequence[str]) -> float:
    """From the start of a process to its end; a command that fails ends the measurement."""
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def measure(
    commands: Mapping[str, Sequence[str]],
    turns: int,
    *,
    run: Callable[[Sequence[str]], float] = seconds_of,
) -> dict[str, list[float]]:
    """Seconds of each turn, by row; one turn more is run before, and forgotten."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(turns + 1):
        for name, command in commands.items():
            seconds = run(command)
            if turn:
                found[name].append(seconds)
    return found


def table(found: Mapping[str, list[float]]) -> Iterator[str]:
    """A row each: best and median in milliseconds, and the best as a share of importing torch."""
    yield f"| process | best ms | median ms | best / best of {UNIT} |"
    yield "|---|---|---|---|"
    for name, seconds in found.items():
        best = min(seconds)
        cells = (f"{1000 * best:.0f}", f"{1000 * median(seconds):.0f}")
        yield f"| {name} | {' | '.join(cells)} | {best / min(found[UNIT]):.2f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    print("\n".join(table(measure(COMMANDS, options.turns))))


if __name__ == "__main__":
    main()
