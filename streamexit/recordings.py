"""Sources that are recordings, opened for a replay or a trace."""

from __future__ import annotations

import re
from pathlib import Path

from streamexit.errors import InputError
from streamexit.models.pipeline import Pipeline
from streamexit.sources.addresses import parse_address
from streamexit.sources.joined import JoinedSource
from streamexit.sources.opening import open_source
from streamexit.sources.source import Source


def open_recordings(
    sources: list[str], pipeline: Pipeline, *, join: bool = False, own_size: bool = False
) -> dict[str, Source]:
    """Stream id -> source; with `join` one stream of all sources.

    Raises:
        SourceError: One cannot be understood.
        InputError: One is a folder that is watched for ever.
    """
    for text in sources:
        if parse_address(text).kind == "watch":
            raise InputError(f"{text}: a watched folder has no end; name the recordings in it")
    opened: list[Source] = [
        open_source(
            text,
            preprocessing=pipeline.network.preprocessing,
            labels=pipeline.labels,
            own_size=own_size,
        )
        for text in sources
    ]
    if join:
        return {"joined": JoinedSource(opened)}
    return dict(zip(stream_ids(sources), opened, strict=True))


def spare_sources(option: str, file: Path, sources: list[str]) -> None:
    """See that a file which is to be written is none of the sources.

    Args:
        option: That names it, for the message.
        file: Whether it is there or not.
        sources: As for `open_recordings`.

    Raises:
        InputError: It is one of them, under whatever name.
        SourceError: A source cannot be understood.
    """
    for text in sources:
        address = parse_address(text)
        if address.kind not in ("file", "images"):
            continue
        source = Path(address.location)
        if file.exists() and source.exists() and file.samefile(source):
            raise InputError(
                f"{option}: {file} is one of the sources and would be overwritten; name another file"
            )


def stream_ids(sources: list[str]) -> list[str]:
    """An id for each source, from its file name; numbered where two would be the same."""
    ids: list[str] = []
    for text in sources:
        stem = Path(text.partition("?")[0]).stem or text
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:56] or "stream"
        candidates = (name, *(f"{name}-{n}" for n in range(2, len(sources) + 2)))
        ids.append(next(c for c in candidates if c not in ids))
    return ids
