"""Publishing over MQTT. The only file that knows aiomqtt.

A session publishes what it is given, keeps retained topics right over every reconnect, and counts
what is lost. Results that come while the broker is away are lost here and counted; the gap shows
in their `seq`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from streamexit.errors import BrokerError, InputError

log = logging.getLogger(__name__)

LossReason = Literal["broker_offline", "unconfirmed", "queue_full", "not_sent"]
"""Why a result did not reach the broker.

broker_offline: there was no connection when it came.
unconfirmed: the connection broke before the broker confirmed it; it may have arrived.
queue_full: the broker took results more slowly than they came.
not_sent: the run ended before its turn came.
"""

ONLINE, OFFLINE, STOPPED = "online", "offline", "stopped"
V5, V311 = aiomqtt.ProtocolVersion.V5, aiomqtt.ProtocolVersion.V311
IN_FLIGHT = 20
QUEUE = 2000
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
CONNECT_TIMEOUT_SECONDS = 5.0
MEANWHILE = "Frames go on being answered; their results are lost, and counted, until it is back"


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is and how to log in.

    Attributes:
        host: Name or address.
        port: TCP port.
        tls: Verified against the system's certificate authorities.
        username: Or None.
        password: Or None; never shown.
    """

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(
        cls, url: str, *, username: str | None = None, password: str | None = None
    ) -> BrokerAddress:
        """From mqtt://host[:port] or mqtts://host[:port]."""
        parts = urlsplit(url)
        tls = parts.scheme == "mqtts"
        default = 8883 if tls else 1883
        return cls(parts.hostname or "localhost", parts.port or default, tls, username, password)

    def __repr__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, eq=False)
class _Publication:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    is_result: bool


class _Finished(Exception):
    """Takes the session's tasks down when its end is wanted."""


class MqttSession:
    """A connection that is kept up, and what is published over it. Lives on one event loop.

    Args:
        address: Of the broker.
        client_id: Unique; two clients of one id throw each other out for ever.
        availability_topic: Retained; carries the last will.
        qos: Of results. Retained topics use 1.
        prefer_v5: Speak MQTT 5 and fall back to 3.1.1; False speaks 3.1.1 at once.
        on_problem: Called with a sentence when the connection fails, once per kind of failure.

    Attributes:
        attempted: Set once the first attempt to connect has succeeded or failed.
        connected: Now.
        connections: Made so far.
        confirmed: Results that the broker confirmed.
        lost: Results that it did not, by reason.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        availability_topic: str,
        qos: int = 1,
        prefer_v5: bool = True,
        on_problem: Callable[[str], None] = log.warning,
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._availability_topic = availability_topic
        self._qos = qos
        self._protocol = V5 if prefer_v5 else V311
        self._on_problem = on_problem
        self._last_problem = ""
        self._queue: deque[_Publication] = deque()
        self._retained: dict[str, bytes] = {}
        self._changed = asyncio.Condition()
        self._in_flight: set[_Publication] = set()
        self._last_word = OFFLINE
        self._finishing = asyncio.Event()
        self.attempted = asyncio.Event()
        self.connected = False
        self.connections = 0
        self.confirmed = 0
        self.lost: Counter[LossReason] = Counter()

    async def publish_result(self, topic: str, payload: bytes) -> None:
        """Queue a result, waiting while the broker is there but slow; without a broker, lose it."""
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self.connected or len(self._queue) < QUEUE)
                if not self.connected:
                    self.lost["broker_offline"] += 1
                    return
                self._queue.append(_Publication(topic, payload, self._qos, False, True))
                self._changed.notify_all()
        except asyncio.CancelledError:
            self.lost["not_sent"] += 1
            raise

    async def set_retained(self, topic: str, payload: bytes) -> None:
        """Publish a retained topic, now if there is a connection and after each reconnect."""
        async with self._changed:
            if self._retained.get(topic) == payload:
                return
            self._retained[topic] = payload
            if self.connected:
                self._queue.append(_Publication(topic, payload, 1, True, False))
                self._changed.notify_all()

    async def publish_passing(self, topic: str, payload: bytes) -> None:
        """Publish something that is of no interest later; without a connection, nothing."""
        async with self._changed:
            if self.connected:
                self._queue.append(_Publication(topic, payload, 0, False, False))
                self._changed.notify_all()

    async def run(self) -> None:
        """Stay connected and publish, until `finish`."""
        retry = FIRST_RETRY_SECONDS
        while not self._finishing.is_set():
            connections, protocol = self.connections, self._protocol
            try:
                await self._stay_connected()
            except* Exception as group:  # whatever breaks a connection must not break the node
                log.debug("the connection to %r ended", self._address, exc_info=group)
                self._report(_first(group), reached=self.connections > connections)
            finally:
                await self._lose_connection()
            if (protocol, self._protocol) == (V5, V311):
                continue
            self.attempted.set()
            retry = FIRST_RETRY_SECONDS if self.connections > connections else retry
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry * random.uniform(0.5, 1.0)):
                    await self._finishing.wait()
            retry = min(2 * retry, LONGEST_RETRY_SECONDS)

    def finish(self, *, meant: bool = True) -> None:
        """Let `run` end, with "stopped" as the last word, or "offline" if the end was not meant."""
        self._last_word = STOPPED if meant else OFFLINE
        self._finishing.set()

    async def drained(self) -> None:
        """Wait until everything queued is confirmed, or there is no connection."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.connected or not self.backlog)

    @property
    def backlog(self) -> int:
        """Publications that wait, or wait to be confirmed."""
        return len(self._queue) + len(self._in_flight)

    async def _stay_connected(self) -> None:
        async with self._client() as client:
            await client.publish(self._availability_topic, ONLINE, qos=1, retain=True)
            await self._announce()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_watch(client), name="mqtt-watch")
                    group.create_task(self._send_all(client, group), name="mqtt-send")
                    group.create_task(self._wait_for_finish(), name="mqtt-finish")
            except* _Finished:
                # leaving in order would keep the last will from being sent: say it ourselves
                await client.publish(self._availability_topic, self._last_word, qos=1, retain=True)

    def _client(self) -> aiomqtt.Client:
        client = aiomqtt.Client(
            self._address.host,
            self._address.port,
            username=self._address.username,
            password=self._address.password,
            identifier=self._client_id,
            protocol=self._protocol,
            will=aiomqtt.Will(self._availability_topic, OFFLINE, qos=1, retain=True),
            timeout=CONNECT_TIMEOUT_SECONDS,
            keepalive=15,
            max_inflight_messages=IN_FLIGHT,
            tls_context=ssl.create_default_context() if self._address.tls else None,
        )
        client.pending_calls_threshold = 2 * IN_FLIGHT
        return client

    async def _wait_for_finish(self) -> None:
        await self._finishing.wait()
        raise _Finished

    async def _announce(self) -> None:
        async with self._changed:
            self.connected = True
            self.connections += 1
            self.attempted.set()
            self._last_problem = ""
            self._queue.extendleft(
                _Publication(topic, payload, 1, True, False)
                for topic, payload in reversed(self._retained.items())
            )
            self._changed.notify_all()

    async def _send_all(self, client: aiomqtt.Client, group: asyncio.TaskGroup) -> None:
        """Start publishing in order; up to `IN_FLIGHT` await confirmation at a time."""
        while True:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._queue and len(self._in_flight) < IN_FLIGHT
                )
                publication = self._queue.popleft()
                self._in_flight.add(publication)
            group.create_task(self._send(client, publication))

    async def _send(self, client: aiomqtt.Client, publication: _Publication) -> None:
        await client.publish(
            publication.topic,
            publication.payload,
            qos=publication.qos,
            retain=publication.retain,
        )
        async with self._changed:
            self._in_flight.discard(publication)
            self.confirmed += publication.is_result
            self._changed.notify_all()

    async def _lose_connection(self) -> None:
        """Count what was under way: whether a broken connection's last results arrived is unknown."""
        async with self._changed:
            self.connected = False
            unconfirmed = sum(publication.is_result for publication in self._in_flight)
            waiting = sum(publication.is_result for publication in self._queue)
            if unconfirmed:
                self.lost["unconfirmed"] += unconfirmed
            if waiting:
                self.lost["not_sent" if self._finishing.is_set() else "broker_offline"] += waiting
            self._in_flight.clear()
            self._queue.clear()
            self._changed.notify_all()

    def _report(self, error: BaseException, *, reached: bool) -> None:
        """Take an error as a hint to speak the other protocol version, or say it."""
        if not reached and _refuses_version(error):
            was_v5 = self._protocol is V5
            self._protocol = V311 if was_v5 else V5
            if was_v5 and not _timed_out(error):
                return
        problem = f"{explain(error, self._address)}. {MEANWHILE}"
        if problem != self._last_problem:
            self._last_problem = problem
            self._on_problem(problem)


def explain(error: BaseException, address: BrokerAddress) -> BrokerError:
    """What a connection error means and what to do."""
    code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    value = code.value if isinstance(code, ReasonCode) else code
    if isinstance(error, aiomqtt.exceptions.MqttConnectError) and value in (4, 5, 134, 135):
        return BrokerError(f"MQTT broker {address}: refused the login; check user and password")
    return BrokerError(
        f"MQTT broker {address}: {error}; check that it runs and that the address is right"
    )


async def _watch(client: aiomqtt.Client) -> None:
    """Ends with MqttError as soon as the connection is lost; nothing is subscribed."""
    async for _ in client.messages:
        pass


def _refuses_version(error: BaseException) -> bool:
    """Brokers without MQTT 5 refuse it with a code, or choke on it and say nothing."""
    if isinstance(error, aiomqtt.exceptions.MqttConnectError):
        value = error.rc.value if isinstance(error.rc, ReasonCode) else error.rc
        return value in (1, 132)
    return _timed_out(error)


def _timed_out(error: BaseException) -> bool:
    return isinstance(error, aiomqtt.MqttError) and "timed out" in str(error)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def subscribe(
    address: BrokerAddress, topic: str, *, client_id: str | None = None
) -> AsyncGenerator[tuple[str, bytes, bool]]:
    """Yield (topic, payload, retained) of everything published under `topic`.

    Speaks MQTT 5, and 3.1.1 with a broker that refuses 5.

    Raises:
        InputError: `topic` is no topic filter.
        BrokerError: The broker refuses or goes away.
    """
    for protocol in (V5, V311):
        try:
            async with aiomqtt.Client(
                address.host,
                address.port,
                username=address.username,
                password=address.password,
                identifier=client_id,
                protocol=protocol,
                timeout=CONNECT_TIMEOUT_SECONDS,
                tls_context=ssl.create_default_context() if address.tls else None,
            ) as client:
                await _subscribe(client, topic)
                async for message in client.messages:
                    yield str(message.topic), bytes(message.payload), message.retain
        except aiomqtt.MqttError as error:
            if protocol is V5 and _refuses_version(error):
                continue
            raise explain(error, address) from error


async def _subscribe(client: aiomqtt.Client, topic: str) -> None:
    try:
        await client.subscribe(topic, qos=1)
    except ValueError as error:
        raise InputError(f"{topic!r} is not an MQTT topic filter: {error}") from error
