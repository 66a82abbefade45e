"""Reading a configuration file, with the checks that need more than one of its values."""

from __future__ import annotations

from pathlib import Path

from streamexit.config.schema import NodeConfiguration
from streamexit.documents import Document, did_you_mean, load_document
from streamexit.errors import ConfigurationError


def load_configuration(path: Path) -> Document[NodeConfiguration]:
    """Load and check; nothing is opened yet but the file itself.

    Raises:
        ConfigurationError: Names file, line, key path, value and remedy.
    """
    document = load_document(path, NodeConfiguration, error=ConfigurationError)
    first_use: dict[str, int] = {}
    for i, stream in enumerate(document.value.streams):
        if stream.id in first_use:
            raise ConfigurationError(
                f"{document.where('streams', i, 'id')}: {stream.id!r} is already the id of "
                f"streams[{first_use[stream.id]}]; ids must differ"
            )
        first_use[stream.id] = i
        if stream.pipeline not in document.value.pipelines:
            raise ConfigurationError(
                f"{document.where('streams', i, 'pipeline')}: {stream.pipeline!r} is not under "
                f"pipelines; {did_you_mean(stream.pipeline, document.value.pipelines)}"
            )
        kind, _, rest = stream.source.partition(":")
        source = path.parent / (rest if kind == "images" else stream.source)
        if not _is_elsewhere(stream.source) and not source.exists():
            raise ConfigurationError(
                f"{document.where('streams', i, 'source')}: {stream.source!r}: no such file "
                f"({source}); paths are relative to the configuration file"
            )
    return document


def _is_elsewhere(source: str) -> bool:
    """Whether a source is not a path of this machine."""
    return source.startswith("synthetic:") or "://" in source
