"""Makes what results go out by: files, sinks of plugins, and the way to the broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from streamexit.config.schema import MqttSection, NodeConfiguration
from streamexit.documents import Document
from streamexit.errors import ConfigurationError, InputError
from streamexit.planning.sinks import spool_path
from streamexit.sinks.additional import SinkThread, open_sink
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Delivery
from streamexit.sinks.jsonl import JsonlSink
from streamexit.sinks.mqtt import MqttSession
from streamexit.sinks.mqtt_client import Incoming
from streamexit.sinks.spool import Spool
from streamexit.wire.encoding import as_historical
from streamexit.wire.topics import Topics


def open_sinks(
    document: Document[NodeConfiguration], on_problem: Callable[[str], None]
) -> list[JsonlSink | SinkThread]:
    """What results go to besides the broker.

    Args:
        document: The configuration.
        on_problem: Called with a sentence, from a sink's thread.

    Raises:
        InputError: The results file cannot be written.
        ConfigurationError: A sink cannot be opened.
    """
    configuration, sinks = document.value, list[JsonlSink | SinkThread]()
    if configuration.results_file:
        sinks.append(JsonlSink(document.path.parent / configuration.results_file))
    for i, section in enumerate(configuration.sinks):
        try:
            sink = open_sink(section.kind, section.options, document.path.parent)
        except InputError as error:
            raise ConfigurationError(f"{document.where('sinks', i)}: {error}") from error
        sinks.append(SinkThread(section.kind, sink, on_problem=on_problem))
    return sinks


def make_delivery(
    document: Document[NodeConfiguration],
    settings: MqttSection,
    on_problem: Callable[[str], None],
) -> Delivery:
    """What results wait in, with a spool where one is wanted."""
    spool = None
    if settings.spool and settings.qos and settings.url != "embedded":
        section = settings.spool
        spool = Spool(spool_path(document), max_bytes=section.max_bytes, max_age=section.max_age_s)
    return Delivery(
        qos=settings.qos,
        spool=spool,
        historical=lambda payload: as_historical(payload, time.time()),
        rate=settings.spool.results_per_s if settings.spool else 500.0,
        on_problem=on_problem,
    )


def make_session(
    configuration: NodeConfiguration,
    settings: MqttSection,
    addresses: Sequence[BrokerAddress],
    *,
    topics: Topics,
    boot_id: str,
    delivery: Delivery,
    on_message: Callable[[Incoming], None],
    on_problem: Callable[[str], None],
) -> MqttSession:
    """The connection to the broker, not yet made; see `MqttSession`."""
    listens_to: list[str] = []
    if settings.commands:
        listens_to += [*topics.of_commands, topics.of_availabilities]
    if configuration.homeassistant:
        listens_to.append(f"{configuration.homeassistant.prefix}/status")
    return MqttSession(
        addresses,
        client_id=settings.client_id or f"streamexit-{topics.node}-{boot_id}",
        availability_topic=topics.availability,
        delivery=delivery,
        expiry=settings.result_expiry_s,
        subscriptions=listens_to,
        on_message=on_message,
        prefer_v5=settings.url != "embedded",
        on_problem=on_problem,
    )
