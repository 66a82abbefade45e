"""What a configuration file may say. Only the runtime and the command line read this."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    field_validator,
    model_validator,
)

from streamexit.durations import parse_duration
from streamexit.exits import DEFAULT_WINDOW, Budget
from streamexit.schedule import ActiveHours
from streamexit.wire.commands import VERBS
from streamexit.wire.topics import ID_PATTERN

Id = Annotated[str, Field(pattern=ID_PATTERN)]
_TOKEN = re.compile(r"[!-~]{16,}")  # others cannot be shown in a header
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Section(BaseModel):
    """Base of all sections: unknown keys are errors.

    What stands under a field is its description in docs/reference/configuration.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NodeSection(Section):
    """Who this node is."""

    id: Id = "node"
    """Part of every topic."""
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")] = "streamexit"
    """First part of every topic; may have levels, as in site/north."""
    timezone: str | None = None
    """Time zone of `active_hours`, as in Europe/Berlin; the machine's when left out."""

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, name: str | None) -> str | None:
        if name is not None and name not in available_timezones():
            raise ValueError("write an IANA name, as in Europe/Berlin")
        return name


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ShareOfFull = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class TlsSection(Section):
    """How the broker of an mqtts URL proves who it is, and we to it. Files are relative to the configuration file."""

    ca_file: str | None = None
    """PEM file: certificate authorities to trust instead of the system's."""
    cert_file: str | None = None
    """PEM file: our certificate, for brokers that ask for one."""
    key_file: str | None = None
    """PEM file: its key, where that is not in the same file."""
    key_password: SecretStr | None = None
    """Of the key, where it is encrypted."""
    verify: bool = True
    """False believes any broker: for trials only."""

    @model_validator(mode="after")
    def _key_needs_certificate(self) -> Self:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file goes with cert_file")
        return self


class SpoolSection(Section):
    """Where results of QoS 1 are kept while the broker is away."""

    file: str | None = None
    """The file, relative to the configuration file. Left out: `<node.id>.spool` in `$STATE_DIRECTORY`, else in
    `streamexit/` under `$XDG_STATE_HOME` or `~/.local/state`."""
    max_bytes: Annotated[int, Field(ge=10_000)] = 256 << 20
    """How large it may become; beyond, the oldest results go, and are counted."""
    max_age_s: Positive = 86_400.0
    """Results that are older go, and are counted."""
    results_per_s: Positive = 500.0
    """Once the broker is back, what was kept is sent at this rate, beside the live results."""


class MqttSection(Section):
    """Where results are published."""

    url: str | Annotated[list[str], Field(min_length=1)]
    """`mqtt://host[:1883]`, `mqtts://host[:8883]` (verified TLS), a list of these (if one is not there the
    next is tried), or `embedded`: a broker of our own on loopback."""
    username: str | None = None
    """Who we are to the broker; left out, nobody."""
    password: SecretStr | None = None
    """From the environment or the file of secrets, as in `${MQTT_PASSWORD}`."""
    tls: TlsSection | None = None
    """For `mqtts`, and refused without: whom to trust, and our own certificate; left out, the system's
    authorities."""
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    """For brokers whose rules name clients; it must be no other client's. Left out, one is made up."""
    qos: Literal[0, 1] = 1
    """Of results; retained topics always use 1."""
    result_expiry_s: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = 3600
    """MQTT 5: how long the broker keeps a live result for a subscriber that is away; null: for ever."""
    spool: SpoolSection | None = SpoolSection()
    """Where results wait for the broker; on unless it is null, which keeps them in memory only."""
    commands: bool | list[str] = True
    """Which commands are taken over MQTT: all, none, or those that are named."""

    @field_validator("commands", mode="before")
    @classmethod
    def _check_commands(cls, commands: object) -> object:
        if isinstance(commands, bool):
            return commands
        if not isinstance(commands, list) or not all(verb in VERBS for verb in commands):
            raise ValueError(f"write true, false or a list of these: {', '.join(VERBS)}")
        return commands

    @property
    def urls(self) -> list[str]:
        """One or more."""
        return [self.url] if isinstance(self.url, str) else self.url

    @field_validator("url", mode="before")
    @classmethod
    def _check_urls(cls, url: object) -> object:
        for one in url if isinstance(url, list) and url else [url]:
            if one != "embedded" or isinstance(url, list):
                cls._check_url(one)
        return url

    @classmethod
    def _check_url(cls, url: object) -> None:
        if not isinstance(url, str):
            raise ValueError(
                "write mqtt://host:1883, mqtts://host:8883, a list of these or embedded"
            )
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

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> Self:
        if self.url == "embedded":
            for name in ("username", "password", "tls", "spool"):
                if name in self.model_fields_set and getattr(self, name) is not None:
                    raise ValueError(f"{name} means nothing to the embedded broker; leave it out")
        if self.tls is not None and not any(urlsplit(url).scheme == "mqtts" for url in self.urls):
            raise ValueError("tls is for mqtts; write mqtts:// in url, or leave tls out")
        if self.password is not None and self.username is None:
            raise ValueError("password goes with username; give both")
        return self


class HomeAssistantSection(Section):
    """MQTT discovery; off unless this section is there."""

    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")] = "homeassistant"
    """Home Assistant's discovery prefix."""


class HttpSection(Section):
    """Commands, health, metrics and a web page over HTTP; off unless this section is there."""

    host: str = "127.0.0.1"
    """Where to listen; beyond loopback a token is needed."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8420
    """Port to listen at; 0 takes a free one."""
    token: SecretStr | None = None
    """Whoever shows it may do everything; 16 characters of ASCII or more, without spaces, from the environment or the file of
    secrets. Needed beyond loopback."""

    @model_validator(mode="after")
    def _token_beyond_loopback(self) -> Self:
        if self.token is None and self.host not in LOOPBACK:
            raise ValueError(
                f"{self.host!r} can be reached by others: give a token, as in token: "
                "${STREAMEXIT_HTTP_TOKEN}, or listen at 127.0.0.1"
            )
        if self.token is not None and not _TOKEN.fullmatch(self.token.get_secret_value()):
            raise ValueError(
                "token: 16 characters at least, of ASCII and without spaces, as `openssl rand -hex 16` "
                "makes them"
            )
        return self


class BudgetSection(Section):
    """One of the units, once, and how it is to be held."""

    fraction: Positive | None = None
    """Mean cost per frame as a share of the full network's; 40% is 0.4."""
    gflops_per_frame: Positive | None = None
    """Mean cost per frame in GFLOPs."""
    milliseconds_per_frame: Positive | None = None
    """Mean milliseconds of the device per frame, by the pipeline's profile on it (`streamexit profile`)."""
    gflops_per_second: Positive | None = None
    """GFLOPs per second, for streams whose frame rate varies."""
    milliseconds_per_second: Positive | None = None
    """Milliseconds of the profiled device per second, for streams whose frame rate varies."""
    strict: bool = False
    """No window may cost more than its budget, not even by a little; costs 1% of the budget. Not with a
    budget per second, nor with a window in seconds."""
    floor: ShareOfFull | None = None
    """Where the device is shared out (`engine.milliseconds_per_second`): the least that the stream may be
    left with, as a share of the full network's cost; the first exit's when left out."""
    cap: ShareOfFull = 1.0
    """Where the device is shared out: the most that the stream may be given, as a share of the full
    network's cost."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if not isinstance(value, dict | BudgetSection):
            raise ValueError("name the unit, as in {fraction: 0.4}")
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self._amounts()) != 1:
            raise ValueError(f"give one of {', '.join(Budget.UNITS)}")
        if self.floor is not None and self.floor > self.cap:
            raise ValueError(f"floor {self.floor} is above cap {self.cap}")
        return self

    def _amounts(self) -> dict[str, float]:
        given = {unit: getattr(self, unit) for unit in Budget.UNITS}
        return {unit: amount for unit, amount in given.items() if amount is not None}

    def build(self) -> Budget:
        """The checked value."""
        ((unit, amount),) = self._amounts().items()
        return Budget(amount, unit)


def _is_span(text: str) -> str:
    ActiveHours.parse(text)
    return text


ActiveSpan = Annotated[str, AfterValidator(_is_span)]
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


class SourceSection(Section):
    """A source with options."""

    url: Annotated[str, Field(min_length=1)]
    """What `source` is when it is a text alone."""
    username: str | None = None
    """Of the camera or server: RTSP, RTMP, HTTP and HLS."""
    password: SecretStr | None = None
    """Any characters; from the environment or the file of secrets, as in `${CAMERA_PASSWORD}`: one that is
    written here is refused."""
    transport: Literal["tcp", "udp"] = "tcp"
    """RTSP: how the camera sends."""
    live: bool | None = None
    """HTTP, HLS, TCP and stdin: a live stream is reopened for ever and drops frames rather than
    lagging, a recording ends and waits. Left out, the address decides."""
    tls_verify: bool = True
    """HTTPS: whether the server's certificate must be trusted."""
    ca_file: str | None = None
    """HTTPS: PEM file of further certificates to trust; relative to the configuration file."""
    size: Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")] | None = None
    """USB cameras: as in 1280x720."""
    rate: Positive | None = None
    """USB cameras: frames per second to ask for."""
    pixel_format: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] | None = None
    """USB cameras: FFmpeg's name of the format to ask for: mjpeg, yuyv422 ..."""
    format: Annotated[str, Field(pattern=r"^[a-z0-9_,]+$")] | None = None
    """FFmpeg's name of the container, where the data does not show it, as in mpegts."""
    existing: bool = False
    """Watched folders: begin with the recordings that are there."""
    settle_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    """Watched folders: a recording is whole once it has not grown for so long."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value


def _is_duration(value: str | float) -> str | float:
    if isinstance(value, str):
        parse_duration(value)
    return value


class PublishEvery(Section):
    """At most one result in so much time."""

    every: Annotated[str | Positive, AfterValidator(_is_duration)]
    """As in 2s, 500ms, 1m."""

    @property
    def seconds(self) -> float:
        """The same as a number."""
        return parse_duration(self.every) if isinstance(self.every, str) else self.every


class StreamSection(Section):
    """A source + a pipeline + a budget."""

    id: Id
    """Part of its topics; unique."""

    @field_validator("publish", mode="before")
    @classmethod
    def _check_publish(cls, publish: object) -> object:
        if isinstance(publish, dict | PublishEvery) or publish in ("every_frame", "on_change"):
            return publish
        raise ValueError("write every_frame, on_change or {every: 2s}")

    source: SourceSection
    """A file, a URL, `usb:0`, `images:FOLDER_OR_ZIP`, `watch:FOLDER`, `stdin` or `synthetic:seed=1,frames=300`,
    or a mapping with `url` and options; files are relative to the configuration file."""
    enabled: bool = True
    """False leaves the stream alone."""
    active_hours: Annotated[list[ActiveSpan], Field(min_length=1)] | None = None
    """Live streams: when they are wanted, as in `["mon-fri 07:00-19:00"]`, by `node.timezone`; left out:
    always."""
    decode: Literal["thread", "process"] = "thread"
    """A process of its own costs memory, and isolates the node from codecs that crash or hang."""
    max_age_s: Positive | None = None
    """Live streams: no answer is older; frames that would be are dropped and counted. 2 when left out."""
    open_timeout_s: Positive = 10.0
    """From the beginning of an attempt to its first picture. Recordings have six times as long."""
    stalled_after_s: Positive = 3.0
    """Live streams: so long without a picture, and the stream is called stalled."""
    frame_timeout_s: Positive = 10.0
    """So long without a picture, and a live stream is opened anew. Recordings have six times as long, and
    end in an error."""
    longest_retry_s: Positive = 30.0
    """Live streams: pauses between attempts grow up to this."""
    attempts: Annotated[int, Field(ge=1)] | None = None
    """Live streams: failed ones in a row after which a stream is given up; left out: never."""
    pipeline: str
    """A name under `pipelines`."""
    budget: BudgetSection
    """What the stream may cost on average: one of five units."""
    publish: Literal["every_frame", "on_change"] | PublishEvery = "every_frame"
    """Which answers become results: all, those whose label differs from the one before, or at most one in so
    much time, as in {every: 2s}."""
    policy: str | None = None
    """One of the pipeline's exit policies; its default when left out."""
    window: Annotated[int, Field(ge=1, le=1_000_000)] = DEFAULT_WINDOW
    """Frames that the mean cost is held over."""
    window_s: Positive | None = None
    """The window in seconds instead of frames."""
    shadow: Annotated[float, Field(ge=0, le=0.5)] = 0.01
    """Share of the frames that go to the last exit whatever their scores say, to estimate how often the
    answers agree with the full network's; charged to the budget."""
    weight: Positive = 1.0
    """Where the device is shared out, how much the stream's answers count; where it is overloaded, frames
    of the lightest streams are dropped first."""
    pace: Literal["realtime", "fast"] = "realtime"
    """Recordings: at the speed of their timestamps, or as fast as the engine takes them."""
    loop: bool = False
    """Recordings: start again at the end."""
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 25.0
    """Frames per second of sources that have no clock of their own (images, synthetic)."""
    frame_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Frames per second that are analysed at most; the others of a faster source are skipped as early
    as the codec allows, and count nowhere."""
    every: Annotated[int, Field(ge=1)] = 1
    """Analyse each so-manieth frame only."""
    key_frames: bool = False
    """Analyse only frames that the codec needs no other for; the others are not decoded."""
    regions: dict[Id, Annotated[list[Corner], Field(min_length=3)]] = {}
    """Segmentation: polygons whose class shares are sent, too; corners (x, y) as shares of the
    frame's width and height."""
    mask: MaskSection | None = None
    """Segmentation: send the maps themselves."""
    deadline_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 200.0
    """So long after it was taken in, a frame waits for no others any more; not with `pace: fast`, where it may
    wait for as long as it takes."""
    buffer: Annotated[int, Field(ge=1)] = 16
    """Frames between decoder and engine; when it is full a camera drops its oldest frame, and a recording
    waits."""


class SinkSection(Section):
    """A sink of an installed plugin; what stands beside `kind` are its own options."""

    model_config = ConfigDict(extra="allow")

    kind: str
    """The name of the plugin's entry point in the group streamexit.sinks."""

    @property
    def options(self) -> dict[str, Any]:
        """For its constructor."""
        return self.model_extra or {}


class AccessSection(Section):
    """What sources may reach."""

    schemes: list[str] | None = None
    """Schemes that sources may have, as in [rtsp, file]; left out: all."""
    roots: list[str] | None = None
    """Folders that files must lie in, links followed, relative to the configuration file; left out: all."""
    networks: list[IPvAnyNetwork] = []
    """Networks that may be reached although they are link-local or hold metadata services of clouds, as in
    [169.254.10.0/24]."""
    hosts: list[str] = []
    """Hosts that playlists and HTTP redirections may lead to, besides the source's own."""


class EngineSection(Section):
    """Where networks run, and how batches form."""

    device: str = "auto"
    """`cpu`, `cuda:0` ...; `auto` takes the first CUDA device, else the CPU."""
    backend: Literal["auto", "openvino", "cuda", "torch", "torch-compiled"] = "auto"
    """What runs the networks; `auto` is `openvino` on a CPU and `cuda` (captured graphs) on a GPU."""
    decoder: Literal["auto", "software", "nvdec"] = "auto"
    """Of videos; `auto` is `nvdec` where networks run on a GPU and CuPy is installed."""
    precision: Literal["auto", "float32", "bf16", "int8"] = "auto"
    """Numbers that networks count in; `auto` is `bf16` where the device has it. `int8` is for pipelines that
    `streamexit quantise` has been through."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """Frames that go through a stage together; left out, a measurement at the first start chooses per stage,
    and is remembered."""
    max_batch: Annotated[int, Field(ge=1)] = 32
    """The largest batch that the measurement may choose."""
    milliseconds_per_second: Positive | Literal["auto"] | None = None
    """Device time for all streams together, shared out to where depth buys most agreement; `auto`: nine
    tenths of what the device can do. Left out, every stream keeps its own budget."""
    admission: Literal["shrink", "refuse"] = "shrink"
    """A stream for whose budget the device has no room gets the largest that fits, or is refused."""
    max_wait_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    """How long a frame of a live stream may wait for others at a stage."""


class NodeConfiguration(Section):
    """A whole configuration file."""

    node: NodeSection = NodeSection()
    """Who this node is."""
    engine: EngineSection = EngineSection()
    """Where networks run, and how batches form."""
    mqtt: MqttSection | None = None
    """Where results are published; left out, nothing is published."""
    homeassistant: HomeAssistantSection | None = None
    """The section, even an empty one, switches MQTT discovery for Home Assistant on; needs `mqtt`."""
    http: HttpSection | None = None
    """The section, even an empty one, switches commands, health, metrics and a web page over HTTP on."""
    results_file: str | None = None
    """Also append every result to this JSONL file; left out, no file is written."""
    sinks: list[SinkSection] = []
    """Also give every result to these, which plugins bring along."""
    state_file: str | None = None
    """Where budgets that were changed at run time, and what was learned of the streams, are kept over a
    restart; relative to the configuration file."""
    stats_every_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Seconds between two `stats` messages."""
    overlay_file: str | None = None
    """Where commands with `persist: true` write what they changed; it is read after this file, which is never
    written. Relative to this file; left out: beside it, as `node.overlay.yaml` is beside `node.yaml`."""
    secrets: str | None = None
    """A file of `NAME=value` lines, or a folder with a file per name, that `${NAME}` is looked up in where the
    environment has none; relative to this file."""
    access: AccessSection = AccessSection()
    """What sources may reach."""
    pipelines: Annotated[dict[Id, str], Field(min_length=1)]
    """Name -> pipeline folder, relative to the configuration file."""
    streams: list[StreamSection] = []
    """What is watched; may be empty where commands can add some."""

    @model_validator(mode="after")
    def _sections_go_together(self) -> Self:
        if not self.streams and self.mqtt is None and self.http is None:
            raise ValueError("streams: there is none, and neither mqtt nor http to add one with")
        if self.homeassistant is not None and self.mqtt is None:
            raise ValueError("homeassistant: is told over MQTT; add mqtt, or leave it out")
        return self
