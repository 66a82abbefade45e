from __future__ import annotations

import asyncio

import aiomqtt

from streamexit.sinks.broker import EmbeddedBroker

LIMIT_SECONDS = 60


def test_the_embedded_broker_sends_what_was_asked_for() -> None:
    """A new client hears nothing that only others subscribe to."""

    async def body() -> list[tuple[str, bytes]]:
        async with (
            asyncio.timeout(LIMIT_SECONDS),
            EmbeddedBroker() as broker,
            aiomqtt.Client("127.0.0.1", broker.port) as other,
        ):
            await other.subscribe("t/availability", qos=1)
            await other.publish("t/availability", "online", qos=1, retain=True)
            await other.publish("t/last", "over", qos=1, retain=True)
            await anext(aiter(other.messages))
            async with aiomqtt.Client("127.0.0.1", broker.port) as client:
                await client.subscribe("t/last", qos=1)
                heard = [await anext(aiter(client.messages))]
                await other.publish(
                    "t/last", "done", qos=1
                )  # what was not asked for has come by then
                while heard[-1].payload != b"done":
                    heard.append(await anext(aiter(client.messages)))
        return [(str(one.topic), bytes(one.payload)) for one in heard]

    assert asyncio.run(body()) == [("t/last", b"over"), ("t/last", b"done")]
