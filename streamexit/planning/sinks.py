"""Whether the sinks that a configuration names are there; they are opened when the node runs."""

from __future__ import annotations

from streamexit.config.schema import NodeConfiguration
from streamexit.documents import Document
from streamexit.errors import ConfigurationError, PluginError
from streamexit.plugins import load_plugin


def check_sinks(document: Document[NodeConfiguration]) -> None:
    """Find the plugins.

    Raises:
        ConfigurationError: One is not installed, or cannot be imported.
    """
    for i, section in enumerate(document.value.sinks):
        try:
            load_plugin("streamexit.sinks", section.kind)
        except PluginError as error:
            raise ConfigurationError(f"{document.where('sinks', i, 'kind')}: {error}") from error
