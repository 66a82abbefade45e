from __future__ import annotations

import asyncio

import aiomqtt

from streamexit.sinks.broker import EmbeddedBroker
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.visits import subscribe

LIMIT_SECONDS = 60


def test_who_subscribes_hears_nothing_else() -> None:
    """Also with the embedded broker, which sends a new client what others have subscribed to."""

    async def body() -> list[tuple[str, bytes, bool]]:
        async with asyncio.timeout(LIMIT_SECONDS), EmbeddedBroker() as broker:
            address = BrokerAddress("127.0.0.1", broker.port)
            async with aiomqtt.Client("127.0.0.1", broker.port) as other:
                await other.subscribe("t/availability", qos=1)
                await other.publish("t/availability", "online", qos=1, retain=True)
                await other.publish("t/last", "over", qos=1, retain=True)
                await anext(aiter(other.messages))
                heard = []
                async for message in subscribe(address, "t/last"):
                    heard.append(message)
                    if len(heard) == 1:  # what comes unasked for has come before this one
                        await other.publish("t/last", "done", qos=1)
                    if message[1] == b"done":
                        return heard
        raise AssertionError("the last message did not come")

    assert [(topic, payload) for topic, payload, _ in asyncio.run(body())] == [
        ("t/last", b"over"),
        ("t/last", b"done"),
    ]
