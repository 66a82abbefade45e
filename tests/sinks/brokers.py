"""What tests of connections share: a session with its delivery, a subscriber, and a broker that does as it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Delivery
from streamexit.sinks.mqtt import MqttSession
from streamexit.sinks.visits import subscribe

TOPIC = "t/node/availability"


class Listener:
    """A subscriber that keeps what it gets."""

    def __init__(self, address: BrokerAddress, topic: str = "#") -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self._stream = subscribe(address, topic)

    async def until(self, topic: str, payload: bytes) -> None:
        """Read on until this message has come."""
        while (topic, payload) not in [(t, p) for t, p, _ in self.messages]:
            self.messages.append(await anext(self._stream))

    async def close(self) -> None:
        """Unsubscribe."""
        await self._stream.aclose()


class Publisher(MqttSession):
    """A session under test, with its delivery."""

    def __init__(
        self,
        address: BrokerAddress | list[BrokerAddress],
        problems: list[str],
        *,
        client_id: str = "under-test",
        availability_topic: str = TOPIC,
        clock: Callable[[], float] = time.monotonic,
        **how: Any,
    ) -> None:
        self.delivery = Delivery(
            qos=1, spool=None, historical=lambda payload: payload, rate=1e6, clock=clock
        )
        super().__init__(
            address if isinstance(address, list) else [address],
            client_id=client_id,
            availability_topic=availability_topic,
            delivery=self.delivery,
            on_problem=problems.append,
            **how,
        )

    def offer(self, payload: object) -> None:
        """A result."""
        self.delivery.offer("t/result", str(payload).encode())

    @property
    def confirmed(self) -> int:
        """Results."""
        return self.delivery.books.confirmed


@asynccontextmanager
async def running(session: Publisher) -> AsyncIterator[None]:
    """A session with its tasks."""
    tasks = [asyncio.create_task(session.run()), asyncio.create_task(session.delivery.run())]
    try:
        yield
    finally:
        session.finish()
        await asyncio.wait(tasks[:1])
        await session.delivery.close()
        await asyncio.wait(tasks)


CONNECT, PUBLISH, SUBSCRIBE, PING, DISCONNECT = 1, 3, 8, 12, 14


@dataclass
class Packet:
    """What a client sent."""

    kind: int
    flags: int
    body: bytes

    @property
    def qos(self) -> int:
        """Of a publication."""
        return self.flags >> 1 & 3

    @property
    def topic(self) -> str:
        """Of a publication."""
        return self.body[2 : 2 + self._length].decode()

    @property
    def packet_id(self) -> bytes:
        """Of a subscription, or a publication of QoS 1."""
        start = 2 + self._length if self.kind == PUBLISH else 0
        return self.body[start : start + 2]

    @property
    def version(self) -> int:
        """Of a CONNECT."""
        return self.body[2 + self._length]

    @property
    def _length(self) -> int:
        return int.from_bytes(self.body[:2])


class ScriptedBroker:
    """Speaks just enough MQTT to answer a client, and as a test wants it to.

    Args:
        properties: Of the answer to CONNECT, for MQTT 5.
        confirms: The reason code for a publication of QoS 1; None for no answer.
        connects: The answer to a CONNECT; None for no answer.

    Attributes:
        got: All packets, but the pings.
        subscribing: Whether subscriptions are answered.
        connections: Made so far.
    """

    def __init__(
        self,
        *,
        properties: bytes = b"",
        confirms: Callable[[Packet], int | None] = lambda packet: 0,
        connects: Callable[[Packet], int | None] = lambda packet: 0,
    ) -> None:
        self._properties = properties
        self._confirms = confirms
        self._connects = connects
        self.got: list[Packet] = []
        self.subscribing = asyncio.Event()
        self.subscribing.set()
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    @property
    def address(self) -> BrokerAddress:
        """Where it is."""
        return BrokerAddress("127.0.0.1", self._server.sockets[0].getsockname()[1])

    def of(self, kind: int) -> list[Packet]:
        """All packets of a kind."""
        return [packet for packet in self.got if packet.kind == kind]

    def disconnect(self, code: int) -> None:
        """Say why to the latest client (MQTT 5)."""
        self._writer.write(_packet(0xE0, bytes([code, 0])))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._five, self._writer = True, writer
        try:
            while True:
                packet = await _read(reader)
                if packet.kind != PING:
                    self.got.append(packet)
                if packet.kind == SUBSCRIBE:
                    await self.subscribing.wait()
                writer.write(self._answer(packet))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, packet: Packet) -> bytes:
        if packet.kind == PING:
            return bytes([0xD0, 0])
        if packet.kind == SUBSCRIBE:
            start = 3 if self._five else 2
            count = packet.body[start:].count(b"/")  # one level each
            return _packet(0x90, packet.packet_id + self._none + bytes([1] * count))
        if packet.kind == CONNECT:
            code, self._five = self._connects(packet), packet.version == 5
            own = bytes([len(self._properties)]) + self._properties if self._five else b""
            return b"" if code is None else _packet(0x20, bytes([0, code]) + own)
        if packet.kind == PUBLISH and packet.qos:
            code = self._confirms(packet)
            tail = bytes([code]) + self._none if code else b""
            return b"" if code is None else _packet(0x40, packet.packet_id + tail)
        return b""

    @property
    def _none(self) -> bytes:
        return b"\0" if self._five else b""


def _packet(head: int, body: bytes) -> bytes:
    return bytes([head, len(body)]) + body


async def _read(reader: asyncio.StreamReader) -> Packet:
    (head,) = await reader.readexactly(1)
    length = shift = 0
    while True:
        (part,) = await reader.readexactly(1)
        length |= (part & 127) << shift
        shift += 7
        if not part & 128:
            return Packet(head >> 4, head & 15, await reader.readexactly(length))
