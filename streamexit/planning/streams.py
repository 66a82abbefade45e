"""From a checked configuration file to streams that could start: everything found, nothing opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from importlib.util import find_spec

import torch

from streamexit.backends.opening import BackendOptions, device_costs
from streamexit.budget.sharing import DeviceShare
from streamexit.budget.terms import Terms
from streamexit.config.schema import EngineSection, NodeConfiguration, StreamSection
from streamexit.documents import Document
from streamexit.errors import BudgetError, ConfigurationError, OperationError, PipelineError
from streamexit.exits import Budget, CostTable
from streamexit.models.pipeline import Pipeline, load_pipeline
from streamexit.models.shipped import find_pipeline
from streamexit.planning.sinks import check_files, check_sinks
from streamexit.planning.source import plan_source
from streamexit.scheduling.policy import ExitPolicy, load_policy
from streamexit.scheduling.thresholds import ThresholdTable
from streamexit.sources.cuda_converter import load_cupy
from streamexit.sources.source import Source
from streamexit.wire.maps import MapEncoder, MaskOptions

UNIT_WORDS = {"gflops": "GFLOPs", "milliseconds": "ms"}

AUTO_SHARE = 900.0
"""Of the 1000 ms per second that a device has by its profiles; decoding and peaks need the rest."""


@dataclass(frozen=True)
class PlannedStream:
    """A stream of the configuration with everything it needs, found and checked.

    Attributes:
        section: From the configuration.
        pipeline: Loaded.
        policy: Loaded.
        costs: What its budget counts: GFLOPs, or milliseconds of the device.
        table: The policy's thresholds, by these costs.
        budget: As it was configured.
        terms: The same as a share of the full network's cost.
        source: Not yet opened.
        fallback: See `Reader`.
        maps: What of segmentation maps is sent; None for tasks without maps.
    """

    section: StreamSection
    pipeline: Pipeline
    policy: ExitPolicy
    costs: CostTable
    table: ThresholdTable
    budget: Budget
    terms: Terms
    source: Source
    fallback: Source | None = None
    maps: MapEncoder | None = None


@dataclass(frozen=True)
class PlannedDevice:
    """What a node's work is done on, every "auto" decided.

    Attributes:
        backend: What the networks run on.
        gpu: That decodes; None decodes in software.
    """

    backend: BackendOptions
    gpu: int | None


def plan_streams(
    document: Document[NodeConfiguration], *, there: bool = True
) -> list[PlannedStream]:
    """Load the pipelines and check each stream's budget, policy and source against them.

    Args:
        document: The configuration.
        there: Whether files and folders have to be there: of sources, and what a node begins with.

    Raises:
        ConfigurationError: Names file, line, key path, value and remedy.
    """
    check_sinks(document)
    if there:
        check_files(document)
    device, pipelines = plan_device(document), load_pipelines(document)
    return [
        plan_stream(document, i, pipelines, device, there=there)
        for i in range(len(document.value.streams))
    ]


def load_pipelines(document: Document[NodeConfiguration]) -> dict[str, Pipeline]:
    """The pipelines of a configuration, by name.

    Raises:
        ConfigurationError: Names file, line, key path, value and remedy.
    """
    pipelines: dict[str, Pipeline] = {}
    for name, folder in document.value.pipelines.items():
        try:
            pipelines[name] = load_pipeline(find_pipeline(folder, document.path.parent))
        except PipelineError as error:
            raise ConfigurationError(f"{document.where('pipelines', name)}: {error}") from error
    _check_quantised(document, pipelines.values())
    return pipelines


def _check_quantised(document: Document[NodeConfiguration], pipelines: Iterable[Pipeline]) -> None:
    if document.value.engine.precision != "int8":
        return
    for pipeline in pipelines:
        if not pipeline.quantised:
            raise ConfigurationError(
                f"{document.where('engine', 'precision')}: int8 needs quantised stages, which pipeline "
                f"{pipeline.name} has not; make them with: streamexit quantise {pipeline.folder}"
            )


def plan_device(document: Document[NodeConfiguration]) -> PlannedDevice:
    """Where networks run and videos are decoded.

    Raises:
        ConfigurationError: What does not go together, or is not installed.
        OperationError: A device that this machine does not have, now.
    """
    backend = _plan_backend(document)
    return PlannedDevice(backend, _plan_decoder(document, backend.device))


def _plan_backend(document: Document[NodeConfiguration]) -> BackendOptions:
    engine = document.value.engine
    options = BackendOptions(
        kind=engine.backend,
        device=engine.device,
        precision=engine.precision,
        batch=engine.batch,
        max_batch=engine.max_batch,
    )
    try:
        return options.resolve()
    except ConfigurationError as error:
        field = str(error).partition(":")[0]
        raise ConfigurationError(f"{document.where('engine', field)}: {error}") from error
    except OperationError as error:  # it may be there at the next start
        raise OperationError(f"{document.where('engine', 'device')}: {error}") from error


def _plan_decoder(document: Document[NodeConfiguration], device: str) -> int | None:
    wanted = document.value.engine.decoder
    index = torch.device(device).index or 0 if device.startswith("cuda") else None
    if wanted == "software" or (wanted == "auto" and (index is None or not find_spec("cupy"))):
        return None
    try:
        if index is None:
            raise ConfigurationError(f"decoder: nvdec goes with a CUDA device, not with {device}")
        load_cupy()
    except ConfigurationError as error:
        raise ConfigurationError(f"{document.where('engine', 'decoder')}: {error}") from error
    return index


def plan_stream(
    document: Document[NodeConfiguration],
    i: int,
    pipelines: Mapping[str, Pipeline],
    device: PlannedDevice,
    *,
    there: bool = False,
) -> PlannedStream:
    """Check streams[i] against its pipeline and find everything that it needs.

    Args:
        document: The configuration.
        i: Which stream.
        pipelines: Of the configuration.
        device: Of the node.
        there: Whether a file or folder that is its source has to be there; a node waits for it.

    Raises:
        ConfigurationError: Names file, line, key path, value and remedy.
    """
    section = document.value.streams[i]
    pipeline = pipelines[section.pipeline]
    try:
        costs = _plan_costs(document, section, pipeline, device)
        budget = section.budget.build()
        terms = terms_of(section, budget, costs)
        check_reach(terms, costs)
        check_bounds(section, terms)
    except (PipelineError, BudgetError) as error:
        raise ConfigurationError(f"{document.where('streams', i, 'budget')}: {error}") from error
    try:
        policy = load_policy(pipeline.policy_file(section.policy), pipeline.costs.fractions)
    except PipelineError as error:
        raise ConfigurationError(f"{document.where('streams', i, 'policy')}: {error}") from error
    source, fallback = plan_source(document, i, pipeline, device.gpu, there=there)
    maps = _plan_maps(document, i, pipeline)
    table = policy.table if costs is pipeline.costs else policy.table.costing(costs.fractions)
    return PlannedStream(
        section, pipeline, policy, costs, table, budget, terms, source, fallback, maps
    )


def _plan_costs(
    document: Document[NodeConfiguration],
    section: StreamSection,
    pipeline: Pipeline,
    device: PlannedDevice,
) -> CostTable:
    """What the stream's budget counts: where the device is shared out, its milliseconds."""
    unit = section.budget.build().cost_unit
    if document.value.engine.milliseconds_per_second is None:
        if unit == "gflops":
            return pipeline.costs
    elif unit == "gflops" and section.budget.fraction is None:
        raise BudgetError(
            "with engine.milliseconds_per_second the device's time is shared out; give the budget as a "
            "fraction or in milliseconds"
        )
    return device_costs(pipeline.folder, device.backend)


def check_bounds(section: StreamSection, terms: Terms) -> None:
    """Floor and cap have to hold the budget between them.

    Raises:
        BudgetError: They do not.
    """
    floor, cap = section.budget.floor or 0.0, section.budget.cap
    if terms.per == "frame" and not floor <= min(terms.amount, 1.0) <= cap:
        raise BudgetError(
            f"{terms.amount:.4g} of the full network must lie between floor ({floor:g}) and cap ({cap:g})"
        )


def terms_of(section: StreamSection, budget: Budget, costs: CostTable) -> Terms:
    """A budget held as a stream's section says.

    Raises:
        BudgetError: They do not go together.
    """
    return Terms.of(
        budget,
        costs,
        window=section.window,
        window_seconds=section.window_s,
        strict=section.budget.strict,
    )


def check_reach(terms: Terms, costs: CostTable) -> None:
    """Refuse a budget per frame that no exit is cheap enough for.

    Raises:
        BudgetError: Says what the first exit costs.
    """
    if terms.per == "frame" and terms.amount < costs.fractions[0]:
        raise BudgetError(
            f"{terms.amount:.4g} of the full network is out of reach; leaving at the first exit already "
            f"costs {_up(costs.fractions[0])} ({_up(costs.per_exit[0])} {UNIT_WORDS[costs.unit]}). Raise "
            "the budget to at least that"
        )


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


def plan_share(engine: EngineSection) -> DeviceShare | None:
    """What budgets share, if the device is shared out."""
    asked = engine.milliseconds_per_second
    if asked is None:
        return None
    return DeviceShare(AUTO_SHARE if asked == "auto" else asked, engine.admission)
