"""The tables of docs/results.md: `python -m benchmarks.reproduce_tables`.

For each row of `ROWS`: record the traces of a network (unless they are there, of its weights), compare
every method on them (unless that is done on these traces), then write the page from what is there. So it
can be stopped and started again; `--fresh ROW` forgets what a row found. Every figure on the page comes
from here.

Traces of the text rows come from `python -m benchmarks.text.make_traces`, those of the public
ResNet-56 from `python -m benchmarks.public_resnet56`; rows without traces are left out and named.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.segmentation_table import TRACES, trace_of
from streamexit.calibration.compare import compare
from streamexit.calibration.figures import draw_comparison
from streamexit.calibration.outcomes import Comparison, as_json, difference
from streamexit.calibration.record import record_part
from streamexit.calibration.trace import Trace
from streamexit.models.pipeline import load_pipeline, sha256
from streamexit.scheduling.methods import METHODS, find_method, methods_for

SEEDS = 3
FOUND = Path("out/tables")
PAGE = Path("docs/results.md")
OURS = "direct"
SPREAD = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
COMBINATIONS = (
    "certainty+search",
    "vote+search",
    "stopping+search",
    "gate+search",
)
WORDS = {"ahead": "ahead of", "level": "level with", "behind": "behind"}
PUBLISHED = [name for name, method in METHODS.items() if "this project" not in method.source]


@dataclass(frozen=True)
class Row:
    """One network on one data set.

    Attributes:
        name: Of files.
        title: Of the section.
        note: What a reader must know.
        budgets: Shares of the full cost.
        pipeline: Whose traces are recorded here; else they are made elsewhere.
        drawn: Whether its picture belongs on the page.
        split: Whether there is one trace, split in two halves, because nothing else can calibrate.
    """

    name: str
    title: str
    note: str
    budgets: tuple[float, ...] = SPREAD
    pipeline: str | None = None
    split: bool = False
    drawn: bool = False


ROWS = (
    Row(
        "cifar10-multi-scale",
        "CIFAR-10, multi-scale ResNet (K = 4)",
        "Coarse features from the first exit on (MSDNet's idea, joined by addition), 55 epochs: the "
        "best network here. Its second exit, at 44% of the cost, is as good as its last, so above that "
        "there is nothing to choose, and the last two stages buy nothing.",
        (0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.6, 0.8),
        "pipelines/cifar10-multi-scale",
        drawn=True,
    ),
    Row(
        "cifar10-resnet20",
        "CIFAR-10, ResNet-20 (K = 3)",
        "Early exits with light heads, trained jointly, 80 epochs.",
        (0.3, 1 / 3, 0.4, 0.5, 0.6, 0.7, 0.8),
        pipeline="pipelines/cifar10-resnet20",
    ),
    Row(
        "public-resnet56",
        "CIFAR-10, ResNet-56 (K = 3), somebody else's trunk",
        "Trunk and last exit are public weights of akamaster/pytorch_resnet_cifar10, frozen; only "
        "the two early exits were trained here (`python -m benchmarks.public_resnet56`). Plain 6n+2 "
        "blocks; the paper's code builds bottleneck blocks four times as wide under that name. The "
        "budgets are the paper's, 3.50, 3.00 and 2.50 of 4.70 ms, as shares. The trunk knows all "
        "training pictures by heart, so methods are fitted on one half of the test pictures and "
        "judged on the other.",
        (2.5 / 4.7, 3.0 / 4.7, 3.5 / 4.7),
        split=True,
    ),
    Row(
        "cifar10-msdnet",
        "CIFAR-10, MSDNet (K = 5)",
        "A small MSDNet of three scales; its first exit stands at 18% of the cost. Trained for 5 "
        "epochs only: the network is far from what it could be, and the row compares policies on a "
        "network as bad as that.",
        (0.2, *SPREAD),
        pipeline="pipelines/cifar10-msdnet",
    ),
    Row(
        "cifar10-eenet-resnet20",
        "CIFAR-10, EENet-ResNet-20 with confidence branches (K = 5)",
        "EENets' exit blocks, six epochs of loss v0, then v2 with lambda = 1, the paper's default. The "
        "paper claims an accuracy similar to the full network's at 20% of the cost, after 150 epochs; "
        "here it did not show: under v2 the early confidences fall towards zero, their exits are "
        "then hardly trained, and by its own rule (confidence above one half) the network has the "
        "point that is given below the table. Part of that may be ours: this run computed the "
        "confidences in bfloat16, where they saturate early; the code now uses float32, and the "
        "network was not trained again.",
        (0.2, *SPREAD),
        "pipelines/cifar10-eenet-resnet20",
        drawn=True,
    ),
    Row(
        "cifar100-densenet",
        "CIFAR-100, DenseNet (K = 4)",
        "DenseNet-121's blocks, halved, on pictures halved by the stem: the nearest that could be "
        "trained here; 12 epochs. The pictures are JPEG copies of CIFAR-100, not lossless. The "
        "budgets are the paper's, 6.00, 6.75 and 7.50 of 10.20 ms, as shares, and two more.",
        (6.0 / 10.2, 6.75 / 10.2, 7.5 / 10.2, 0.8, 0.9),
        "pipelines/cifar100-densenet",
    ),
    Row(
        "sst2",
        "SST-2, small transformer (K = 4)",
        "Trained here (`python -m benchmarks.text.make_traces sst2`), not BERT. Calibration: the "
        "official dev set; acceptance: the official test set. The budgets are the paper's, 100, 125 "
        "and 150 of 189 ms, as shares, and one below. Trained from scratch on little data, all its exits "
        "are equally good: there is nothing for a policy to choose, and the row shows only that "
        "traces of text pass through the same commands.",
        (0.4, 100 / 189, 125 / 189, 150 / 189),
    ),
    Row(
        "agnews",
        "AG News, small transformer (K = 4)",
        "Trained here (`python -m benchmarks.text.make_traces agnews`) on a subset of 14,000 of the "
        "120,000 training texts. Budgets as for SST-2, and the same caveat.",
        (0.4, 100 / 189, 125 / 189, 150 / 189),
    ),
)


def forget(row: Row) -> None:
    """Remove what a row found, and its traces if they are recorded here."""
    (FOUND / f"{row.name}.json").unlink(missing_ok=True)
    if row.pipeline is not None:
        for part in ("test", "calibration"):
            (TRACES / f"{row.name}-{part}.npz").unlink(missing_ok=True)


def traces_of(row: Row, data: Path) -> tuple[Trace, Trace | None] | None:
    """(acceptance, calibration) of a row, recorded now if need be; None where they are missing."""
    judge, fit = (TRACES / f"{row.name}-{part}.npz" for part in ("test", "calibration"))
    if row.pipeline is not None and Path(row.pipeline, "pipeline.yaml").is_file():
        pipeline = load_pipeline(Path(row.pipeline))
        for part in ("test", "calibration"):
            trace_of(pipeline, part, partial(record_part, pipeline, part, data))
    if not judge.is_file() or not (row.split or fit.is_file()):
        return None
    return Trace.open(judge), None if row.split else Trace.open(fit)


def run_row(row: Row, judge: Trace, fit: Trace | None) -> dict[str, Any]:
    """Compare everything on a row, and draw it."""
    known = methods_for(branch=judge.branch is not None)
    methods = [OURS, *(name for name in known if name != OURS), *COMBINATIONS]
    if judge.branch is not None:
        methods.append("branch+search")
    comparison = compare(
        judge,
        calibration=fit,
        methods=methods,
        budgets=row.budgets,
        seeds=SEEDS,
        on_method=lambda name: print(f"{row.name}: {name}", flush=True),
    )
    if row.drawn:
        draw_comparison(comparison, PAGE.parent / picture(row))
    return {
        **as_json(comparison),
        "verdicts": verdicts(comparison),
        "traces": digests(judge, fit),
    }


def digests(*traces: Trace | None) -> list[str]:
    """Of the files that a row was compared on."""
    return [sha256(trace.path) for trace in traces if trace is not None]


def picture(row: Row) -> str:
    """File name of a row's picture, beside the page."""
    return f"results-{row.name}.svg"


def verdicts(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Per budget: direct search against the best published method, on the same frames."""
    by_name = {method.name: method for method in comparison.methods}
    found = {}
    for budget, ours in by_name[OURS].outcomes.items():
        rivals = {
            name: by_name[name].outcomes[budget]
            for name in PUBLISHED
            if name in by_name and all(run.on_target for run in by_name[name].outcomes[budget])
        }
        if not rivals or not all(run.on_target for run in ours):
            continue
        best = max(rivals, key=lambda name: sum(run.accuracy for run in rivals[name]))
        gap = difference(ours, rivals[best])
        word = ("ahead" if gap.gap > 0 else "behind") if gap.sure else "level"
        found[f"{budget:g}"] = {"best": best, **asdict(gap), "word": word}
    return found


def cell(runs: list[dict[str, Any]]) -> str:
    """Mean accuracy and the spread over seeds."""
    values = [100 * run["accuracy"] for run in runs]
    mark = "" if all(run["on_target"] for run in runs) else "\\*"
    return f"{sum(values) / len(values):.2f} ({max(values) - min(values):.2f}){mark}"


def section(row: Row, found: dict[str, Any]) -> Iterator[str]:
    """A row's part of the page."""
    budgets = list(found["references"])
    costs = " / ".join(f"{100 * f:.1f}" for f in found["fractions"])
    exits = " / ".join(f"{100 * a:.2f}" for a in found["exit_accuracy"])
    first = found["methods"][OURS]["budgets"][budgets[0]][0]
    half = 50 * (first["interval"][1] - first["interval"][0])
    yield f"## {row.title}\n"
    yield f"{row.note}\n"
    yield (
        f"Exits alone: {exits}% at {costs}% of the cost. {found['acceptance_frames']:,} frames "
        f"judged, {found['calibration_frames']:,} fitted on, {found['seeds']} seeds. The 95% "
        f"interval of a figure is about +-{half:.1f}.\n"
    )
    yield "| method | " + " | ".join(f"{float(b):.1%}" for b in budgets) + " | fit, s | weights |"
    yield "|---" * (len(budgets) + 3) + "|"
    for name, method in found["methods"].items():
        cells = [cell(method["budgets"][b]) for b in budgets]
        label = f"**{name}**" if name == OURS else name
        yield (
            f"| {label} | {' | '.join(cells)} | {method['fit_seconds']:.1f} | "
            f"{method['parameters']} |"
        )
    for name in ("random", "oracle"):
        cells = [f"{100 * found['references'][b][name]:.2f}" for b in budgets]
        yield f"| {name} | {' | '.join(cells)} | | |"
    yield ""
    for budget, verdict in found["verdicts"].items():
        yield (
            f"- At {float(budget):.1%}: direct search is {WORDS[verdict['word']]} the best published "
            f"method there ({verdict['best']}): {100 * verdict['gap']:+.2f} "
            f"[{100 * verdict['low']:+.2f}, {100 * verdict['high']:+.2f}]."
        )
    yield ""
    drift = {
        name: max(abs(run["cost"] / float(b) - 1) for b in budgets for run in m["frozen"][b])
        for name, m in found["methods"].items()
    }
    yield (
        f"Frozen on calibration, thresholds would have missed a budget by up to "
        f"{100 * drift[OURS]:.1f}% ({OURS}) and {100 * max(drift.values()):.1f}% (the worst method).\n"
    )
    if row.drawn:
        yield f"![Accuracy over cost, exit shares, calibration, who leaves where]({picture(row)})\n"
    own = [
        f"{name} ({point}): {100 * at['accuracy']:.2f}% at {at['cost']:.1%}"
        for name, method in found["methods"].items()
        if name in METHODS
        for point, at in method["own_points"].items()
    ]
    if own:
        yield "By the papers' own rules, without a budget: " + "; ".join(own) + ".\n"


def page(rows: list[tuple[Row, dict[str, Any]]], missing: list[str]) -> str:
    """docs/results.md."""
    lines = [
        "# Exit policies compared",
        "",
        "Written by `python -m benchmarks.reproduce_tables`; no figure is typed by hand. "
        "`--data FOLDER` names the data sets; from nothing it takes hours, and rows whose data or "
        "networks are missing are left out and named. Segmentation "
        "has a page of its own: [results-segmentation.md](results-segmentation.md).",
        "",
        "Every method is a scorer and a share rule; all are fitted on calibration frames alone and "
        "judged on others, un-augmented. On the frames that are judged, only the place in a "
        "method's table of thresholds is chosen, by realised cost, in hindsight but without labels, "
        "so that all spend the same within 0.5%; what frozen thresholds would have cost is said "
        "below each table. A cell is the mean accuracy over seeds (in brackets: largest "
        "minus smallest; each seed draws another four fifths of the calibration frames, or "
        "another half where there is one trace, and initial weights; networks were trained once). \\* marks a cost that could not be met. `scorer+rule` are combinations "
        "of parts, so that scorer and shares can be judged apart. `random` takes exits by geometric "
        "shares without looking; `oracle` knows the labels. Costs are FLOPs with the heads of "
        "passed exits included. Intervals are paired bootstrap intervals over the frames that are judged; "
        "the draw of calibration frames is not in them, and of so many comparisons some call a lead "
        "of a few tenths of a point by chance.",
        "",
        "| method | scorer | shares | source |",
        "|---|---|---|---|",
    ]
    for name in METHODS:
        method = find_method(name)
        lines.append(f"| {name} | {method.scorer} | {method.share_rule} | {method.source} |")
    lines += [
        "",
        "## In short",
        "",
        "| | budget | best published | direct search | |",
        "|---" * 5 + "|",
    ]
    for row, found in rows:
        for budget, v in found["verdicts"].items():
            interval = f"{100 * v['gap']:+.2f} [{100 * v['low']:+.2f}, {100 * v['high']:+.2f}]"
            lines.append(
                f"| {row.title} | {float(budget):.1%} | {v['best']} | {interval} | {v['word']} |"
            )
    lines += ["", *curve(rows)]
    for row, found in rows:
        lines += section(row, found)
    if missing:
        lines += ["## Not run", "", *(f"- {title}" for title in missing), ""]
    return "\n".join(lines)


def curve(rows: list[tuple[Row, dict[str, Any]]]) -> Iterator[str]:
    """What each network loses against its own last exit, with direct search."""
    yield "## What a budget costs\n"
    yield "Points lost against the network's own last exit, with direct search:\n"
    yield "| network | last exit | points lost at each budget |"
    yield "|---|---|---|"
    for row, found in rows:
        full = found["full"]
        lost = [
            f"{float(b):.1%}: {100 * (full - sum(r['accuracy'] for r in runs) / len(runs)):.2f}"
            for b, runs in found["methods"][OURS]["budgets"].items()
        ]
        yield f"| {row.title} | {100 * full:.2f} | {', '.join(lost)} |"
    yield ""


def main() -> None:
    """Run what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--fresh", action="append", default=[], help="row to run again")
    parser.add_argument("--only", action="append", default=[], help="row to run, not the others")
    arguments = parser.parse_args()
    names = [row.name for row in ROWS]
    if unknown := {*arguments.only, *arguments.fresh} - {*names}:
        parser.error(f"{', '.join(sorted(unknown))}: no such row; there are {', '.join(names)}")
    torch.set_num_threads(1)  # tensors of a few kilobytes only lose by being shared between cores
    FOUND.mkdir(parents=True, exist_ok=True)
    rows, missing = [], []
    for row in ROWS:
        result = FOUND / f"{row.name}.json"
        wanted = not arguments.only or row.name in arguments.only
        if row.name in arguments.fresh:
            forget(row)
        found = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else None
        traces = traces_of(row, arguments.data) if wanted else None
        if traces and (found is None or found.get("traces") != digests(*traces)):
            found = run_row(row, *traces)
            result.write_text(json.dumps(found, indent=1), encoding="utf-8")
        if found is not None:
            rows.append((row, found))
        else:
            missing.append(row.title)
    if arguments.only:
        print(f"{PAGE} is left alone: --only runs rows, and writes no page")
        return
    PAGE.write_text(page(rows, missing), encoding="utf-8")
    print(f"{PAGE}: {len(rows)} rows; missing: {', '.join(missing) or 'none'}")


if __name__ == "__main__":
    main()
