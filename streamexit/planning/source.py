"""From a stream's section to its source: everything about it that can be checked without opening it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from streamexit.config.schema import (
    AccessSection,
    NodeConfiguration,
    SourceSection,
    StreamSection,
)
from streamexit.documents import Document
from streamexit.errors import ConfigurationError, PluginError, SourceError
from streamexit.models.pipeline import Pipeline
from streamexit.plugins import plugins
from streamexit.sources.access import Access
from streamexit.sources.addresses import (
    SCHEMES,
    WORDS,
    Address,
    SourceOptions,
    parse_address,
)
from streamexit.sources.decode_process import ProcessSource
from streamexit.sources.joined import JoinedSource
from streamexit.sources.life import Patience
from streamexit.sources.opening import open_source
from streamexit.sources.sampling import Sampling
from streamexit.sources.source import Source

USUAL_MAX_AGE = 2.0
"""Seconds, of live streams."""

LIVE_ONLY = (
    "active_hours",
    "max_age_s",
    "stalled_after_s",
    "longest_retry_s",
    "attempts",
)

RELATIVE = "paths are relative to the configuration file"

_HOST = re.compile(r"(\d+\.){3}\d+[:/]|[\w.-]+:\d+")
"""How an address begins whose scheme was forgotten."""

CLOCKLESS = ("images", "synthetic", "plugin")
"""Kinds of sources whose pictures come at the stream's `rate`."""


def plan_source(
    document: Document[NodeConfiguration],
    i: int,
    pipeline: Pipeline,
    gpu: int | None,
    *,
    there: bool = False,
) -> tuple[Source, Source | None]:
    """The source of streams[i], not yet opened, and what to read it with when threads hang in it.

    Args:
        document: The configuration.
        i: Which stream.
        pipeline: Of the stream.
        gpu: Which decodes; None decodes in software.
        there: Whether files and folders have to be there; a node waits for them.

    Raises:
        ConfigurationError: Names file, line, key path, value and remedy.
    """
    section = document.value.streams[i]
    try:
        return _plan(document, section, pipeline, gpu, there)
    except (SourceError, PluginError) as error:
        what = document.as_written(str(error))
        raise ConfigurationError(f"{document.where('streams', i, 'source')}: {what}") from error
    except _Misfit as misfit:
        raise ConfigurationError(f"{document.where('streams', i, misfit.key)}: {misfit}") from None


class _Misfit(Exception):
    def __init__(self, key: str, what: str) -> None:
        super().__init__(what)
        self.key = key


def _plan(
    document: Document[NodeConfiguration],
    section: StreamSection,
    pipeline: Pipeline,
    gpu: int | None,
    there: bool,
) -> tuple[Source, Source | None]:
    base, access = document.path.parent, plan_access(document)
    text, options = section.source.url, _options(section.source, base)
    address = parse_address(text, options, base=base)
    access.check(address)
    if there:
        _check_exists(address, text)
        _check_ca_file(options.ca_file)
    _check_keys(document, section, address)
    sampling = Sampling(section.frame_rate, section.every, section.key_frames)
    how: dict[str, Any] = {
        "preprocessing": pipeline.network.preprocessing,
        "labels": pipeline.labels,
        "base": base.absolute(),
        "options": options,
        "access": access,
        "rate": section.rate,
        "sampling": sampling,
        "timeout": section.frame_timeout_s,
        "max_age": max_age(section, live=address.live),
    }
    if section.decode == "process":
        if gpu is not None:
            raise _Misfit("decode", "pictures on a GPU cannot leave their process; use thread")
        if address.kind == "stdin":
            raise _Misfit("decode", "stdin belongs to the node's own process; use thread")
        return ProcessSource(text, **how), None
    source = open_source(text, gpu=gpu, **how)
    if section.loop:
        return JoinedSource([source], repeat=True), None
    return source, ProcessSource(text, **how) if address.live and gpu is None else None


def plan_access(document: Document[NodeConfiguration]) -> Access:
    """What sources may reach.

    Raises:
        SourceError: A scheme that is none.
    """
    section, base = document.value.access, document.path.parent
    known = {*SCHEMES, *WORDS, *plugins("streamexit.sources")}
    for scheme in section.schemes or []:
        if scheme not in known:
            raise SourceError(
                f"access.schemes: {scheme!r} is unknown; known are {', '.join(sorted(known))}",
                reason="bad_source",
            )
    return _access(section, base)


def _access(section: AccessSection, base: Path) -> Access:
    return Access(
        schemes=None if section.schemes is None else frozenset(section.schemes),
        roots=None if section.roots is None else tuple(base / root for root in section.roots),
        networks=tuple(section.networks),
        hosts=frozenset(section.hosts),
    )


def plan_patience(section: StreamSection) -> Patience:
    """How long the stream's source may take."""
    return Patience(
        open_seconds=section.open_timeout_s,
        stalled_seconds=section.stalled_after_s,
        frame_seconds=section.frame_timeout_s,
        longest_retry_seconds=section.longest_retry_s,
        attempts=section.attempts,
    )


def max_age(section: StreamSection, *, live: bool) -> float:
    """Seconds after which an answer is of no use; infinite for recordings."""
    return (section.max_age_s or USUAL_MAX_AGE) if live else float("inf")


def _options(source: SourceSection, base: Path) -> SourceOptions:
    size = None
    if source.size is not None:
        width, _, height = source.size.partition("x")
        size = int(width), int(height)
    return SourceOptions(
        username=source.username,
        password=source.password.get_secret_value() if source.password else None,
        transport=source.transport,
        live=source.live,
        tls_verify=source.tls_verify,
        ca_file=base / source.ca_file if source.ca_file else None,
        size=size,
        rate=source.rate,
        pixel_format=source.pixel_format,
        format=source.format,
        existing=source.existing,
        settle_seconds=source.settle_s,
    )


def _check_exists(address: Address, text: str) -> None:
    if address.kind in ("file", "images", "watch") and not Path(address.location).exists():
        hint = "an address begins with its scheme, as in rtsp://" if _HOST.match(text) else RELATIVE
        raise SourceError(
            f"{text!r}: no such {'folder' if address.kind == 'watch' else 'file'} ({address.location}); {hint}",
            reason="not_found",
        )


def _check_ca_file(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise SourceError(
            f"ca_file: no such file ({path}); {RELATIVE}",
            reason="not_found",
        )


def _check_keys(
    document: Document[NodeConfiguration], section: StreamSection, address: Address
) -> None:
    """Keys that mean nothing to the source."""
    if section.loop:
        _check_loop(section, address)
    for key in LIVE_ONLY:
        if key in section.model_fields_set and not address.live:
            raise _Misfit(key, f"is for live streams; {address} is a recording, which can wait")
    _check_time(section, address)
    if address.kind == "stdin":
        urls = [s.source.url for s in document.value.streams if s is not section]
        if any(url in ("-", "stdin", "stdin:") for url in urls):
            raise _Misfit("source", "there is one stdin, and another stream reads it")


def _check_time(section: StreamSection, address: Address) -> None:
    given = section.model_fields_set
    if "pace" in given and address.live:
        raise _Misfit("pace", f"is for recordings; {address} is live, and comes when it comes")
    if "rate" in given and address.kind not in CLOCKLESS:
        raise _Misfit(
            "rate", f"is for sources without a clock; {address} has one. Write frame_rate for fewer"
        )
    if "deadline_ms" in given and section.pace == "fast":
        raise _Misfit("deadline_ms", "goes with pace: realtime; with fast, frames may wait")


def _check_loop(section: StreamSection, address: Address) -> None:
    if address.live:
        raise _Misfit("loop", "a live source has no end to start again from")
    if address.kind in ("watch", "stdin"):
        raise _Misfit("loop", f"{address.kind} cannot be played again")
    if section.decode == "process":
        raise _Misfit("loop", "goes with decode: thread only")
