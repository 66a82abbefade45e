"""Recording a trace: a labelled data set, pictures or recordings through every exit of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from streamexit.calibration.collect import batch_size, read_exits
from streamexit.calibration.parts import load_part_of
from streamexit.calibration.trace import Kind, Trace, TraceHeader, TraceWriter
from streamexit.errors import DataError, InputError
from streamexit.metrics import DropReason
from streamexit.models.pipeline import WEIGHTS, Pipeline, sha256
from streamexit.sources.source import Picture, Source
from streamexit.training.datasets import IN_TIME_ORDER, Part

PARTS: tuple[Part, ...] = ("train", "calibration", "test")


@dataclass(frozen=True)
class Recording:
    """What is run through the network.

    Attributes:
        kind: See `TraceHeader`.
        streams: Ids, in the order of `frames`' stream numbers.
        frames: Yields (stream number, picture) in stream order.
        data: What the user called it.
        part: Of the pipeline's data set, if it is one.
    """

    kind: Kind
    streams: tuple[str, ...]
    frames: Iterator[tuple[int, Picture]]
    data: str
    part: Part | None = None


def record_trace(
    pipeline: Pipeline,
    recording: Recording,
    out: Path,
    *,
    device: torch.device,
) -> Trace:
    """Run every exit on every frame and write what they say.

    Where frames carry no label, the last exit's answer stands in, and the header says so.

    Args:
        pipeline: Loaded.
        recording: See `Recording`.
        out: The .npz to write; it appears when all is done.
        device: Where the network runs.

    Raises:
        DataError: No frames, or labels on some of them only.
        SourceError: A source that cannot be read.
    """
    task = pipeline.build_task()
    network = pipeline.network.to(device)
    first, frames = _peek(recording.frames, out)
    labelled = task.as_target(first.label) is not None
    header = TraceHeader(
        pipeline=pipeline.name,
        data=recording.data,
        kind=recording.kind,
        label_source="truth" if labelled else "last exit",
        labels=pipeline.labels,
        streams=recording.streams,
        costs=pipeline.costs,
        provenance={
            "streamexit": version("streamexit"),
            "date": datetime.now(UTC).date().isoformat(),
            "device": device.type,
            "weights_sha256": sha256(pipeline.folder / WEIGHTS),
            **({"part": recording.part} if recording.part else {}),
        },
    )
    size = batch_size(network.preprocessing)
    with TraceWriter(out, header) as writer:
        for batch in iter(lambda: list(islice(frames, size)), []):
            labels = [task.as_target(picture.label) for _, picture in batch]
            if any((label is None) == labelled for label in labels):
                raise DataError(f"{recording.data}: some frames have a label and some have none")
            images = torch.from_numpy(np.stack([picture.image for _, picture in batch]))
            read = read_exits(network, task, images, labels if labelled else None)
            writer.append(
                read.evidence,
                label=read.label,
                counts=read.counts,
                stream=np.array([stream for stream, _ in batch]),
                time=np.array([picture.pts_seconds for _, picture in batch]),
            )
    return Trace.open(out)


def record_part(
    pipeline: Pipeline, part: str, root: Path | None, *, kind: Kind | None = None
) -> Recording:
    """A part of the data set that the pipeline was made from.

    Args:
        pipeline: Names its data set.
        part: One of `PARTS`.
        root: Folder with the data, instead of the one that the pipeline names.
        kind: See `TraceHeader`; unless told, what is known of the data set.

    Raises:
        PipelineError: The pipeline names no data set.
        DataError: The data is not there, or is not what the network was trained on.
    """
    chosen = next(known for known in PARTS if known == part)
    pictures = load_part_of(pipeline, chosen, root)
    assert pipeline.calibration
    name = pipeline.calibration.dataset
    labels = pictures.labels.tolist() if pictures.labels.ndim == 1 else list(pictures.labels)
    rows = zip(pictures.images, labels, strict=True)
    frames = ((0, Picture(image, float(i), label)) for i, (image, label) in enumerate(rows))
    kind = kind or ("stream" if name in IN_TIME_ORDER else "images")
    return Recording(kind, (f"{name}-{part}",), frames, f"{name} {part}", chosen)


def record_sources(
    sources: dict[str, Source],
    *,
    kind: Kind,
    data: str,
    on_drop: Callable[[DropReason], None],
) -> Recording:
    """Recordings and picture folders, one after the other.

    Args:
        sources: Stream id -> source.
        kind: See `TraceHeader`.
        data: What the user called them.
        on_drop: Called with the reason for each frame that a source could not yield.

    Raises:
        InputError: A live source.
    """
    for stream_id, source in sources.items():
        if source.live:
            raise InputError(f"{stream_id}: a live source has no end; record a file of it first")

    def frames() -> Iterator[tuple[int, Picture]]:
        for i, source in enumerate(sources.values()):
            yield from ((i, picture) for picture in source.pictures(on_drop))

    return Recording(kind, tuple(sources), frames(), data)


def _peek(
    frames: Iterator[tuple[int, Picture]], out: Path
) -> tuple[Picture, Iterator[tuple[int, Picture]]]:
    first = next(frames, None)
    if first is None:
        raise DataError(f"{out}: nothing to record; the source has no frames")

    def everything() -> Iterator[tuple[int, Picture]]:
        yield first
        yield from frames

    return first[1], everything()
