"""How long stages take on a device, by batch size, and what batch size is enough.

K: exits.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from streamexit.backends.backend import Backend, Pending, RowState
from streamexit.errors import PipelineError
from streamexit.exits import CostTable
from streamexit.preprocessing import Image

NEARLY_BEST = 1.07
"""A batch size is enough when no other is faster per frame by more than this factor: larger ones cost
latency and memory."""

WORTH_GROWING = 0.97
"""Larger batches are tried as long as one more doubling makes some stage faster by this factor."""

FIRST_DOUBLINGS = 2
"""Batches of 1, 2 and 4 rows are always tried."""

SECONDS = 3.0
MOST_SWEEPS = 15
"""Through all sizes: as many as fit into `SECONDS`, one at least: what takes long is disturbed little."""

LONGEST_BATCH_SECONDS = 0.25
"""At one stage: larger batches than take so long are not tried, whatever they would gain."""

LEAST_ROWS = 16
"""Per sweep and stage: less would be lost among the machine's other work."""

FORM = "streamexit.profile/1"


@dataclass(frozen=True)
class Profile:
    """Milliseconds of the device per frame.

    A device that answers F frames per second at a stage spends 1000 / F milliseconds on each,
    however many of them it has in hand at a time. So the streams of a device fit on it as long as
    the sum of frame rate x milliseconds stays below 1000.

    Attributes:
        device: See `Backend.device`.
        milliseconds: Batch size -> [K], of each stage alone.
    """

    device: str
    milliseconds: dict[int, tuple[float, ...]]

    def sizes(self) -> tuple[int, ...]:
        """[K]: the knee, the smallest batch that is nearly the fastest."""
        stages = range(len(next(iter(self.milliseconds.values()))))
        knees = []
        for k in stages:
            best = min(row[k] for row in self.milliseconds.values())
            knees.append(
                min(n for n, row in self.milliseconds.items() if row[k] <= NEARLY_BEST * best)
            )
        return tuple(knees)

    def costs(self) -> CostTable:
        """What it takes to reach each exit, at the knees."""
        total, per_exit = 0.0, []
        for k, size in enumerate(self.sizes()):
            total += self.milliseconds[size][k]
            per_exit.append(total)
        return CostTable("milliseconds", tuple(per_exit))

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        content = {"schema": FORM, **asdict(self)}
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read what `save` wrote.

        Raises:
            PipelineError: Not there, or something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != FORM:
                raise ValueError(f"schema {content['schema']!r} is not {FORM!r}")
            rows = {int(size): tuple(row) for size, row in content["milliseconds"].items()}
            return cls(content["device"], rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PipelineError(f"{path}: not a readable profile: {error}") from error


def measure(
    open_with: Callable[[int], Backend],
    pictures: Sequence[Image],
    *,
    most: int,
    clock: Callable[[], float],
) -> Profile:
    """Time the stages, with as many batches in flight as the device takes.

    Args:
        open_with: A backend whose full batches have so many rows at all stages.
        pictures: Of the network's input size; what they show does not matter to the time.
        most: Largest batch size to try; sizes are powers of two.
        clock: Seconds.
    """
    timed: dict[int, list[tuple[float, ...]]] = {}
    sizes = [1 << i for i in range(FIRST_DOUBLINGS + 1) if 1 << i <= most]
    while sizes:
        backends = {size: open_with(size) for size in sizes}
        begin = clock()
        for size, backend in backends.items():
            _time_stages(backend, size, pictures, clock)  # warms up
        sweeps = min(max(int(SECONDS / (clock() - begin)), 1), MOST_SWEEPS)
        for _ in range(sweeps):
            for size, backend in backends.items():  # in turn: what disturbs one disturbs all
                timed.setdefault(size, []).append(_time_stages(backend, size, pictures, clock))
        device = next(iter(backends.values())).device
        rows = {size: _fastest(times) for size, times in timed.items()}
        largest = sizes[-1]
        sizes = [2 * largest] if 2 * largest <= most and _still_gains(rows, largest) else []
    return Profile(device, rows)


def _fastest(sweeps: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Whatever else the machine does can only add to a time."""
    return tuple(min(column) for column in zip(*sweeps, strict=True))


def _still_gains(rows: dict[int, tuple[float, ...]], size: int) -> bool:
    if 2 * size * max(rows[size]) > 1000 * LONGEST_BATCH_SECONDS:
        return False
    pairs = zip(rows[size], rows[size // 2], strict=True) if size > 1 else []
    return any(now < WORTH_GROWING * before for now, before in pairs)


def _time_stages(
    backend: Backend, size: int, pictures: Sequence[Image], clock: Callable[[], float]
) -> tuple[float, ...]:
    """Milliseconds per frame, of each stage alone, with as many batches in flight as may be."""
    batches = max(backend.depth + 2, -(-LEAST_ROWS // size))
    states: list[list[RowState]] = [
        [pictures[(b * size + i) % len(pictures)] for i in range(size)] for b in range(batches)
    ]
    times = []
    for k in range(backend.num_stages):
        begin = clock()
        states = _regrouped(_through(backend, k, states), size)
        times.append((clock() - begin) * 1000 / (batches * size))
    return tuple(times)


def _regrouped(batches: Sequence[list[RowState]], size: int) -> list[list[RowState]]:
    """Other rows together than before, as survivors are: that may have to be paid for."""
    rows = [row for batch in batches for row in batch]
    rows = rows[1:] + rows[:1]
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _through(backend: Backend, k: int, batches: Sequence[list[RowState]]) -> list[list[RowState]]:
    """Run batches through stage k, `depth` at a time."""
    running: deque[Pending] = deque()
    after = []
    for batch in batches:
        if len(running) == backend.depth:
            after.append(list(running.popleft().result().states))
        running.append(backend.submit(k, batch))
    after += [list(pending.result().states) for pending in running]
    return after
