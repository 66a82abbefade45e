"""What commands changed for good: a file of our own, read after the user's, which is never written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from streamexit.config.schema import Id, NodeConfiguration, Section, StreamSection
from streamexit.documents import Document
from streamexit.errors import ConfigurationError

HEADER = """\
# Written by streamexit: what commands with `persist: true` changed. Read after the configuration file,
# which is never written. Delete this file, or parts of it, to have what that says.
"""


class Overlay(Section):
    """The content of the file."""

    changed: dict[Id, dict[str, Any]] = Field(default_factory=dict)
    """Stream -> keys that replace those of the configuration file."""
    removed: list[Id] = Field(default_factory=list)
    added: list[dict[str, Any]] = Field(default_factory=list)
    """Sections as under `streams`."""


def overlay_path(configuration: Path, value: NodeConfiguration) -> Path:
    """Where the overlay of a configuration file lies."""
    named = value.overlay_file
    return configuration.parent / named if named else configuration.with_suffix(".overlay.yaml")


def read_overlay(path: Path) -> Overlay:
    """Nothing where there is no file. ${NAMES} in it stay as they are: a command must not get at secrets.

    Raises:
        ConfigurationError: It cannot be read, or understood.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Overlay.model_validate(content or {})
    except FileNotFoundError:
        return Overlay()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        what = "is not what streamexit writes there; mend or delete it"
        if isinstance(error, OSError):
            what = f"cannot be read: {error.strerror}"
        raise ConfigurationError(f"overlay_file: {path} {what}") from error


def laid_over(document: Document[NodeConfiguration], path: Path) -> Document[NodeConfiguration]:
    """A configuration with what its overlay says; the same where there is none.

    Raises:
        ConfigurationError: The overlay does not fit.
    """
    overlay = read_overlay(path)
    if overlay == Overlay():
        return document
    streams: list[StreamSection] = []
    renamed: dict[int, int] = {}
    elsewhere: dict[tuple[str | int, ...], str] = {}
    for i, section in enumerate(document.value.streams):
        if section.id in overlay.removed:
            elsewhere["removed", section.id] = f"{path}, removed: {section.id}"
            continue
        renamed[i] = len(streams)
        changes = overlay.changed.get(section.id)
        if changes:
            place = f"{path}, changed.{section.id}"
            elsewhere |= {("streams", len(streams), key): f"{place}.{key}" for key in changes}
            section = changed_section(section, changes, place)
        streams.append(section)
    for i, raw in enumerate(overlay.added):
        place = f"{path}, added[{i}]"
        elsewhere["streams", len(streams)] = place
        streams.append(parse_section(raw, place))
    return replace(
        document,
        value=document.value.model_copy(update={"streams": streams}),
        lines=_renumbered(document.lines, renamed),
        written=_renumbered(document.written, renamed),
        elsewhere=elsewhere,
    )


def with_stream(
    document: Document[NodeConfiguration], section: StreamSection, place: str
) -> Document[NodeConfiguration]:
    """A configuration with one more stream, its last, that messages call `place`."""
    streams = [*document.value.streams, section]
    return replace(
        document,
        value=document.value.model_copy(update={"streams": streams}),
        elsewhere={**document.elsewhere, ("streams", len(streams) - 1): place},
    )


def parse_section(raw: dict[str, Any], place: str) -> StreamSection:
    """A stream that does not come from the configuration file.

    Raises:
        ConfigurationError: Says `place` and the field, and no value, which may be a secret.
    """
    try:
        return StreamSection.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{place}{'.' if field else ''}{field}: {message}") from error


def changed_section(section: StreamSection, changes: dict[str, Any], place: str) -> StreamSection:
    """A stream with some keys replaced.

    Raises:
        ConfigurationError: See `parse_section`.
    """
    kept = {name: getattr(section, name) for name in section.model_fields_set}
    return parse_section({**kept, **changes}, place)


class OverlayFile:
    """Writes the overlay, a change at a time; whoever reads it sees the old content or the new.

    Args:
        path: Readable by its owner only, because sources may hold passwords.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def note_added(self, section: dict[str, Any], *, configured: bool) -> None:
        """A stream is there from now on; instead of another of its name, if the user's file has one.

        Raises:
            ConfigurationError: The file cannot be read or written.
        """

        def add(content: dict[str, Any]) -> None:
            content["added"] = [*_without(content["added"], section["id"]), section]
            if configured and section["id"] not in content["removed"]:
                content["removed"].append(section["id"])

        self._change(add)

    def note_removed(self, stream_id: str, *, configured: bool) -> None:
        """A stream is gone from now on; `configured` says that the user's file has it."""

        def remove(content: dict[str, Any]) -> None:
            content["added"] = _without(content["added"], stream_id)
            content["changed"].pop(stream_id, None)
            if configured and stream_id not in content["removed"]:
                content["removed"].append(stream_id)

        self._change(remove)

    def note_changed(self, stream_id: str, key: str, value: Any) -> None:
        """A key of a stream has another value from now on."""

        def change(content: dict[str, Any]) -> None:
            for section in content["added"]:
                if section["id"] == stream_id:
                    section[key] = value
                    return
            content["changed"].setdefault(stream_id, {})[key] = value

        self._change(change)

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        content = read_overlay(self._path).model_dump()
        change(content)
        kept = {key: value for key, value in content.items() if value}
        text = HEADER + (yaml.safe_dump(kept, sort_keys=False, allow_unicode=True) if kept else "")
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            raise ConfigurationError(
                f"overlay_file: {self._path} cannot be written ({error.strerror}), so the change holds until "
                "the next restart only; name a file that can be written"
            ) from error


def _without(sections: list[dict[str, Any]], stream_id: str) -> list[dict[str, Any]]:
    return [section for section in sections if section.get("id") != stream_id]


def _renumbered(keys: dict[Any, Any], streams: dict[int, int]) -> dict[Any, Any]:
    """Key paths of streams after some were left out."""
    result = {}
    for path, value in keys.items():
        if len(path) > 1 and path[0] == "streams":
            if path[1] in streams:
                result["streams", streams[path[1]], *path[2:]] = value
        else:
            result[path] = value
    return result
