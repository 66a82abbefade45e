"""From a checked configuration file to streams that could start: everything found, nothing opened."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

from streamexit.backends.torch_backend import pick_device
from streamexit.config.schema import NodeConfiguration, StreamSection
from streamexit.documents import Document
from streamexit.errors import ConfigurationError, PipelineError, SourceError
from streamexit.models.pipeline import Pipeline, load_pipeline
from streamexit.scheduling.policy import ExitPolicy, load_policy
from streamexit.sources.joined import JoinedSource
from streamexit.sources.opening import open_source
from streamexit.sources.source import Source
from streamexit.wire.maps import MapEncoder, MaskOptions


@dataclass(frozen=True)
class PlannedStream:
    """A stream of the configuration with everything it needs, found and checked.

    Attributes:
        section: From the configuration.
        pipeline: Loaded.
        policy: Loaded.
        fraction: Its budget, as a share of the full network's cost.
        source: Not yet opened.
        maps: What of segmentation maps is sent; None for tasks without maps.
    """

    section: StreamSection
    pipeline: Pipeline
    policy: ExitPolicy
    fraction: float
    source: Source
    maps: MapEncoder | None = None


def plan_streams(document: Document[NodeConfiguration]) -> list[PlannedStream]:
    """Load the pipelines and check each stream's budget, policy and source against them.

    Raises:
        ConfigurationError: Names file, line, key path, value and remedy.
    """
    base = document.path.parent
    try:
        pick_device(document.value.engine.device)
    except ConfigurationError as error:
        raise ConfigurationError(f"{document.where('engine', 'device')}: {error}") from error
    pipelines: dict[str, Pipeline] = {}
    for name, folder in document.value.pipelines.items():
        try:
            pipelines[name] = load_pipeline(base / folder)
        except PipelineError as error:
            raise ConfigurationError(f"{document.where('pipelines', name)}: {error}") from error
    return [
        _plan_stream(document, i, pipelines[section.pipeline])
        for i, section in enumerate(document.value.streams)
    ]


def _plan_stream(
    document: Document[NodeConfiguration], i: int, pipeline: Pipeline
) -> PlannedStream:
    section = document.value.streams[i]
    costs = pipeline.costs
    fraction = section.budget.build().as_fraction(costs)
    if fraction < costs.fractions[0]:
        raise ConfigurationError(
            f"{document.where('streams', i, 'budget')}: {fraction:.4g} of the full network is out "
            f"of reach; leaving at the first exit already costs {_up(costs.fractions[0])} "
            f"({_up(costs.per_exit[0])} GFLOPs). Raise the budget to at least that"
        )
    try:
        policy = load_policy(pipeline.policy_file(section.policy), costs.fractions)
    except PipelineError as error:
        raise ConfigurationError(f"{document.where('streams', i, 'policy')}: {error}") from error
    try:
        source = open_source(
            section.source,
            preprocessing=pipeline.network.preprocessing,
            labels=pipeline.labels,
            base=document.path.parent,
            rate=section.rate,
        )
    except SourceError as error:
        raise ConfigurationError(f"{document.where('streams', i, 'source')}: {error}") from error
    if section.loop and source.live:
        raise ConfigurationError(
            f"{document.where('streams', i, 'loop')}: a live source has no end to start again from"
        )
    if section.loop:
        source = JoinedSource([source], repeat=True)
    maps = _plan_maps(document, i, pipeline)
    return PlannedStream(section, pipeline, policy, fraction, source, maps)


def _plan_maps(
    document: Document[NodeConfiguration], i: int, pipeline: Pipeline
) -> MapEncoder | None:
    section = document.value.streams[i]
    task = pipeline.build_task()
    if not task.gives_maps:
        for key in ("regions", "mask"):
            if getattr(section, key):
                raise ConfigurationError(
                    f"{document.where('streams', i, key)}: pipeline {section.pipeline} is for "
                    f"{task.kind} and gives no maps; leave {key} out, or name a pipeline for "
                    "segmentation"
                )
        return None
    mask, options = section.mask, None
    if mask is not None:
        options = MaskOptions(
            encoding=mask.encoding,
            resolution=mask.resolution,
            every_seconds=mask.every_s,
            max_bytes=mask.max_bytes,
        )
    return MapEncoder(
        pipeline.labels,
        pipeline.network.preprocessing,
        section.regions,
        options,
    )


def _up(number: float) -> str:
    """Four significant digits, rounded up, so that the number shown is one that is accepted."""
    unit = Decimal(1).scaleb(Decimal(number).adjusted() - 3)
    return f"{Decimal(number).quantize(unit, ROUND_UP):f}"
