"""An MQTT broker of our own, on loopback: so that a first run needs nothing else installed."""

from __future__ import annotations

import logging
import socket
from types import TracebackType
from typing import Any, Self

from streamexit.errors import ConfigurationError


class EmbeddedBroker:
    """amqtt (MQTT 3.1.1) on a free port of 127.0.0.1, for the lifetime of a `with` block.

    Raises:
        ConfigurationError: amqtt is not installed.
    """

    def __init__(self) -> None:
        try:
            from amqtt.broker import Broker
        except ImportError as error:
            raise ConfigurationError(
                "mqtt.url: 'embedded' needs the extra: pip install 'streamexit[broker]'"
            ) from error
        logging.getLogger("amqtt").setLevel(logging.ERROR)
        self.port = _free_port()
        self._broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {}},
            }
        )
        _tell_subscribers_only(self._broker)

    async def __aenter__(self) -> Self:
        await self._broker.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._broker.shutdown()


def _tell_subscribers_only(broker: Any) -> None:
    """A client that connects gets from amqtt all retained messages that anybody subscribes to: no longer."""
    send = broker._publish_retained_messages_for_subscription

    async def send_to_subscribers(subscription: tuple[str, int], session: Any) -> None:
        subscribers = broker._subscriptions.get(subscription[0], ())
        if any(one.client_id == session.client_id for one, _ in subscribers):
            await send(subscription, session)

    broker._publish_retained_messages_for_subscription = send_to_subscribers


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
