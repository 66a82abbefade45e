"""From the configuration to where results go: brokers, the file of unsent results, sinks of plugins."""

from __future__ import annotations

import os
from pathlib import Path

from streamexit.config.schema import MqttSection, NodeConfiguration
from streamexit.documents import Document
from streamexit.errors import ConfigurationError, PluginError
from streamexit.sinks.additional import check_sink
from streamexit.sinks.brokers import BrokerAddress, TlsOptions


def check_sinks(document: Document[NodeConfiguration]) -> None:
    """Find the plugins, and see whether they take what is asked of them.

    Raises:
        ConfigurationError: One is not installed, cannot be imported, or does not take its options.
    """
    for i, section in enumerate(document.value.sinks):
        try:
            check_sink(section.kind, section.options, document.path.parent)
        except PluginError as error:
            raise ConfigurationError(f"{document.where('sinks', i, 'kind')}: {error}") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{document.where('sinks', i)}: {error}") from error


def check_files(document: Document[NodeConfiguration]) -> None:
    """See whether a node could begin with the certificates that it reads and the files that it writes.

    Raises:
        ConfigurationError: One is not there, or is none; names file, line, key path, value and remedy.
    """
    value, base = document.value, document.path.parent
    if value.mqtt is not None and value.mqtt.url != "embedded":
        try:
            broker_addresses(value.mqtt, base)
        except ConfigurationError as error:
            key, _, what = str(error).partition(": ")
            raise ConfigurationError(f"{document.where(*key.split('.'))}: {what}") from error
    for name in ("results_file", "state_file"):
        file = getattr(value, name)
        if file and (base / file).is_dir():
            raise ConfigurationError(
                f"{document.where(name)}: {base / file} is a folder; name a file in it"
            )


def without_login(settings: MqttSection | None) -> object:
    """What of the broker's section takes a restart to change."""
    if settings is None or settings.url == "embedded":
        return settings
    return settings.model_dump(exclude={"url", "username", "password", "tls"})


def spool_path(document: Document[NodeConfiguration]) -> Path:
    """Where results are kept while the broker is away."""
    settings = document.value.mqtt
    if settings is not None and settings.spool is not None and settings.spool.file:
        return document.path.parent / settings.spool.file
    return _state_folder() / f"{document.value.node.id}.spool"


def _state_folder() -> Path:
    """Where what is kept over a restart lies: of a systemd unit, else of the user."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "streamexit"


def broker_addresses(settings: MqttSection, base: Path) -> list[BrokerAddress]:
    """The brokers of a configuration.

    Args:
        settings: Not "embedded".
        base: Relative files start here.

    Raises:
        ConfigurationError: A certificate cannot be read.
    """
    password = settings.password.get_secret_value() if settings.password else None
    tls = None
    if section := settings.tls:
        tls = TlsOptions(
            ca_file=base / section.ca_file if section.ca_file else None,
            cert_file=base / section.cert_file if section.cert_file else None,
            key_file=base / section.key_file if section.key_file else None,
            key_password=section.key_password.get_secret_value() if section.key_password else None,
            verify=section.verify,
        )
    addresses = [
        BrokerAddress.parse(url, username=settings.username, password=password, tls=tls)
        for url in settings.urls
    ]
    for address in addresses:
        if address.tls:
            address.tls.context()
    return addresses
