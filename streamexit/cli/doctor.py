"""`streamexit doctor`: everything a node needs, tried out one by one, with what to do."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from streamexit.cli.options import JsonOption
from streamexit.errors import StreamExitError

if TYPE_CHECKING:
    from streamexit.backends.backend import RowState
    from streamexit.backends.opening import BackendOptions
    from streamexit.config.schema import NodeConfiguration
    from streamexit.documents import Document
    from streamexit.planning.streams import PlannedStream
    from streamexit.sinks.brokers import BrokerAddress
    from streamexit.sources.source import Watch

CODECS = ("h264", "hevc", "mjpeg")
FRESH_SECONDS = 1_760_000_000
"""Unix time before which no clock can be right that runs this program."""

LOOK_SECONDS = 0.05
"""Between two looks at a source."""

TIMESYNC = Path("/run/systemd/timesync/synchronized")


@dataclass(frozen=True)
class Finding:
    """What became of a check.

    Attributes:
        check: What was looked at.
        outcome: A warning does not keep a node from working.
        message: With the remedy, if one is needed.
    """

    check: str
    outcome: Literal["good", "warning", "bad"]
    message: str


def doctor(
    config: Annotated[Path, typer.Argument(help="A configuration file (YAML).")],
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for each source and broker.")
    ] = 10.0,
    json: JsonOption = False,
) -> None:
    """Check decoder, backend, device, disk, clock, broker and each source, and say what to do.

    Exit codes: 0 all good, or warnings only; 1 something is bad; 2 the configuration is.
    """
    from streamexit.cli.app import EXIT_FAILURE, print_json
    from streamexit.config.load import load_configuration
    from streamexit.planning.streams import plan_streams

    document = load_configuration(config)
    plans = plan_streams(document, there=False)
    findings: list[Finding] = []
    for finding in examine(document, plans, timeout):
        findings.append(finding)
        if not json:
            typer.echo(f"{finding.outcome:<8}{finding.check:<16} {finding.message}")
    if json:
        print_json({"config": str(config), "findings": [vars(f) for f in findings]})
    if any(finding.outcome == "bad" for finding in findings):
        raise typer.Exit(EXIT_FAILURE)


def examine(
    document: Document[NodeConfiguration], plans: list[PlannedStream], timeout: float
) -> Iterator[Finding]:
    """All checks, one after the other."""
    yield _tried("decoder", lambda: _decoder(document))
    yield _tried("backend", lambda: _backend(document, plans))
    yield from _disk(document)
    yield from _files(document)
    yield _clock()
    if document.value.mqtt is not None:
        yield from _brokers(document, timeout)
    if document.value.http is not None:
        yield _tried("http", lambda: _port(document))
    for plan in plans:
        yield _source(plan, timeout)


def _tried(check: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(check, "good", work())
    except (StreamExitError, OSError) as error:
        return Finding(check, "bad", str(error))


def _decoder(document: Document[NodeConfiguration]) -> str:
    import av

    from streamexit.errors import OperationError
    from streamexit.planning.streams import plan_device

    gpu = plan_device(document).gpu
    missing = [codec for codec in CODECS if codec not in av.codecs_available]
    if missing:
        raise OperationError(
            f"FFmpeg inside PyAV {av.__version__} has no {', '.join(missing)}; install PyAV's own wheel"
        )
    where = "in software" if gpu is None else f"on GPU {gpu}"
    return f"PyAV {av.__version__}: {', '.join(CODECS)}, {where}"


def _backend(document: Document[NodeConfiguration], plans: list[PlannedStream]) -> str:
    """Opened, and each network run once."""
    from streamexit.errors import OperationError
    from streamexit.planning.streams import plan_device

    options = plan_device(document).backend
    for pipeline, plan in {plan.pipeline.name: plan for plan in plans}.items():
        try:
            _run_once(plan, replace(options, batch=options.batch or 1))
        except Exception as error:  # whatever the runtime or the driver raises
            raise OperationError(f"{pipeline} does not run on {options.device}: {error}") from error
    return f"{options.kind}, {options.device}, {options.precision}, {os.cpu_count()} CPUs"


def _run_once(plan: PlannedStream, options: BackendOptions) -> None:
    import numpy as np

    from streamexit.backends.opening import open_backend

    backend = open_backend(plan.pipeline, plan.policy.scorer, options)
    size = plan.pipeline.network.preprocessing
    states: Sequence[RowState] = [np.zeros((size.height, size.width, 3), np.uint8)]
    for stage in range(backend.num_stages):
        states = backend.submit(stage, states).result().states


def _disk(document: Document[NodeConfiguration]) -> Iterator[Finding]:
    from streamexit.cache import cache_folder
    from streamexit.planning.sinks import spool_path

    yield _folder("cache", cache_folder(), 1 << 30, "$STREAMEXIT_CACHE")
    mqtt = document.value.mqtt
    if mqtt is not None and mqtt.spool is not None and mqtt.url != "embedded":
        path = spool_path(document)
        yield _folder("spool", path.parent, 2 * mqtt.spool.max_bytes, "mqtt.spool.file")


def _files(document: Document[NodeConfiguration]) -> Iterator[Finding]:
    """What the node writes beside results."""
    from streamexit.config.overlay import overlay_path

    value, base = document.value, document.path.parent
    if value.results_file:
        yield _folder("results_file", (base / value.results_file).parent, 0, "results_file")
    if value.state_file:
        yield _file("state_file", base / value.state_file, "bad", "name another with state_file")
    yield _file(
        "overlay_file",
        overlay_path(document.path, value),
        "bad" if value.overlay_file else "warning",
        "commands with persist: true need one; name another with overlay_file",
    )


def _file(check: str, path: Path, else_: Literal["bad", "warning"], remedy: str) -> Finding:
    """Whether a file can be written and replaced."""
    try:
        _write_probe(path.parent)
    except OSError as error:
        return Finding(check, else_, f"{path} cannot be written ({error.strerror}); {remedy}")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        return Finding(check, else_, f"{path} cannot be written; {remedy}")
    return Finding(check, "good", f"{path}")


def _write_probe(folder: Path) -> None:
    probe = folder / f".doctor-{uuid.uuid4().hex}"
    probe.write_bytes(b"x")
    probe.unlink()


def _folder(check: str, folder: Path, wanted: int, remedy: str) -> Finding:
    """Whether a folder can be written, and has room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_probe(folder)
    except OSError as error:
        what = f"{folder} cannot be written ({error.strerror}); name another with {remedy}"
        return Finding(check, "bad", what)
    free = shutil.disk_usage(folder).free
    said = f"{folder}, {free >> 20} MiB free"
    if free < wanted:
        return Finding(check, "warning", f"{said}; make room for {wanted >> 20} MiB")
    return Finding(check, "good", said)


def _clock() -> Finding:
    now = time.time()
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < FRESH_SECONDS:
        return Finding("clock", "bad", f"{said} lies in the past; set it, or start a time service")
    if Path("/run/systemd/system").exists() and not TIMESYNC.exists():
        return Finding(
            "clock",
            "warning",
            f"{said}; systemd-timesyncd has not set it: if nothing else does, start it",
        )
    return Finding("clock", "good", said)


def _brokers(document: Document[NodeConfiguration], timeout: float) -> Iterator[Finding]:
    """Each is connected to, subscribed at, and published to: a message to ourselves has to come back."""
    from streamexit.planning.sinks import broker_addresses
    from streamexit.sinks.visits import say_and_hear
    from streamexit.wire.topics import Topics

    settings, node = document.value.mqtt, document.value.node
    assert settings is not None
    if settings.url == "embedded":
        yield Finding("broker", "good", "embedded: a broker of our own, on loopback")
        return
    topic = f"{Topics(node.prefix, node.id).root}/doctor"
    for address in broker_addresses(settings, document.path.parent):

        def talk(address: BrokerAddress = address) -> str:
            protocol = asyncio.run(say_and_hear(address, topic, patience=timeout))
            return f"{address!r}: MQTT {protocol}, a message to {topic} came back"

        yield _tried("broker", talk)


def _port(document: Document[NodeConfiguration]) -> str:
    from streamexit.http.listening import listen

    section = document.value.http
    assert section is not None
    listen(section.host, section.port).close()
    return f"{section.host} port {section.port} is free"


def _source(plan: PlannedStream, timeout: float) -> Finding:
    """Its first picture, in a thread that is left behind if it hangs."""
    from streamexit.sources.source import Watch

    check = f"source {plan.section.id}"
    if not plan.section.enabled:
        return Finding(check, "warning", "not tried: the stream is not enabled")
    watch, found = Watch(), list[Finding]()
    thread = threading.Thread(
        target=lambda: found.append(_first_picture(check, plan, watch)), daemon=True
    )
    thread.start()
    deadline = time.monotonic() + timeout
    while thread.is_alive() and not watch.idle and time.monotonic() < deadline:
        thread.join(LOOK_SECONDS)
    finding = _outcome(check, found, watch, timeout)
    watch.stop()
    return finding


def _outcome(check: str, found: list[Finding], watch: Watch, timeout: float) -> Finding:
    if found:
        return found[0]
    if watch.problem:
        return Finding(check, "bad", str(watch.problem))
    if watch.idle:
        return Finding(check, "good", "open; there is nothing to play yet")
    return Finding(check, "bad", f"no picture within {timeout:g} s; see whether it plays elsewhere")


def _first_picture(check: str, plan: PlannedStream, watch: Watch) -> Finding:
    begun = time.monotonic()
    try:
        pictures = plan.source.pictures(lambda reason: None, watch)
        picture = next(iter(pictures), None)
    except StreamExitError as error:
        return Finding(check, "bad", str(error))
    if picture is None:
        return Finding(check, "bad", "it holds not one picture")
    media = picture.media
    about = f"{media.codec} {media.width}x{media.height}" if media else "pictures"
    return Finding(check, "good", f"{about}, the first after {time.monotonic() - begun:.1f} s")
