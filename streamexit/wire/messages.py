"""The messages: pydantic models, from which the JSON Schemas in docs/schemas are made.

Units stand in the names. There is no NaN. Within a major version changes only add.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamexit.wire.topics import ID_PATTERN

Id = Annotated[str, Field(pattern=ID_PATTERN)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Timestamp = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
"""RFC 3339, UTC, milliseconds."""


def timestamp(unix_seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(unix_seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Message(BaseModel):
    """Base of all messages. Receivers must ignore fields that they do not know."""

    model_config = ConfigDict(
        populate_by_name=True, allow_inf_nan=False, serialize_by_alias=True, frozen=True
    )

    def encode(self) -> bytes:
        """UTF-8 JSON."""
        return self.model_dump_json(by_alias=True).encode()


class Cost(Message):
    """What a frame cost."""

    value: Annotated[float, Field(gt=0)]
    unit: Literal["gflops", "milliseconds"]


class TopClass(Message):
    """One of the most probable classes."""

    label: str
    probability: Share


class ClassificationAnswer(Message):
    """The answer of a classification network."""

    task: Literal["classification"] = "classification"
    label: str
    index: Count
    probability: Share
    top: list[TopClass]

    def in_short(self) -> str:
        """For people."""
        return f"{self.label} {self.probability:.0%}"


class ClassShare(Message):
    """How much of the picture, or of a region, a class covers."""

    label: str
    share: Share


class Region(Message):
    """A polygon of the configuration."""

    name: str
    shares: list[ClassShare]
    """Of the region; the classes that occur, largest first. Empty where the network sees nothing
    of it."""


class ClassRuns(Message):
    """Where one class is, as COCO's uncompressed run lengths."""

    label: str
    counts: list[Count]
    """Down the columns from the upper left corner: pixels not of the class, pixels of it, and so
    on by turns."""


class Mask(Message):
    """A whole map."""

    encoding: Literal["png", "rle"]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    png: str | None = None
    """Base64 of a grey PNG: each pixel the index of its class among the pipeline's labels, 255 where
    the network saw nothing."""
    rle: list[ClassRuns] | None = None


class SegmentationAnswer(Message):
    """The answer of a segmentation network."""

    task: Literal["segmentation"] = "segmentation"
    width: Annotated[int, Field(ge=1)]
    """Of the map, in pixels."""
    height: Annotated[int, Field(ge=1)]
    shares: list[ClassShare]
    """The classes that occur, largest first."""
    dominant: list[str]
    """The classes that cover at least a tenth of the frame, largest first."""
    regions: list[Region] = []
    mask: Mask | None = None
    mask_omitted: str | None = None
    """Why a mask that was due is missing."""

    def in_short(self) -> str:
        """The three largest, for people."""
        return ", ".join(f"{item.label} {item.share:.0%}" for item in self.shares[:3])


Answer = Annotated[ClassificationAnswer | SegmentationAnswer, Field(discriminator="task")]


class Result(Message):
    """One answered frame. `seq` counts per stream and boot: a gap is a loss."""

    format: Literal["streamexit.result/1"] = Field("streamexit.result/1", alias="schema")
    node: Id
    boot_id: Id
    stream: Id
    epoch: Count
    seq: Count
    frame: Count
    pts_s: float
    captured_at: Timestamp
    published_at: Timestamp
    pipeline: Id
    exit: Annotated[int, Field(ge=1)]
    exits: Annotated[int, Field(ge=1)]
    score: Share
    cost: Cost
    latency_ms: Annotated[float, Field(ge=0)]
    answer: Answer
    dropped_since_last: Count
    unpublished_since_last: Count = 0
    """Answers that were left out on purpose (`publish`) since the last result."""
    historical: bool = False
    """It was kept while the broker was away, and comes late."""


class State(Message):
    """Retained: the latest answer in short, sent when it changes."""

    format: Literal["streamexit.state/1"] = Field("streamexit.state/1", alias="schema")
    label: str
    """The most probable class, or the one that covers most of the picture."""
    probability: Share | None = None
    """In classification."""
    share: Share | None = None
    """In segmentation: of the picture."""
    since: Timestamp


class MediaInfo(Message):
    """What a source sends."""

    codec: str
    width: Annotated[int, Field(ge=1)]
    """As it is to be shown: turned, and with square pixels."""
    height: Annotated[int, Field(ge=1)]
    rate: float | None = None
    """Frames per second that the source declares."""
    interlaced: bool = False


class Status(Message):
    """Retained: how a stream is doing."""

    format: Literal["streamexit.status/1"] = Field("streamexit.status/1", alias="schema")
    stream: Id
    state: Literal[
        "connecting",
        "online",
        "stalled",
        "reconnecting",
        "offline",
        "disabled",
        "ended",
        "error",
    ]
    reason: str
    """One word of the list in docs/sources.md; empty when all is well."""
    message: str
    since: Timestamp
    fps: Annotated[float, Field(ge=0)]
    decoder: Literal["software", "nvdec"]
    reconnects: Count
    frames: Count
    answered: Count
    dropped: dict[str, Count]
    last_result_at: Timestamp | None
    epoch: Count = 0
    """Of the latest answer."""
    media: MediaInfo | None = None
    abandoned: Count = 0
    """Decode threads that were given up because they hung, since the start."""
    hung: Count = 0
    """Of these, those that hang still."""


class Agreement(Message):
    """How often answers agree with the full network's, estimated from shadow frames."""

    fraction: Annotated[float, Field(gt=0)]
    """Mean cost at which it holds."""
    value: Share
    low: Share
    """Of the 95% interval."""
    high: Share


class Budget(Message):
    """Retained: a stream's budget and what is spent. Costs are shares of the full network's."""

    format: Literal["streamexit.budget/1"] = Field("streamexit.budget/1", alias="schema")
    stream: Id
    state: Literal["on_budget", "saturated", "unreachable", "not_binding"]
    policy: str
    target_fraction: Annotated[float, Field(gt=0)]
    mean_fraction: Share | None
    window_frames: Count
    frames_in_window: Count
    exit_shares: list[Share]
    thresholds: list[float | None]
    """Per exit; null where every frame that gets there leaves, 2 where none does."""
    thresholds_version: Count
    full_cost: Cost
    strict: bool = False
    window_s: float | None = None
    """Where the window is one in time."""
    target_per_second: Cost | None = None
    """Of a budget per second."""
    mean_per_second: Cost | None = None
    shadow_frames: Count = 0
    """That the agreement is estimated from."""
    agreement: Agreement | None = None
    """Of the answers that go out."""
    agreement_at: list[Agreement] = []
    """What it would be at other budgets."""
    last_change: str | None = None
    """Of the budget or of the exit shares, with its cause."""
    changed_at: Timestamp | None = None


class Fairness(Message):
    """How evenly streams are served."""

    jain: Share
    """Jain's index of the streams' agreement: 1 if all are equal."""
    worst_stream: Id
    worst_agreement: Share


class Info(Message):
    """Retained: what this node is. Holds no secrets."""

    format: Literal["streamexit.info/1"] = Field("streamexit.info/1", alias="schema")
    node: Id
    boot_id: Id
    version: str
    started_at: Timestamp
    device: str
    pipelines: list[str]
    streams: list[Id]
    schemas: list[str]


class NetworkLoad(Message):
    """A pipeline's network on the device."""

    pipeline: str
    policy: str
    device: str
    """Device, backend, precision."""
    batch: list[Count]
    """Rows of a full batch, per stage."""
    fill: list[Share | None]
    """Mean rows of a batch since the start, as a share of a full one; null before the first."""
    notes: list[str]
    """What the device could not do as wanted, such as batches that did not fit into its memory."""


class OutboxLoad(Message):
    """Results on their way to the broker."""

    under_way: Count
    """Waiting to be sent, or to be confirmed."""
    kept: Count
    """For when the broker is back."""
    spool_results: Count
    """Of them, in the file; with safety copies of those that are under way."""
    spool_bytes: Count
    problem: str
    """What is wrong with the spool; empty if nothing is."""


class Stats(Message):
    """The node in numbers, every few seconds."""

    format: Literal["streamexit.stats/1"] = Field("streamexit.stats/1", alias="schema")
    node: Id
    boot_id: Id
    at: Timestamp
    uptime_s: Annotated[float, Field(ge=0)]
    frames: Count
    answered: Count
    dropped: dict[str, Count]
    rows_waiting: Count
    outbox_length: Count
    results_lost: dict[str, Count]
    results_confirmed: Count = 0
    """Of this run, by the broker."""
    results_recovered: Count = 0
    """Of earlier runs: found in the spool, and sent."""
    outbox: OutboxLoad | None = None
    networks: list[NetworkLoad]
    fairness: Fairness | None = None
    """Once there are shadow frames."""
    allocated_ms_per_s: float | None = None
    """Device time that budgets add up to, where it is shared out."""


class Fault(Message):
    """Why a command was not carried out."""

    code: Literal[
        "bad_request",
        "unknown_verb",
        "unknown_stream",
        "not_allowed",
        "conflict",
        "invalid",
        "unavailable",
        "busy",
        "internal",
    ]
    message: str


class Response(Message):
    """The answer to a command."""

    format: Literal["streamexit.response/1"] = Field("streamexit.response/1", alias="schema")
    node: Id
    verb: str
    status: Literal["ok", "error"]
    error: Fault | None = None
    data: Any = None
    """By verb: docs/operations.md."""
    transaction: str | None = None
    """As the command said it."""


MESSAGES: dict[str, type[Message]] = {
    m.__name__.lower(): m for m in (Result, State, Status, Budget, Info, Stats, Response)
}
"""Leaf name -> model; the schema file of each is docs/schemas/<leaf>.json."""
