"""What a configuration file may say. Only the runtime and the command line read this."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from streamexit.exits import Budget
from streamexit.wire.topics import ID_PATTERN

Id = Annotated[str, Field(pattern=ID_PATTERN)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSection(Section):
    """Who this node is."""

    id: Id = "node"
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")] = "streamexit"
    """First part of every topic."""


class MqttSection(Section):
    """Where results are published."""

    url: str
    """mqtt://host[:port], mqtts://host[:port], or "embedded": a broker of our own on loopback."""
    username: str | None = None
    password: SecretStr | None = None
    qos: Literal[0, 1] = 1
    """Of results; retained topics always use 1."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url == "embedded":
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ValueError("write mqtt://host:1883, mqtts://host:8883 or embedded")
        if parts.username or parts.password:
            raise ValueError("credentials do not belong in the URL; use username and password")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if port == 0:
            raise ValueError("the port must be a number between 1 and 65535")
        return url


class BudgetSection(Section):
    """One of the units, once."""

    fraction: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    gflops_per_frame: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    milliseconds_per_frame: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Of the device, by the pipeline's profile on it (`streamexit profile`)."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(amount is not None for amount in self.model_dump().values()) != 1:
            raise ValueError(
                "give one of fraction (of the full network), gflops_per_frame and "
                "milliseconds_per_frame"
            )
        return self

    def build(self) -> Budget:
        """The checked value."""
        given = {unit: amount for unit, amount in self.model_dump().items() if amount is not None}
        ((unit, amount),) = given.items()
        return Budget(amount, unit)


Corner = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]]


class MaskSection(Section):
    """How segmentation maps are sent."""

    encoding: Literal["png", "rle"] = "png"
    """A grey PNG of class indices, or COCO's run lengths per class."""
    resolution: Literal["network", "frame"] = "network"
    """As large as the network's input, or as the frame."""
    every_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """At most one in so many seconds of the stream, so that maps do not fill the broker; 0: all."""
    max_bytes: Annotated[int, Field(ge=1)] = 100_000
    """A larger one is left out, and the result says so."""


class StreamSection(Section):
    """A source + a pipeline + a budget."""

    id: Id
    source: Annotated[str, Field(min_length=1)]
    """A file, a URL, images:FOLDER_OR_ZIP or synthetic:seed=1,frames=300; files are relative to
    the configuration file."""
    pipeline: str
    """A key of `pipelines`."""
    budget: BudgetSection
    policy: str | None = None
    """One of the pipeline's exit policies; its default when left out."""
    window: Annotated[int, Field(ge=1)] = 300
    """Frames that the mean cost is held over."""
    pace: Literal["realtime", "fast"] = "realtime"
    """Recordings: at the speed of their timestamps, or as fast as the engine takes them."""
    loop: bool = False
    """Recordings: start again at the end."""
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 25.0
    """Frames per second of sources that have no clock of their own (images, synthetic)."""
    frame_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Frames per second that are analysed at most; the others of a faster source are skipped as early
    as the codec allows, and count nowhere."""
    regions: dict[Id, Annotated[list[Corner], Field(min_length=3)]] = {}
    """Segmentation: polygons whose class shares are sent, too; corners (x, y) as shares of the
    frame's width and height."""
    mask: MaskSection | None = None
    """Segmentation: send the maps themselves."""
    deadline_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 200.0
    """Of live streams: so long after its admission a frame waits for no others any more."""
    buffer: Annotated[int, Field(ge=1)] = 16
    """Frames between decoder and engine; a camera drops its oldest frame when it is full."""


class EngineSection(Section):
    """Where networks run, and how batches form."""

    device: str = "auto"
    """auto, cpu, cuda:0 ..."""
    backend: Literal["auto", "openvino", "cuda", "torch", "torch-compiled"] = "auto"
    """auto is openvino on a CPU and cuda (captured graphs) on a GPU."""
    decoder: Literal["auto", "software", "nvdec"] = "auto"
    """Of videos; auto is nvdec where networks run on a GPU and CuPy is installed."""
    precision: Literal["auto", "float32", "bf16", "int8"] = "auto"
    batch: Annotated[int, Field(ge=1)] | None = None
    """Rows of a full batch; left out, a measurement at the first start chooses, and is remembered."""
    max_batch: Annotated[int, Field(ge=1)] = 32
    """The largest batch that it may choose."""
    max_wait_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    """How long a frame of a live stream may wait for others at a stage."""


class NodeConfiguration(Section):
    """A whole configuration file."""

    node: NodeSection = NodeSection()
    engine: EngineSection = EngineSection()
    mqtt: MqttSection | None = None
    results_file: str | None = None
    """Also write every result to this JSONL file."""
    stats_every_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    pipelines: Annotated[dict[Id, str], Field(min_length=1)]
    """Name -> pipeline folder, relative to the configuration file."""
    streams: Annotated[list[StreamSection], Field(min_length=1)]
