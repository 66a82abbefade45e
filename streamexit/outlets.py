"""Makes what results go out by: files, sinks of plugins, and the way to the broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from streamexit.config.schema import MqttSection, NodeConfiguration
from streamexit.documents import Document
from streamexit.errors import ConfigurationError, InputError
from streamexit.planning.sinks import spool_path
from streamexit.sinks.additional import SinkThread, open_sink
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Delivery
from streamexit.sinks.jsonl import JsonlSink
from streamexit.sinks.mqtt import MqttSession
from streamexit.sinks.mqtt_client import Subscription
from streamexit.sinks.spool import Spool
from streamexit.wire.encoding import as_historical
from streamexit.wire.homeassistant import Discovery
from streamexit.wire.incoming import Incoming
from streamexit.wire.topics import Topics


@dataclass(frozen=True, slots=True)
class Outlets:
    """What a node's results and messages go out by.

    Attributes:
        sinks: Where results go besides the broker.
        delivery: Of results to the broker, if there is one.
        session: With it.
        discovery: For Home Assistant, if that is wanted.
    """

    sinks: Sequence[SinkThread] = ()
    delivery: Delivery | None = None
    session: MqttSession | None = None
    discovery: Discovery | None = None


def make_outlets(
    document: Document[NodeConfiguration],
    addresses: Sequence[BrokerAddress],
    *,
    sinks: Sequence[SinkThread],
    topics: Topics,
    boot_id: str,
    on_message: Callable[[Incoming], None],
    on_spool_problem: Callable[[str], None],
    on_broker_problem: Callable[[str], None],
) -> Outlets:
    """All of them; the connection to the broker is not yet made.

    Args:
        document: The configuration.
        addresses: Of the broker.
        sinks: See `open_sinks`.
        topics: Where the node publishes.
        boot_id: Of this run.
        on_message: Called with what is published to us.
        on_spool_problem: Called with a sentence.
        on_broker_problem: Likewise.
    """
    settings, home = document.value.mqtt, document.value.homeassistant
    if settings is None:
        return Outlets(sinks)
    delivery = _make_delivery(document, settings, on_spool_problem)
    listens_to = [Subscription(topics.of_availabilities)]
    if settings.commands:
        listens_to += map(Subscription, topics.of_commands)
    if home:  # whose birth message may be retained, and counts when it is published
        listens_to.append(Subscription(f"{home.prefix}/status", tells_retained=False))
    session = MqttSession(
        addresses,
        client_id=settings.client_id or f"streamexit-{topics.node}-{boot_id}",
        availability_topic=topics.availability,
        delivery=delivery,
        expiry=settings.result_expiry_s,
        subscriptions=listens_to,
        on_message=on_message,
        prefer_v5=settings.url != "embedded",
        on_problem=on_broker_problem,
    )
    discovery = Discovery(home.prefix, topics, version("streamexit")) if home else None
    return Outlets(sinks, delivery, session, discovery)


def open_sinks(
    document: Document[NodeConfiguration], on_problem: Callable[[str], None]
) -> list[SinkThread]:
    """What results go to besides the broker.

    Args:
        document: The configuration.
        on_problem: Called with a sentence, from a sink's thread.

    Raises:
        InputError: The results file cannot be written.
        ConfigurationError: A sink cannot be opened.
    """
    configuration, sinks = document.value, list[SinkThread]()
    if configuration.results_file:
        file = JsonlSink(document.path.parent / configuration.results_file, append=True)
        sinks.append(SinkThread("results_file", file, on_problem=on_problem))
    for i, section in enumerate(configuration.sinks):
        try:
            sink = open_sink(section.kind, section.options, document.path.parent)
        except InputError as error:
            raise ConfigurationError(f"{document.where('sinks', i)}: {error}") from error
        sinks.append(SinkThread(section.kind, sink, on_problem=on_problem))
    return sinks


def _make_delivery(
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
