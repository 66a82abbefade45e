"""Publishing over MQTT. The only file that knows aiomqtt, and paho underneath.

A session stays connected, publishes what its `Delivery` has, keeps retained topics right over every
reconnect, and hands on what others publish to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiomqtt
from paho.mqtt.client import MQTT_ERR_SUCCESS
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from streamexit.errors import BrokerError, ConfigurationError, InputError
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Delivery, Publication

log = logging.getLogger(__name__)

BrokerState = Literal["connecting", "online", "offline", "error"]
"""Of a connection. offline: the broker cannot be reached; error: it can, but will not have us, or cannot be
trusted."""

ONLINE, OFFLINE, STOPPED = "online", "offline", "stopped"
V5, V311 = aiomqtt.ProtocolVersion.V5, aiomqtt.ProtocolVersion.V311
IN_FLIGHT = 100
"""Publications that may wait for their confirmation; a broker may ask for fewer (MQTT 5, receive maximum)."""

INCOMING = 100
"""Messages to us that wait to be looked at; beyond, they are thrown away."""

LARGEST_INCOMING = 256 * 1024
"""Bytes of a packet that the broker may send us (MQTT 5, maximum packet size)."""

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
CONNECT_TIMEOUT_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 15
STEADY_SECONDS = 2.0
OVERHEAD = 128
"""Bytes of a packet besides topic and payload, at most."""

MOST_SHORT = 3
"""Connections in a row that break at once; a broker that does that is not knocked at ever again."""

REFUSED_LOGIN = (4, 5, 134, 135)
UNSUPPORTED_VERSION = (1, 132)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that somebody published to us.

    Attributes:
        topic: Where.
        payload: What.
        retained: Whether it is an old one that the broker had kept.
        response_topic: Where an answer is wanted (MQTT 5).
        correlation: What an answer should carry (MQTT 5).
    """

    topic: str
    payload: bytes
    retained: bool
    response_topic: str | None = None
    correlation: bytes | None = None


class _Finished(Exception):
    """Takes the session's tasks down when its end is wanted."""


class _Client(aiomqtt.Client):
    """What aiomqtt leaves out: publishing without waiting, the broker's limit, and its refusals."""

    receive_maximum = 65_535
    largest_packet = 268_435_455
    on_outcome: Callable[[int, bool], None] = staticmethod(lambda mid, accepted: None)

    def send(
        self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties | None
    ) -> int:
        """Hand a message to the connection; `on_outcome` is told what becomes of the id returned."""
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != MQTT_ERR_SUCCESS:
            raise aiomqtt.MqttCodeError(info.rc, "Could not publish message")
        return info.mid

    def let_go(self) -> None:
        """Close what a failed connection leaves open, and take it off the event loop."""
        self._client._reset_sockets()
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()  # else asyncio would complain that nobody asked

    def _on_connect(
        self,
        client: Any,
        userdata: Any,
        flags: Any,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self.receive_maximum = getattr(properties, "ReceiveMaximum", self.receive_maximum)
        self.largest_packet = getattr(properties, "MaximumPacketSize", self.largest_packet)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        super()._on_publish(client, userdata, mid, reason_code, properties)
        self.on_outcome(mid, reason_code.value < 128)


class MqttSession:
    """A connection that is kept up, and what is published over it. Lives on one event loop.

    Args:
        addresses: Of brokers; if one cannot be had the next is tried, in turn.
        client_id: Unique; two clients of one id throw each other out for ever.
        availability_topic: Retained; carries the last will.
        delivery: Of results.
        expiry: Seconds after which the broker forgets a live result that no subscriber took (MQTT 5).
        subscriptions: Topic filters of messages to us.
        on_message: Called with each of them.
        prefer_v5: Speak MQTT 5 and fall back to 3.1.1; False speaks 3.1.1 at once.
        on_problem: Called with a sentence when the connection fails, once per kind of failure.

    Attributes:
        addresses: See above; may be replaced, and is used from the next connection on.
        attempted: Set once the first attempt to connect has succeeded or failed.
        state: See `BrokerState`.
        problem: What is wrong; empty if nothing is.
        connections: Made so far.
    """

    def __init__(
        self,
        addresses: Sequence[BrokerAddress],
        *,
        client_id: str,
        availability_topic: str,
        delivery: Delivery,
        expiry: int | None = None,
        subscriptions: Sequence[str] = (),
        on_message: Callable[[Incoming], None] = lambda message: None,
        prefer_v5: bool = True,
        on_problem: Callable[[str], None] = log.warning,
    ) -> None:
        self.addresses = addresses
        self._client_id = client_id
        self._availability_topic = availability_topic
        self._delivery = delivery
        self._properties = _ResultProperties(expiry)
        self._subscriptions = subscriptions
        self._on_message = on_message
        self._first_protocol = self._protocol = V5 if prefer_v5 else V311
        self._on_problem = on_problem
        self._turn = 0
        self._retained: dict[str, bytes] = {availability_topic: ONLINE.encode()}
        self._unconfirmed: dict[int, Publication] = {}
        self._early: dict[int, bool] = {}
        self._quiet = asyncio.Event()
        self._last_word = OFFLINE
        self._finishing = asyncio.Event()
        self._broken: asyncio.Event = asyncio.Event()
        self.attempted = asyncio.Event()
        self.state: BrokerState = "connecting"
        self.problem = ""
        self.connections = 0
        self._said: set[str] = set()

    # --- what is published ----------------------------------------------------------------------

    def set_retained(self, topic: str, payload: bytes) -> None:
        """Publish a retained topic, now if there is a connection and after each reconnect.

        An empty payload removes it from the broker.
        """
        if self._retained.get(topic) != payload:
            self._retained[topic] = payload
            self._delivery.send(Publication(topic, payload, 1, "retained"))

    def publish_passing(self, topic: str, payload: bytes) -> None:
        """Publish something that is of no interest later; without a connection, nothing."""
        self._delivery.send(Publication(topic, payload, 0, "passing"))

    def reply(self, topic: str, payload: bytes, correlation: bytes | None = None) -> None:
        """Answer a request."""
        self._delivery.send(Publication(topic, payload, 1, "reply", correlation=correlation))

    def announce_again(self, prefix: str) -> None:
        """Publish those retained topics anew that begin with `prefix`."""
        for topic, payload in self._retained.items():
            if topic.startswith(prefix):
                self._delivery.send(Publication(topic, payload, 1, "retained"))

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self.state == "online"

    async def drained(self) -> None:
        """Wait until all that was queued is confirmed, or there is no connection."""
        while self.connected and self._delivery.backlog:
            self._quiet.clear()
            await self._quiet.wait()

    # --- the connection -------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected and publish, until `finish`."""
        retry, short = FIRST_RETRY_SECONDS, 0
        while not self._finishing.is_set():
            connections, protocol, began = self.connections, self._protocol, time.monotonic()
            address = self.address
            try:
                await self._stay_connected(address)
            except* Exception as group:  # whatever breaks a connection must not break the node
                log.debug("the connection to %r ended", address, exc_info=group)
                self._note_failure(_first(group), address, reached=self.connections > connections)
            finally:
                self._lose_connection()
            if (protocol, self._protocol) == (V5, V311):
                continue
            self.attempted.set()
            steady = time.monotonic() - began > STEADY_SECONDS
            short = 0 if steady else short + 1
            if steady and self.connections > connections:
                self._said.clear()
            if self.connections > connections and (steady or short <= MOST_SHORT):
                retry = FIRST_RETRY_SECONDS
            self._turn += 1
            if self._turn % len(self.addresses):
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry * random.uniform(0.5, 1.0)):
                    await self._finishing.wait()
            retry = min(2 * retry, LONGEST_RETRY_SECONDS)

    @property
    def address(self) -> BrokerAddress:
        """Of the broker whose turn it is."""
        return self.addresses[self._turn % len(self.addresses)]

    def finish(self, *, meant: bool = True) -> None:
        """Let `run` end, with "stopped" as the last word, or "offline" if the end was not meant."""
        self._last_word = STOPPED if meant else OFFLINE
        self._finishing.set()

    def reconnect(self) -> None:
        """Give the present connection up, if there is one, and begin anew."""
        self._broken.set()

    async def _stay_connected(self, address: BrokerAddress) -> None:
        self._broken.clear()
        client = self._client(address)
        try:
            await self._use(client)
        finally:
            client.let_go()

    async def _use(self, connection: _Client) -> None:
        async with connection as client:
            client.on_outcome = self._note_outcome
            self._announce()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._listen(client), name="mqtt-listen")
                    group.create_task(self._subscribe_all(client), name="mqtt-subscribe")
                    group.create_task(self._send_all(client), name="mqtt-send")
                    group.create_task(self._wait_for_break(), name="mqtt-break")
                    group.create_task(self._wait_for_finish(), name="mqtt-finish")
            except* _Finished:
                # leaving in order would keep the last will from being sent: say it ourselves
                await client.publish(self._availability_topic, self._last_word, qos=1, retain=True)

    def _client(self, address: BrokerAddress) -> _Client:
        v5 = self._protocol is V5
        return _Client(
            address.host,
            address.port,
            username=address.username,
            password=address.password,
            identifier=self._client_id,
            protocol=self._protocol,
            will=aiomqtt.Will(self._availability_topic, OFFLINE, qos=1, retain=True),
            timeout=CONNECT_TIMEOUT_SECONDS,
            keepalive=KEEP_ALIVE_SECONDS,
            max_inflight_messages=65_535,  # we count ourselves
            max_queued_incoming_messages=INCOMING,
            properties=_connect_properties() if v5 else None,
            tls_context=address.tls.context() if address.tls else None,
        )

    async def _wait_for_finish(self) -> None:
        await self._finishing.wait()
        raise _Finished

    async def _wait_for_break(self) -> None:
        await self._broken.wait()
        raise aiomqtt.MqttError("given up, because its settings changed")

    def _announce(self) -> None:
        self.state, self.problem = "online", ""
        self.connections += 1
        self.attempted.set()
        self._delivery.connected()
        for topic, payload in self._retained.items():
            self._delivery.send(Publication(topic, payload, 1, "retained"))

    async def _send_all(self, client: _Client) -> None:
        """Publish in order; up to so many await confirmation at a time."""
        window = min(IN_FLIGHT, client.receive_maximum)
        delivery = self._delivery
        while True:
            await delivery.wanted.wait()
            delivery.wanted.clear()
            while delivery.under_way < window and (one := delivery.take()):
                self._send(client, one)
                if delivery.under_way % 20 == 0:
                    await asyncio.sleep(0)  # let the socket be written and others have their turn

    def _send(self, client: _Client, one: Publication) -> None:
        properties = self._properties.of(one) if self._protocol is V5 else None
        size = len(one.payload) + len(one.topic.encode())
        try:
            if size + OVERHEAD > client.largest_packet:
                raise ValueError(f"{size} bytes, and the broker takes {client.largest_packet}")
            mid = client.send(one.topic, one.payload, one.qos, one.kind == "retained", properties)
        except ValueError as error:  # sent again it would be no better
            self._delivery.refused(one)
            self._say(f"what should go to {one.topic[:200]} cannot be sent: {error}")
            return
        if mid in self._early:  # it was written, or even confirmed, at once
            self._conclude(one, self._early.pop(mid))
        else:
            self._unconfirmed[mid] = one

    def _note_outcome(self, mid: int, accepted: bool) -> None:
        one = self._unconfirmed.pop(mid, None)
        if one is None:
            self._early[mid] = accepted
        else:
            self._conclude(one, accepted)

    def _conclude(self, one: Publication, accepted: bool) -> None:
        if accepted:
            self._delivery.confirmed(one)
            if not one.payload and self._retained.get(one.topic) == b"":
                del self._retained[one.topic]
        else:
            self._delivery.refused(one)
            self._say(
                f"the broker refuses what is published to {one.topic}; check its access rules"
            )
        if not self._delivery.backlog:
            self._quiet.set()

    async def _subscribe_all(self, client: _Client) -> None:
        for topic in self._subscriptions:
            granted = await client.subscribe(topic, **_subscribe_how(self._protocol))
            if _is_refused(granted):
                self._say(f"the broker refuses the subscription to {topic}; check its access rules")

    async def _listen(self, client: _Client) -> None:
        """Ends with MqttError as soon as the connection is lost."""
        async for message in client.messages:
            properties = message.properties
            self._on_message(
                Incoming(
                    str(message.topic),
                    bytes(message.payload or b""),
                    bool(message.retain),
                    getattr(properties, "ResponseTopic", None),
                    getattr(properties, "CorrelationData", None),
                )
            )

    def _lose_connection(self) -> None:
        if self.state == "online":
            self.state = "connecting"
        self._unconfirmed.clear()
        self._early.clear()
        self._delivery.disconnected()
        self._quiet.set()

    def _note_failure(self, error: BaseException, address: BrokerAddress, *, reached: bool) -> None:
        """Take an error as a hint to speak the other protocol version, or say it."""
        if not reached and _refuses_version(error) and self._first_protocol is V5:
            was_v5 = self._protocol is V5
            self._protocol = V311 if was_v5 else V5
            if was_v5 and not _timed_out(error):
                return
        self.state = "error" if is_refusal(error) else "offline"
        self._say(str(explain(error, address)))

    def _say(self, problem: str) -> None:
        self.problem = problem
        if problem not in self._said:
            self._said.add(problem)
            self._on_problem(problem)


class _ResultProperties:
    """MQTT 5 properties of what is published; made once, because results are many."""

    def __init__(self, expiry: int | None) -> None:
        self._plain = _properties(PacketTypes.PUBLISH)
        self._json = _json_properties()
        self._live, self._historical = _json_properties(), _json_properties()
        self._live.UserProperty = ("historical", "false")
        self._historical.UserProperty = ("historical", "true")
        if expiry is not None:
            self._live.MessageExpiryInterval = expiry

    def of(self, one: Publication) -> Properties:
        """For one publication."""
        if one.kind == "live":
            return self._live
        if one.kind == "historical":
            return self._historical
        if one.correlation is not None:
            properties = _json_properties()
            properties.CorrelationData = one.correlation
            return properties
        return self._json if one.payload.startswith(b"{") else self._plain


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


def _json_properties() -> Properties:
    properties = _properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json"
    properties.PayloadFormatIndicator = 1  # UTF-8
    return properties


def _connect_properties() -> Properties:
    properties = _properties(PacketTypes.CONNECT)
    properties.MaximumPacketSize = LARGEST_INCOMING
    return properties


def _subscribe_how(protocol: aiomqtt.ProtocolVersion) -> dict[str, Any]:
    """Not to hear ourselves; and what is retained only once."""
    if protocol is not V5:
        return {"qos": 1}
    return {"options": SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True)}


def is_refusal(error: BaseException) -> bool:
    """Whether the broker is there, and something about it or us has to be changed by somebody."""
    refused = _code(error) in REFUSED_LOGIN
    return refused or "CERTIFICATE" in str(error) or isinstance(error, ConfigurationError)


def explain(error: BaseException, address: BrokerAddress) -> BrokerError:
    """What a connection error means and what to do."""
    if _code(error) in REFUSED_LOGIN:
        return BrokerError(f"MQTT broker {address}: refused the login; check user and password")
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0]
        return BrokerError(
            f"MQTT broker {address}: its certificate is not accepted: {why or text}; renew it, or name the "
            "authority that signed it (mqtt.tls.ca_file)"
        )
    return BrokerError(
        f"MQTT broker {address}: {text or type(error).__name__}; check that it runs and that the address is "
        "right"
    )


def _code(error: BaseException) -> int | None:
    """Reason code of a refused connection."""
    if not isinstance(error, aiomqtt.exceptions.MqttConnectError):
        return None
    code = error.rc
    return code.value if isinstance(code, ReasonCode) else code


def _refuses_version(error: BaseException) -> bool:
    """Brokers without MQTT 5 refuse it with a code, or choke on it and say nothing."""
    return _code(error) in UNSUPPORTED_VERSION or _timed_out(error)


def _timed_out(error: BaseException) -> bool:
    return isinstance(error, aiomqtt.MqttError) and "timed out" in str(error)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


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
                _visitor(address, protocol) as client,
            ):
                await _subscribe(client, topic, address)
                await client.publish(topic, word, qos=1)
                async for message in client.messages:
                    if message.payload == word:
                        return name
        except TimeoutError as error:
            raise BrokerError(
                f"MQTT broker {address}: what is published to {topic} does not come back within {patience:g} s; "
                "check its access rules"
            ) from error
        except aiomqtt.MqttError as error:
            if protocol is V5 and _refuses_version(error):
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
            async with _visitor(address, protocol) as client:
                await _subscribe(client, topic, address)
                async for message in client.messages:
                    yield str(message.topic), bytes(message.payload), message.retain
        except aiomqtt.MqttError as error:
            if protocol is V5 and _refuses_version(error):
                continue
            raise explain(error, address) from error


def _visitor(address: BrokerAddress, protocol: aiomqtt.ProtocolVersion) -> aiomqtt.Client:
    """A client for a while, under a name that the broker or the library chooses."""
    return aiomqtt.Client(
        address.host,
        address.port,
        username=address.username,
        password=address.password,
        protocol=protocol,
        timeout=CONNECT_TIMEOUT_SECONDS,
        tls_context=address.tls.context() if address.tls else None,
    )


async def _subscribe(client: aiomqtt.Client, topic: str, address: BrokerAddress) -> None:
    try:
        granted = await client.subscribe(topic, qos=1)
    except ValueError as error:
        raise InputError(f"{topic!r} is not an MQTT topic filter: {error}") from error
    if _is_refused(granted):
        raise BrokerError(
            f"MQTT broker {address}: refuses the subscription to {topic}; check its access rules"
        )


def _is_refused(granted: Iterable[int | ReasonCode]) -> bool:
    """By what SUBACK says of each topic filter (MQTT 5, section 3.9.3)."""
    return any((code.value if isinstance(code, ReasonCode) else code) >= 128 for code in granted)
