"""`streamexit replay`: recordings through the engine under virtual time."""

from __future__ import annotations

import contextlib
import signal
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streamexit.cli.formats import plain_table, stacked
from streamexit.cli.options import BackendOption, DeviceOption, JsonOption, PrecisionOption

if TYPE_CHECKING:
    from streamexit.exits import Budget, CostTable, ExitRecord
    from streamexit.models.pipeline import Pipeline
    from streamexit.playback import Replay
    from streamexit.replay_report import StreamReport
    from streamexit.sinks.jsonl import JsonlSink
    from streamexit.sinks.video import VideoSink
    from streamexit.sources.source import Source
    from streamexit.wire.encoding import ResultEncoder


def replay(
    sources: Annotated[
        list[str], typer.Argument(help="Video files, images:FOLDER_OR_ZIP, synthetic:seed=1.")
    ],
    pipeline: Annotated[Path, typer.Option(help="Pipeline folder, or the name of one that ships.")],
    budget: Annotated[
        str, typer.Option(help="fraction=0.4, gflops_per_frame=0.03, gflops_per_second=1.")
    ],
    policy: Annotated[str | None, typer.Option(help="Instead of the pipeline's default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write every result to this JSONL file.")] = None,
    mask: Annotated[
        Literal["png", "rle"] | None, typer.Option(help="With --out: the maps, too.")
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(help="Draw the answers on the pictures; one file a stream, out-NAME.mp4."),
    ] = None,
    join: Annotated[bool, typer.Option(help="Play the sources one after the other.")] = False,
    agreement: Annotated[bool, typer.Option(help="Compare with the full network.")] = False,
    window: Annotated[int, typer.Option(min=1, help="Frames that a mean is taken over.")] = 300,
    window_s: Annotated[
        float | None, typer.Option(min=0.001, help="The window in seconds instead.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="No window may exceed the budget.")] = False,
    shadow: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of frames to estimate agreement from.")
    ] = 0.0,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Frames that run together.")] = 4,
    json: JsonOption = False,
) -> None:
    """Replay recordings deterministically: the same input gives the same results, byte for byte."""
    from streamexit.backends.opening import BackendOptions
    from streamexit.exits import Budget
    from streamexit.models.pipeline import load_pipeline
    from streamexit.models.shipped import find_pipeline
    from streamexit.playback import Replay
    from streamexit.recordings import open_recordings, spare_sources, stream_ids
    from streamexit.scheduling.policy import load_policy

    amount = Budget.parse(budget)
    names = ["joined"] if join else stream_ids(sources)
    drawings = _video_files(video, names, amount) if video else {}
    _keep_apart(out, drawings)
    for option, file in [("--out", out), *(("--video", file) for file in drawings.values())]:
        if file:
            spare_sources(option, file, sources)
    loaded = load_pipeline(find_pipeline(pipeline))
    encode = _encoder(loaded, mask, out)
    run = Replay(
        open_recordings(sources, loaded, join=join),
        pipeline=loaded,
        policy=load_policy(loaded.policy_file(policy), loaded.costs.fractions),
        budget=amount,
        window=window,
        window_seconds=window_s,
        strict=strict,
        shadow=shadow,
        options=BackendOptions(backend, device, precision, batch),
        agreement=agreement,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: run.stop())
    fraction = amount.as_fraction(loaded.costs)
    _warn_of_reach(fraction, loaded.costs)
    with contextlib.ExitStack() as stack:  # only now: a mistake above must not empty an old file
        outlets = _Outlets(encode, stack.enter_context(_results_file(out)))
        if drawings:
            own = open_recordings(sources, loaded, join=join, own_size=True)
            outlets.videos = _open_videos(
                stack, drawings, own, loaded, budget=fraction, window=window
            )
        run.run(outlets.take)
    _tell(run, json=json)


def _warn_of_reach(fraction: float, costs: CostTable) -> None:
    """A node refuses such a budget; here all that can be done is to leave at the first exit."""
    from streamexit.budget.terms import Terms
    from streamexit.errors import BudgetError
    from streamexit.planning.streams import check_reach

    try:
        check_reach(Terms(fraction), costs)
    except BudgetError as error:
        typer.echo(f"warning: --budget: {error}", err=True)


@dataclass
class _Outlets:
    """Where the answers go."""

    encode: ResultEncoder
    results: JsonlSink | None
    videos: dict[str, VideoSink] = field(default_factory=dict)

    def take(self, record: ExitRecord) -> None:
        if self.results is not None:
            self.results.write(self.encode(record, record.answered_at))
        if self.videos:
            self.videos[record.frame.stream_id].write(record)


def _results_file(out: Path | None) -> AbstractContextManager[JsonlSink | None]:
    from streamexit.sinks.jsonl import JsonlSink

    return contextlib.closing(JsonlSink(out)) if out else contextlib.nullcontext()


def _encoder(
    pipeline: Pipeline, mask: Literal["png", "rle"] | None, out: Path | None
) -> ResultEncoder:
    """Of results as a node would send them, with each map where maps are asked for."""
    from streamexit.errors import InputError
    from streamexit.wire.encoding import ResultEncoder
    from streamexit.wire.maps import MapEncoder, MaskOptions

    maps = None
    if mask is not None:
        if out is None:
            raise InputError(f"--mask {mask}: maps are written with the results; add --out FILE")
        if not pipeline.build_task().gives_maps:
            raise InputError(f"--mask {mask}: pipeline {pipeline.name} gives no maps; leave it out")
        options = MaskOptions(encoding=mask, max_bytes=sys.maxsize)  # a file is no broker
        maps = MapEncoder(pipeline.labels, pipeline.network.preprocessing, mask=options)
    num_exits = len(pipeline.costs.per_exit)
    return ResultEncoder(
        node="replay", boot_id="replay", pipeline=pipeline.name, num_exits=num_exits, maps=maps
    )


def _video_files(path: Path, names: list[str], budget: Budget) -> dict[str, Path]:
    """Stream id -> the file that its pictures go to."""
    from streamexit.errors import InputError

    if budget.per_second:
        raise InputError("--video: shows budgets per frame; give fraction or gflops_per_frame")
    several = len(names) > 1
    return {n: path.with_stem(f"{path.stem}-{n}") if several else path for n in names}


def _keep_apart(out: Path | None, drawings: dict[str, Path]) -> None:
    from streamexit.errors import InputError

    if out and out.resolve() in {file.resolve() for file in drawings.values()}:
        raise InputError(f"--out: {out} is what --video writes, too; name another file")


def _open_videos(
    stack: contextlib.ExitStack,
    files: dict[str, Path],
    sources: dict[str, Source],
    pipeline: Pipeline,
    *,
    budget: float,
    window: int,
) -> dict[str, VideoSink]:
    """A video for each stream, each drawn on pictures that are decoded a second time for it."""
    import numpy as np

    from streamexit.drawing import Annotator
    from streamexit.sinks.video import VideoSink

    videos = {}
    for name, source in sources.items():
        draw = Annotator(
            pipeline.costs,
            budget=budget,
            window=window,
            preprocessing=pipeline.network.preprocessing,
        )
        pictures = (np.asarray(picture.image) for picture in source.pictures(lambda reason: None))
        sink = VideoSink(files[name], pictures, draw)
        videos[name] = stack.enter_context(contextlib.closing(sink))
    return videos


def _tell(run: Replay, *, json: bool) -> None:
    """The report, and the end."""
    from streamexit.cli.app import print_json

    total, streams = run.total(), run.stream_reports()
    if json:
        streams_json = {name: _as_json(report, run.seconds) for name, report in streams.items()}
        print_json({**_as_json(total, run.seconds), "streams": streams_json})
    else:
        _show(streams, total, run.seconds)
    _exit(run, streams)


def _exit(run: Replay, streams: dict[str, StreamReport]) -> None:
    """Name what broke, and end with the code that says so."""
    from streamexit.cli.app import EXIT_BAD_INPUT, EXIT_INTERRUPTED, complain

    broken = [report.error for report in streams.values() if report.error]
    for message in broken:
        complain(message)
    if run.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if broken:
        raise typer.Exit(EXIT_BAD_INPUT)


def _as_json(report: StreamReport, seconds: float) -> dict[str, Any]:
    mean = report.mean_cost
    cost = {"value": mean, "unit": "gflops", "fraction": mean / report.full_cost} if mean else None
    return {
        "frames": report.frames,
        "answered": report.answered,
        "dropped": report.dropped,
        "mean_cost": cost,
        "worst_window_error": report.worst_window_error,
        "exit_shares": list(report.exit_shares),
        "against_truth": report.against_truth,
        "against_full": report.against_full,
        "frames_per_second": report.answered / seconds,
        "estimated_agreement": asdict(report.estimated) if report.estimated else None,
        "budget_state": report.budget_state,
        "error": report.error,
    }


def _show(streams: dict[str, StreamReport], total: StreamReport, seconds: float) -> None:
    from streamexit.cli.app import console

    rows = [*streams.items(), ("all", total)] if len(streams) > 1 else list(streams.items())
    qualities = [_quality(report) for _, report in rows]
    columns = ["stream", ">frames", ">dropped", ">cost", ">window", "exit shares"]
    table = plain_table(*columns, *(["quality"] if any(qualities) else []))
    for (name, report), quality in zip(rows, qualities, strict=True):
        table.add_row(
            name[:22],
            str(report.frames),
            str(sum(report.dropped.values())),
            f"{report.mean_cost / report.full_cost:.1%}" if report.mean_cost else "-",
            f"{report.worst_window_error:.1%}" if report.worst_window_error is not None else "-",
            stacked(report.exit_shares),
            *([quality] if any(qualities) else []),
        )
    console.print(table)
    console.print("cost: mean per frame, of the full network; window: worst window off the budget")
    console.print(
        f"{total.answered} frames in {seconds:.1f} s, {total.answered / seconds:.0f} per s"
    )


def _quality(report: StreamReport) -> str:
    parts = []
    for figures, words in ((report.against_truth, ""), (report.against_full, " as full")):
        name, value = next(iter((figures or {}).items()), ("", None))  # the one to look at
        if value is not None:
            parts.append(f"{name.replace('_', ' ')} {value:.2%}{words}")
    if found := report.estimated:
        parts.append(f"by shadow {found.value:.1%} ({found.low:.0%} .. {found.high:.0%})")
    return ", ".join(parts)
