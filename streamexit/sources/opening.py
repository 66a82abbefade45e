"""From what the user writes to a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamexit.documents import did_you_mean
from streamexit.errors import SourceError
from streamexit.preprocessing import Preprocessing
from streamexit.sources.images import ImageSource
from streamexit.sources.sampling import SampledSource
from streamexit.sources.source import Source
from streamexit.sources.synthetic import SyntheticSource
from streamexit.sources.video import VideoSource

DEFAULT_RATE = 25.0


def open_source(
    text: str,
    *,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    base: Path = Path(),
    rate: float = DEFAULT_RATE,
    own_size: bool = False,
    frame_rate: float | None = None,
    gpu: int | None = None,
) -> Source:
    """Make the source that `text` describes; nothing is opened yet.

    Args:
        text: A file path, a URL, "images:FOLDER_OR_ZIP", or "synthetic:seed=1,frames=300".
        preprocessing: Of the pipeline.
        labels: Of the pipeline.
        base: Relative paths start here.
        rate: Pictures per second of sources that have no clock of their own.
        frame_rate: Pictures per second that are analysed at most; None for all.
        gpu: Index of the CUDA device that decodes videos; None decodes in software.
        own_size: Leave pictures as large as they are, for drawing on; the network cannot take them.

    Raises:
        SourceError: `text` cannot be understood.
        ConfigurationError: A GPU without what it takes.
    """
    kind, colon, rest = text.partition(":")
    scaling = None if own_size else preprocessing
    if kind == "images" and colon:
        source: Source = ImageSource(base / rest, scaling, labels=labels, rate=rate)
        return SampledSource(source, frame_rate) if frame_rate else source
    if kind == "synthetic" and colon:
        source = _synthetic(text, rest, preprocessing, rate)
        return SampledSource(source, frame_rate) if frame_rate else source
    url = text if "://" in text else str(base / text)
    return VideoSource(url, scaling, frame_rate=frame_rate, gpu=gpu)


def _synthetic(
    text: str, options: str, preprocessing: Preprocessing, rate: float
) -> SyntheticSource:
    values = {"seed": 0, "frames": 300}
    for option in filter(None, options.split(",")):
        name, _, number = option.partition("=")
        if name not in values:
            raise SourceError(
                f"{text}: option {name!r} is unknown; {did_you_mean(name, values)}",
                reason="bad_source",
            )
        if not number.isdecimal():
            raise SourceError(
                f"{text}: {name}={number!r} must be a whole number", reason="bad_source"
            )
        values[name] = int(number)
    return SyntheticSource(preprocessing, seed=values["seed"], frames=values["frames"], rate=rate)
