"""Sixteen unequal cameras and one device: shared out by gain, or split equally.

Simulated second by second with the node's own controllers and its own `DeviceShare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.drift import Seen, Traces
from streamexit.budget.controller import BudgetController
from streamexit.budget.shadow import ShadowFrame, ShadowLog
from streamexit.budget.sharing import Claim, DeviceShare, jain_index
from streamexit.budget.terms import Terms
from streamexit.scheduling.thresholds import ThresholdTable

SECONDS = 1200
SHARE_EVERY = 10
FULL_MS = 4.0
EQUAL = 0.5
W = 300
SURE = 0.9
"""Score of the last exit from which its answer is taken for right."""

JOINS, LEAVES = 400, 800
"""When the last stream comes, and the first goes."""


@dataclass
class Camera:
    """One stream of the simulation.

    Attributes:
        name: Which.
        group: What it shows.
        rate: Frames per second.
        seen: Its frames, from `begin` on, again and again.
        begin: See `seen`.
    """

    name: str
    group: str
    rate: int
    seen: Seen
    begin: int
    controller: BudgetController = field(init=False)
    log: ShadowLog = field(default_factory=ShadowLog)
    frames: int = 0
    right: float = 0.0
    agreed: float = 0.0
    sure: int = 0
    agreed_sure: float = 0.0
    spent: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)

    def play_second(self, table: ThresholdTable, now: float) -> None:
        """Decide the frames of a second."""
        for j in range(self.rate):
            i = (self.begin + self.frames) % len(self.seen.quality)
            row = self.seen.scores["direct"][i].tolist()
            passage, k = self.controller.walk(now + j / self.rate, row)
            self.frames += 1
            self.right += self.seen.quality[i, k]
            self.agreed += self.seen.agreement[i, k]
            if row[-1] >= SURE:
                self.sure += 1
                self.agreed_sure += self.seen.agreement[i, k]
            self.spent.append(table.fractions[k])
            self.allowed.append(self.controller.terms.amount)
            if passage.shadow and passage.leaves_at is not None:
                agreement = tuple(self.seen.agreement[i])
                self.log.add(
                    ShadowFrame(
                        passage.scores,
                        agreement,
                        passage.leaves_at,
                        passage.elsewhere,
                        passage.assumed,
                    )
                )

    def worst_window(self, begin: float, end: float) -> float:
        """Between two seconds: what a window cost, against what its frames were allowed."""
        part = slice(int(begin * self.rate), int(end * self.rate))
        cost = np.concatenate([[0.0], np.cumsum(self.spent[part])])
        allowed = np.concatenate([[0.0], np.cumsum(self.allowed[part])])
        errors = (cost[W:] - cost[:-W]) / (allowed[W:] - allowed[:-W]) - 1
        return float(np.abs(errors).max()) if len(errors) else 0.0


def cameras(traces: Traces) -> list[Camera]:
    """Sixteen, of five kinds."""
    groups = {
        "clear": (traces.cifar("clean", "none"), 6),
        "flat light": (traces.spoilt_evenly("contrast", 0.6), 3),
        "dusk": (traces.spoilt_evenly("darkness", 0.7), 3),
        "rain": (traces.spoilt_evenly("noise", 0.4), 2),
        "dirty lens": (traces.spoilt_evenly("blur", 1.6), 2),
    }
    found: list[Camera] = []
    for group, (seen, count) in groups.items():
        for _ in range(count):
            n = len(found)
            found.append(Camera(f"{n:02}", group, (5, 10, 15, 25)[n % 4], seen, 617 * n))
    return found


def simulate(traces: Traces, *, shared: bool, changing: bool = False) -> list[Camera]:
    """All cameras for `SECONDS`; with `changing` the last joins late and the first leaves early."""
    table, streams = traces.table("direct"), cameras(traces)
    capacity = sum(EQUAL * FULL_MS * camera.rate for camera in streams)
    share = DeviceShare(capacity)
    present: list[Camera] = []

    def join(camera: Camera) -> None:
        admitted = share.join(Claim(camera.name, camera.rate, FULL_MS, EQUAL, table.low, 1.0))
        assert admitted.fraction is not None
        terms = Terms(admitted.fraction, window=W)
        camera.controller = BudgetController(table, terms, shadow=0.01, stream_id=camera.name)
        present.append(camera)

    for camera in streams[: -1 if changing else None]:
        join(camera)
    for second in range(SECONDS):
        if changing and second == JOINS:
            join(streams[-1])
            _apply(share, present)
        if changing and second == LEAVES:
            share.leave(present.pop(0).name)
        if shared and second % SHARE_EVERY == 0:
            share.rebalance(
                {camera.name: camera.log.frames for camera in present},
                {camera.name: table.fractions for camera in present},
            )
            _apply(share, present)
        for camera in present:
            camera.play_second(table, float(second))
    return streams


def _apply(share: DeviceShare, present: list[Camera]) -> None:
    for camera in present:
        terms = replace(camera.controller.terms, amount=share.fractions[camera.name])
        camera.controller.change(terms=terms)


def shared_device(traces: Traces) -> Iterator[str]:
    """Table 5."""
    yield "| device time | all: cost | agreement | where the full network is sure | top-1 | Jain (agreement) | worst stream | worst window |"
    yield "|---|---|---|---|---|---|---|---|"
    runs = {name: simulate(traces, shared=name == "shared") for name in ("equal split", "shared")}
    for name, streams in runs.items():
        frames = sum(camera.frames for camera in streams)
        each = [camera.agreed / camera.frames for camera in streams]
        yield (
            f"| {name} | {sum(sum(c.spent) for c in streams) / frames:.2%} | "
            f"{sum(c.agreed for c in streams) / frames:.2%} | "
            f"{sum(c.agreed_sure for c in streams) / sum(c.sure for c in streams):.2%} | "
            f"{sum(c.right for c in streams) / frames:.2%} | {jain_index(each):.4f} | "
            f"{min(each):.2%} | {max(c.worst_window(0, SECONDS) for c in streams):.2%} |"
        )
    yield ""
    yield "| stream | streams | equal split: cost, agreement, top-1 | shared: cost, agreement, top-1 |"
    yield "|---|---|---|---|"
    for group in dict.fromkeys(camera.group for camera in runs["shared"]):
        parts = [[c for c in streams if c.group == group] for streams in runs.values()]
        yield f"| {group} | {len(parts[0])} | {_sums(parts[0])} | {_sums(parts[1])} |"
    yield ""
    streams = simulate(traces, shared=True, changing=True)
    others = streams[1:-1]
    yield "| others' worst window | |"
    yield "|---|---|"
    for title, begin, end in (
        ("before", 0, JOINS),
        ("300 s after one joined", JOINS, JOINS + 300),
        ("300 s after one left", LEAVES, LEAVES + 300),
    ):
        yield f"| {title} | {max(c.worst_window(begin, end) for c in others):.2%} |"


def _sums(streams: list[Camera]) -> str:
    frames = sum(camera.frames for camera in streams)
    cost, agreed, right = (
        sum(values) / frames
        for values in (
            [sum(c.spent) for c in streams],
            [c.agreed for c in streams],
            [c.right for c in streams],
        )
    )
    return f"{cost:.1%}, {agreed:.1%}, {right:.1%}"
