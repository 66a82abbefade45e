"""Visits to a broker: to hear what is published there, or to see whether one may."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

from streamexit.errors import BrokerError
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.mqtt_client import (
    V5,
    V311,
    ConnectionLost,
    explain,
    subscribe_as_visitor,
    version_fault,
    visitor,
)


async def say_and_hear(address: BrokerAddress, topic: str, *, patience: float) -> str:
    """Publish a message to ourselves and wait until it comes back; the protocol version that was spoken.

    Raises:
        BrokerError: It cannot be reached, refuses, or does not pass the message on.
    """
    word = f"{random.getrandbits(64):x}".encode()
    for protocol, name in ((V5, "5"), (V311, "3.1.1")):
        try:
            async with (
                asyncio.timeout(patience),
                visitor(address, protocol) as client,
            ):
                await subscribe_as_visitor(client, topic, address)
                await client.publish(topic, word, qos=1)
                async for message in client.messages:
                    if message.payload == word:
                        return name
        except TimeoutError as error:
            raise BrokerError(
                f"MQTT broker {address}: what is published to {topic} does not come back within {patience:g} s; "
                "check its access rules"
            ) from error
        except ConnectionLost as error:
            if protocol is V5 and version_fault(error):
                continue
            raise explain(error, address) from error
    raise BrokerError(f"MQTT broker {address}: speaks neither MQTT 5 nor 3.1.1")


async def subscribe(address: BrokerAddress, topic: str) -> AsyncGenerator[tuple[str, bytes, bool]]:
    """Yield (topic, payload, retained) of everything published under `topic`.

    Speaks MQTT 5, and 3.1.1 with a broker that refuses 5.

    Raises:
        InputError: `topic` is no topic filter.
        BrokerError: The broker refuses or goes away.
    """
    for protocol in (V5, V311):
        try:
            async with visitor(address, protocol) as client:
                await subscribe_as_visitor(client, topic, address)
                async for message in client.messages:
                    yield str(message.topic), bytes(message.payload), message.retain
        except ConnectionLost as error:
            if protocol is V5 and version_fault(error):
                continue
            raise explain(error, address) from error
