"""`streamexit record` and `streamexit compare`: traces, and exit policies compared on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from streamexit.cli.formats import plain_table
from streamexit.cli.options import DeviceOption, JsonOption

if TYPE_CHECKING:
    from streamexit.calibration.outcomes import Comparison, Difference, Outcome
    from streamexit.calibration.record import Recording
    from streamexit.calibration.trace import Trace
    from streamexit.models.pipeline import Pipeline

DEFAULT_BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Those that lie above the first exit's cost."""

Kind = Literal["images", "stream"]


def record(
    pipeline: Annotated[
        Path, typer.Argument(help="Pipeline folder, or the name of one that ships.")
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            help="train, calibration or test: that part of the pipeline's data set; or video "
            "files, images:FOLDER_OR_ZIP, synthetic:seed=1."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The trace to write, an .npz.")],
    root: Annotated[Path | None, typer.Option("--data", help="Folder with the data set.")] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(
            help="images: independent pictures; stream: neighbours are alike. Else by what DATA is."
        ),
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Record a trace: what every exit says about every frame, to compare policies on."""
    from streamexit.backends.devices import pick_device
    from streamexit.calibration.record import record_trace
    from streamexit.models.pipeline import load_pipeline
    from streamexit.models.shipped import find_pipeline

    loaded = load_pipeline(find_pipeline(pipeline))
    dropped: list[str] = []
    recording = _open(loaded, data, root, kind, out, dropped)
    trace = record_trace(loaded, recording, out, device=pick_device(device))
    _report(trace, json, dropped=len(dropped))


def _report(trace: Trace, json: bool, **more: int) -> None:
    from streamexit.cli.app import console, print_json

    report = {
        "trace": str(trace.path),
        "frames": len(trace),
        **more,
        "streams": list(trace.header.streams),
        "kind": trace.header.kind,
        "label_source": trace.header.label_source,
        "bytes": trace.path.stat().st_size,
    }
    accuracy, cost = trace.quality.mean(0).tolist(), trace.header.costs.fractions
    if json:
        per_exit = {
            "accuracy_per_exit": [round(a, 4) for a in accuracy],
            "cost_per_exit": [round(f, 4) for f in cost],
        }
        print_json({**report, **per_exit})
        return
    for key, value in report.items():
        typer.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    table = plain_table(">exit", ">accuracy", ">share of cost")
    for k, (a, f) in enumerate(zip(accuracy, cost, strict=True), 1):
        table.add_row(str(k), f"{a:.2%}", f"{f:.1%}")
    console.print(table)


def import_logits(
    logits: Annotated[Path, typer.Argument(help="A .npy of frames x exits x classes.")],
    costs: Annotated[
        str,
        typer.Option(
            help="Comma-separated, one per exit, rising: GFLOPs, or shares of the last's."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The trace to write, an .npz.")],
    labels: Annotated[
        Path | None, typer.Option(help="A .npy of a class per frame; else the last exit is right.")
    ] = None,
    kind: Annotated[
        Kind, typer.Option(help="images: independent rows; stream: neighbours are alike.")
    ] = "images",
    json: JsonOption = False,
) -> None:
    """Make a trace of logits that some other program has written, to compare policies on it."""
    from streamexit.calibration.logits import trace_logits

    shares = _numbers(costs, "--costs")
    _report(trace_logits(logits, labels, shares, out, kind=kind), json)


def _open(
    pipeline: Pipeline,
    data: list[str],
    root: Path | None,
    kind: Kind | None,
    out: Path,
    dropped: list[str],
) -> Recording:
    from streamexit.calibration.record import PARTS, record_part, record_sources
    from streamexit.errors import InputError
    from streamexit.recordings import open_recordings, spare_sources

    if len(data) == 1 and data[0] in PARTS:
        return record_part(pipeline, data[0], root, kind=kind)
    if root is not None:
        raise InputError(f"--data: belongs to {', '.join(PARTS)}; {data[0]!r} is none of them")
    spare_sources("--out", out, data)
    return record_sources(
        open_recordings(data, pipeline),
        kind=kind or ("images" if all(d.startswith("images:") for d in data) else "stream"),
        data=", ".join(data),
        on_drop=dropped.append,
    )


def compare(
    traces: Annotated[list[Path], typer.Argument(help="Traces to judge on.")],
    calibration: Annotated[
        Path | None,
        typer.Option(help="Trace to fit on; else each trace is split in two halves."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated: names of methods, or pairs SCORER+RULE; else all."),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated shares of the full cost; else 0.3 to 0.8, as far as can be."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 3,
    against: Annotated[
        str | None,
        typer.Option(
            help="Show the others' differences to this method; else msdnet, or the first."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw into this .svg, .png or .pdf.")] = None,
    json: JsonOption = False,
) -> None:
    """Compare exit policies at equal realised cost, fitted and judged on disjoint frames."""
    from streamexit.calibration.compare import compare as run
    from streamexit.calibration.figures import check_drawable, draw_comparison
    from streamexit.calibration.outcomes import as_json
    from streamexit.calibration.trace import Trace
    from streamexit.cli.app import print_json
    from streamexit.scheduling.methods import methods_for

    asked = sorted(set(_numbers(budgets, "--budgets"))) if budgets else None
    fitted_on = Trace.open(calibration) if calibration else None
    if plot:
        check_drawable(plot)
    found: list[Comparison] = []
    for path in traces:
        trace = Trace.open(path)
        known = methods_for(branch=trace.branch is not None)
        names = [name.strip() for name in methods.split(",")] if methods else known
        comparison = run(
            trace,
            calibration=fitted_on,
            methods=names,
            budgets=asked or [b for b in DEFAULT_BUDGETS if b > trace.header.costs.fractions[0]],
            seeds=seeds,
            against=against,
            on_method=lambda name: typer.echo(f"{name} ...", err=True),
        )
        found.append(comparison)
        if not json:
            _show(comparison)
            _show_differences(comparison)
    if json:
        print_json({"comparisons": [as_json(comparison) for comparison in found]})
    for i, comparison in enumerate(found if plot else ()):
        assert plot is not None
        draw_comparison(
            comparison, plot if len(found) == 1 else plot.with_stem(f"{plot.stem}-{i + 1}")
        )


def _numbers(text: str, option: str) -> list[float]:
    from streamexit.errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option}: {text!r} is not of the form 0.3,0.5,0.8") from error


def _show(comparison: Comparison) -> None:
    from streamexit.calibration.outcomes import FEW_BLOCKS
    from streamexit.cli.app import console

    header = comparison.trace.header
    word = "accuracy" if header.label_source == "truth" else "agreement with the last exit"
    exits = " / ".join(f"{a:.2%}" for a in comparison.exit_accuracy)
    costs = " / ".join(f"{c:.1%}" for c in header.costs.fractions)
    console.print(
        f"{header.pipeline} on {header.data}: {comparison.acceptance_frames} frames judged, "
        f"{comparison.calibration_frames} to fit on, {comparison.seeds} seeds"
    )
    console.print(f"exits alone {exits} at {costs} of the cost; {word} in %:")
    budgets = list(comparison.references)
    table = plain_table(
        "method", *(f">{b:.0%}" for b in budgets), ">fit s", ">weights", ">us/frame"
    )
    for method in comparison.methods:
        table.add_row(
            method.name,
            *(_cell(method.outcomes[b]) for b in budgets),
            f"{method.fit_seconds:.1f}",
            str(method.parameters),
            f"{method.microseconds_per_frame:.1f}",
        )
    for name in ("random", "oracle"):
        cells = [f"{100 * comparison.references[b][name]:.2f}" for b in budgets]
        table.add_row(name, *cells, style="dim")
    console.print(table)
    console.print(
        "+-: half the 95% interval; *: cost not within 0.5% of the budget (the method's scores "
        "have too few values)"
    )
    if comparison.blocks < FEW_BLOCKS:
        console.print(
            f"only {comparison.blocks} blocks of frames to draw intervals from: they are rough, and rather "
            "too narrow; judge on more"
        )
    for method in comparison.methods:
        for name, point in method.own_points.items():
            console.print(
                f"{method.name}, by its own rule ({name}): {point.accuracy:.2%} at "
                f"{point.cost:.1%} of the cost"
            )


def _show_differences(comparison: Comparison) -> None:
    from streamexit.calibration.outcomes import differences
    from streamexit.cli.app import console

    gaps = differences(comparison)
    if not gaps:
        return
    console.print(f"difference to {comparison.reference}, in points, on the same frames:")
    table = plain_table("method", *(f">{b:.0%}" for b in comparison.references))
    for name, by_budget in gaps.items():
        table.add_row(name, *(_gap(gap) for gap in by_budget.values()))
    console.print(table)
    console.print(
        "+-: half the paired 95% interval over frames (seeds are not in it); !: it leaves 0 out; "
        "*: one of the two missed the cost, so they do not compare"
    )


def _gap(found: Difference) -> str:
    mark = "!" if found.sure else "" if found.on_target else "*"
    text = f"{100 * found.gap:+.2f}+-{50 * (found.high - found.low):.2f}{mark}"
    return f"[bold]{text}[/bold]" if found.sure else text


def _cell(runs: list[Outcome]) -> str:
    accuracy = 100 * sum(run.accuracy for run in runs) / len(runs)
    half = 50 * sum(run.interval[1] - run.interval[0] for run in runs) / len(runs)
    mark = "" if all(run.on_target for run in runs) else "*"
    return f"{accuracy:.2f}+-{half:.2f}{mark}"
