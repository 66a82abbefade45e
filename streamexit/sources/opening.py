"""From what the user writes to a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from streamexit.documents import did_you_mean
from streamexit.errors import SourceError
from streamexit.plugins import load_plugin
from streamexit.preprocessing import Preprocessing
from streamexit.sources.access import EVERYWHERE, Access
from streamexit.sources.addresses import NO_OPTIONS, Address, SourceOptions, parse_address
from streamexit.sources.images import ImageSource
from streamexit.sources.sampled import SampledSource
from streamexit.sources.sampling import ALL_PICTURES, Sampling
from streamexit.sources.source import Source
from streamexit.sources.synthetic import SyntheticSource
from streamexit.sources.video import VideoSource
from streamexit.sources.watched import WatchedSource

DEFAULT_RATE = 25.0


def open_source(
    text: str,
    *,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    base: Path = Path(),
    options: SourceOptions = NO_OPTIONS,
    access: Access = EVERYWHERE,
    rate: float = DEFAULT_RATE,
    own_size: bool = False,
    sampling: Sampling = ALL_PICTURES,
    gpu: int | None = None,
    timeout: float = 10.0,
    max_age: float = float("inf"),
) -> Source:
    """Make the source that `text` describes; nothing is opened yet.

    Args:
        text: See `parse_address`.
        preprocessing: Of the pipeline.
        labels: Of the pipeline.
        base: Relative paths start here.
        options: Beyond the text.
        access: What may be reached.
        rate: Pictures per second of sources that have no clock of their own.
        own_size: Leave pictures as large as they are, for drawing on; the network cannot take them.
        sampling: Which pictures are analysed.
        gpu: Index of the CUDA device that decodes videos; None decodes in software.
        timeout: See `VideoSource`.
        max_age: See `VideoSource`.

    Raises:
        SourceError: `text` cannot be understood, or must not be reached.
        ConfigurationError: A GPU without what it takes.
        PluginError: A plugin cannot be imported.
    """
    address = parse_address(text, options, base=base)
    access.check(address)
    scaling = None if own_size else preprocessing

    def video(where: Address) -> VideoSource:
        return VideoSource(
            where,
            scaling,
            sampling=sampling,
            gpu=gpu,
            access=access,
            timeout=timeout,
            max_age=max_age,
        )

    if address.kind == "images":
        images = ImageSource(
            Path(address.location), scaling, labels=labels, rate=rate, access=access
        )
        return SampledSource(images, sampling)
    if address.kind == "synthetic":
        generated = _synthetic(text, address.location, preprocessing, rate)
        return SampledSource(generated, sampling)
    if address.kind == "plugin":
        return SampledSource(_plugin(address, base, preprocessing, rate), sampling)
    if address.kind == "watch":
        return WatchedSource(
            Path(address.location),
            lambda path: video(replace(address, kind="file", scheme="file", location=str(path))),
            access,
            existing=options.existing,
            settle_seconds=options.settle_seconds,
        )
    return video(address)


def _plugin(address: Address, base: Path, preprocessing: Preprocessing, rate: float) -> Source:
    kind = load_plugin("streamexit.sources", address.scheme)
    try:
        source: Source = kind(address.location, base=base, preprocessing=preprocessing, rate=rate)
    except (TypeError, ValueError, OSError) as error:
        raise SourceError(f"{address}: {error}", reason="bad_source") from error
    return source


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
