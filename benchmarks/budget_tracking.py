"""Do budgets hold? `python -m benchmarks.budget_tracking --data FOLDER`, all tables of docs/budgets.md.

The controller is the node's; only the frames come from traces (`benchmarks.drift`).

N: frames, K: exits, W: window in frames.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift import KINDS, SHAPES, Seen, Traces
from benchmarks.shared_device import shared_device
from streamexit.budget.controller import PRIOR_SCORES, BudgetController
from streamexit.budget.score_window import ScoreWindow
from streamexit.budget.shadow import GRID, KEPT, ShadowFrame, ShadowLog, agreement_at, agreement_now
from streamexit.budget.terms import Terms
from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.thresholds import ThresholdTable, expit, logit

W = 300
BUDGETS = (0.35, 0.5, 0.7)
Exits = NDArray[np.int64]


def ours(table: ThresholdTable, scores: Floats, budget: float, *, strict: bool = False) -> Exits:
    """The controller of the node."""
    controller = BudgetController(table, Terms(budget, window=W, strict=strict))
    exits = []
    for i, row in enumerate(scores.tolist()):
        exits.append(controller.walk(float(i), row)[1])
    return np.array(exits)


def frozen(table: ThresholdTable, scores: Floats, budget: float) -> Exits:
    """The thresholds that fit the budget on calibration data, for ever."""
    reached = scores >= np.array(table.at(budget))
    reached[:, -1] = True
    return np.asarray(reached.argmax(1))


def quantiles(table: ThresholdTable, scores: Floats, budget: float) -> Exits:
    """Each exit's share of the last 256 scores there, mixed with the table as the controller does."""
    windows = [ScoreWindow() for _ in range(scores.shape[1] - 1)]
    exits = []
    for row in scores.tolist():
        k = 0
        while k < len(windows):
            own, n = windows[k], len(windows[k])
            prior, share = table.logit_threshold(budget, k), table.leaving_share(budget, k)
            recent = logit(own.reached_by(share)) if n and 0 < share < 1 else prior
            threshold = expit(prior + n / (n + PRIOR_SCORES) * (recent - prior))
            own.add(row[k])
            if row[k] >= threshold:
                break
            k += 1
        exits.append(k)
    return np.array(exits)


def integral(table: ThresholdTable, scores: Floats, budget: float) -> Exits:
    """U <- u - eta (c - B) along the table, eta = 10 / W."""
    u, exits = budget, []
    for row in scores.tolist():
        k = 0
        while row[k] < table.threshold(u, k):
            k += 1
        exits.append(k)
        u -= 10 / W * (table.fractions[k] - budget)
    return np.array(exits)


@dataclass(frozen=True)
class Contender:
    """Who holds a budget, with whose policy."""

    label: str
    policy: str
    play: Callable[[ThresholdTable, Floats, float], Exits]


CONTENDERS = (
    Contender("frozen EENet thresholds", "eenet", frozen),
    Contender("frozen thresholds of direct search", "direct", frozen),
    Contender("window quantiles alone", "direct", quantiles),
    Contender("integral control alone", "direct", integral),
    Contender("streamexit", "direct", ours),
    Contender(
        "streamexit, strict", "direct", lambda table, scores, b: ours(table, scores, b, strict=True)
    ),
)


def window_errors(costs: Floats, budget: float) -> Floats:
    """Relative error of every window of W frames."""
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    return np.asarray((sums[W:] - sums[:-W]) / W / budget - 1)


def drift(traces: Traces) -> Iterator[str]:
    """Table 1."""
    yield "| who | budget | mean off by | worst window | first window after a step | top-1 |"
    yield "|---|---|---|---|---|---|"
    cases = [(kind, shape) for kind in KINDS for shape in SHAPES]
    for contender in CONTENDERS:
        table = traces.table(contender.policy)
        for budget in BUDGETS:
            means, worst, settled, right = [], [], [], []
            for kind, shape in cases:
                seen = traces.cifar(kind, shape)
                exits = contender.play(table, seen.scores[contender.policy], budget)
                costs = np.array(table.fractions)[exits]
                errors = window_errors(costs, budget)
                means.append(costs.mean() / budget - 1)
                worst.append(errors[np.abs(errors).argmax()])
                if shape == "step":
                    settled.append(errors[len(costs) // 2])
                right.append(seen.quality[np.arange(len(exits)), exits].mean())
            yield (
                f"| {contender.label} | {budget:.0%} | {_largest(means)} | {_largest(worst)} | "
                f"{_largest(settled)} | {np.mean(right):.2%} |"
            )


def _largest(errors: list[float]) -> str:
    return f"{max(errors, key=abs):+.2%}"


def skipping(traces: Traces, clips: list[Path]) -> Iterator[str]:
    """Table 2: the full network on every n-th frame, its answer repeated, at the same cost."""
    yield "| frames | n | skipping | streamexit |"
    yield "|---|---|---|---|"
    table = traces.table("direct")
    clean = traces.cifar("clean", "none")
    streams = {"CIFAR-10 test frames (top-1)": clean}
    streams |= {f"{c.stem} (agreement with the full network)": traces.clip(c) for c in clips}
    for title, seen in streams.items():
        rows = np.arange(len(seen.quality))
        if seen is clean:
            rows = np.random.default_rng(5).permutation(rows)
        for n in (2, 3):
            exits = ours(table, seen.scores["direct"][rows], 1 / n)
            own = seen.quality[rows, exits].mean()
            yield f"| {title} | {n} | {_skipped(seen, rows, n):.2%} | {own:.2%} |"


def _skipped(seen: Seen, rows: NDArray[np.int64], n: int) -> float:
    """How often the last full answer is right for the frame at hand."""
    kept = (np.arange(len(rows)) // n) * n
    return float((seen.last[rows[kept]] == seen.truth[rows]).mean())


def coverage(traces: Traces, seeds: int) -> Iterator[str]:
    """Table 3: how often the 95% interval holds the truth."""
    yield "| shadow | streams | shadow frames, mean | now: covered | half width | 20 points more: covered |"
    yield "|---|---|---|---|---|---|"
    table, budget = traces.table("direct"), 0.5
    cases = [(kind, shape) for kind in KINDS for shape in SHAPES] + [("clean", "none")]
    truths = {}
    for case in cases:
        seen = traces.cifar(*case)
        exits = ours(table, seen.scores["direct"], budget + 0.2)
        truths[case] = seen.agreement[np.arange(len(exits)), exits].mean()
    for share in (0.01, 0.02):
        now, half, more, counts = [], [], [], []
        for case in cases:
            seen = traces.cifar(*case)
            for seed in range(seeds):
                log, true = _with_shadow(table, seen, budget, share, f"{case}{seed}")
                found = agreement_now(log.frames, table.fractions)
                (other,) = agreement_at(log.frames, table.fractions, [budget + 0.2])
                assert found is not None
                now.append(found.low <= true <= found.high)
                half.append((found.high - found.low) / 2)
                more.append(other.low <= truths[case] <= other.high)
                counts.append(len(log.frames))
        yield (
            f"| {share:.0%} | {len(now)} | {np.mean(counts):.0f} | {np.mean(now):.1%} | "
            f"{100 * np.mean(half):.1f} points | {np.mean(more):.1%} |"
        )


def _with_shadow(
    table: ThresholdTable, seen: Seen, budget: float, share: float, name: str
) -> tuple[ShadowLog, float]:
    """The shadow frames of a stream, and the true agreement of what its scores decide."""
    controller = BudgetController(table, Terms(budget, window=W), shadow=share, stream_id=name)
    log, exits = ShadowLog(), []
    for i, row in enumerate(seen.scores["direct"].tolist()):
        passage, _ = controller.walk(float(i), row)
        exits.append(passage.leaves_at)
        if passage.shadow:
            log.add(
                ShadowFrame(
                    passage.scores,
                    tuple(seen.agreement[i]),
                    passage.leaves_at or 0,
                    passage.elsewhere,
                    passage.assumed,
                )
            )
    return log, float(seen.agreement[np.arange(len(exits)), np.array(exits, int)].mean())


def long_run(traces: Traces, frames: int) -> Iterator[str]:
    """Table 4: a million frames; what a decision and a stream cost."""
    table = traces.table("direct")
    scores = np.concatenate(
        [traces.cifar(kind, shape).scores["direct"] for kind in KINDS for shape in SHAPES]
    ).tolist()
    costs = table.fractions
    controller, spent = BudgetController(table, Terms(0.5, window=W)), 0.0
    began = time.process_time()
    for i in range(frames):
        passage, k = controller.walk(i / 25, scores[i % len(scores)])
        controller.settled(passage, k)
        spent += costs[k]
    seconds = time.process_time() - began
    yield f"| frames | {frames} |"
    yield "|---|---|"
    yield f"| spent in all, off by | {spent / frames / 0.5 - 1:+.4%} |"
    yield f"| processor time per frame | {1e6 * seconds / frames:.1f} us |"
    many, each = 10_000, 2 * W
    before = _resident()
    streams = [
        BudgetController(table, Terms(0.5, window=W), shadow=0.01, stream_id=str(i))
        for i in range(many)
    ]
    off = []
    for s, one in enumerate(streams):
        total = 0.0
        for i in range(each):
            passage, k = one.walk(i / 25, scores[(17 * s + i) % len(scores)])
            one.settled(passage, k)
            total += costs[k]
        off.append(abs(total / each / 0.5 - 1))
    size = _resident() - before
    yield f"| streams in one process, {each} frames each | {many} |"
    yield f"| memory per stream | {size / many / 1024:.1f} KiB |"
    yield f"| and for {KEPT} shadow frames, once there are so many | {_log_size(scores) / 1024:.0f} KiB |"
    yield f"| mean of a stream off by: median, worst | {np.median(off):.2%}, {max(off):.2%} |"


def _log_size(scores: list[list[float]]) -> float:
    """Bytes of a full shadow log."""
    logs, before = [], _resident()
    for n in range(300):
        log = ShadowLog()
        for i in range(KEPT):
            seen = tuple(score + n for score in scores[i])
            log.add(ShadowFrame(seen, (0.0, 1.0, 1.0), i % 3, tuple([i % 3] * GRID), 0.5))
        logs.append(log)
    return (_resident() - before) / len(logs)


def _resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Parse, make what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--pipeline", type=Path, default=Path("pipelines/cifar10-resnet20"))
    parser.add_argument("--traces", type=Path, default=Path("out/drift"), help="kept here")
    parser.add_argument("--seeds", type=int, default=20, help="of table 3")
    parser.add_argument("--frames", type=int, default=1_000_000, help="of table 4")
    parser.add_argument("--only", default="", help="drift, skipping, coverage, shared or long")
    options = parser.parse_args()
    traces = Traces(options.pipeline, options.data, options.traces)
    clips = sorted((options.data / "videos").iterdir())
    tables: dict[str, Callable[[], Iterator[str]]] = {
        "drift": lambda: drift(traces),
        "skipping": lambda: skipping(traces, clips),
        "coverage": lambda: coverage(traces, options.seeds),
        "shared": lambda: shared_device(traces),
        "long": lambda: long_run(traces, options.frames),
    }
    for name, lines in tables.items():
        if options.only in name:
            print(f"\n{name}:\n", flush=True)
            for line in lines():
                print(line, flush=True)


if __name__ == "__main__":
    main()
