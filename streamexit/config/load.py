"""Reading a configuration file, with the checks that need more than one of its values."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from streamexit.config.overlay import laid_over, overlay_path
from streamexit.config.schema import NodeConfiguration
from streamexit.documents import Document, did_you_mean, load_document
from streamexit.errors import ConfigurationError

_PASSWORD = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^:/?#]*:(?P<password>\S*)@")


def load_configuration(path: Path) -> Document[NodeConfiguration]:
    """Load a file and its overlay, and check; nothing else is opened yet.

    Raises:
        ConfigurationError: Names file, line, key path, value and remedy.
    """
    document = load_document(path, NodeConfiguration, error=ConfigurationError)
    for i in range(len(document.value.streams)):
        _check_credentials(document, i)
    document = laid_over(document, overlay_path(path, document.value))
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
    return document


def _check_credentials(document: Document[NodeConfiguration], i: int) -> None:
    """Passwords come from elsewhere: configuration files are copied, shown and committed."""
    source, at = document.value.streams[i].source, ("streams", i, "source")
    url_at = at if at in document.written else (*at, "url")
    url = document.written.get(url_at, source.url)
    match = _PASSWORD.match(url)
    if match and "${" not in match["password"] and _has_user(url):
        raise _written_password(document, *url_at)
    if source.password is not None and (*at, "password") not in document.written:
        raise _written_password(document, *at, "password")


def _has_user(url: str) -> bool:
    """Whether what stands before an @ is a user and a password, and not a host, a port and a path."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # a password that was not percent-encoded
        return True
    return parts.username is not None


def _written_password(document: Document[NodeConfiguration], *at: str | int) -> ConfigurationError:
    return ConfigurationError(
        f"{document.where(*at)}: a password does not belong into this file; write ${{CAMERA_PASSWORD}}, and "
        "export it or put it into the file named by `secrets`"
    )
