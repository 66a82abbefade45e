"""What we need of an MQTT client. The only file that knows aiomqtt, and paho underneath."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import aiomqtt
from paho.mqtt.client import MQTT_ERR_SUCCESS, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from streamexit.errors import BrokerError, ConfigurationError, InputError
from streamexit.sinks.attempts import VersionFault
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.publication import Publication
from streamexit.wire.incoming import Incoming

Version = aiomqtt.ProtocolVersion
V5, V311 = Version.V5, Version.V311
ConnectionLost = aiomqtt.MqttError

LARGEST_INCOMING = 256 * 1024
"""Bytes of a packet that the broker may send us (MQTT 5, maximum packet size)."""

CONNECT_TIMEOUT_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 15

REFUSED_LOGIN = (4, 5, 134, 135)
UNSUPPORTED_VERSION = (1, 132)
BROKEN, TAKEN_OVER, OVER_QUOTA = 128, 142, 151

REASONS = {
    BROKEN: "the connection broke",
    TAKEN_OVER: "another client has the same id (mqtt.client_id)",
}


class Subscription(NamedTuple):
    """What we listen to.

    Attributes:
        topic: A filter.
        tells_retained: Whether messages are marked as retained also when they are published (MQTT 5), and
            not only when they were there before.
    """

    topic: str
    tells_retained: bool = True


class Client(aiomqtt.Client):
    """What aiomqtt leaves out: publishing without waiting, the broker's limit, and its refusals.

    Attributes:
        five: Whether it speaks MQTT 5.
        receive_maximum: Unconfirmed publications that the broker takes.
        largest_packet: In bytes.
        on_outcome: Told the id of a publication and the broker's reason code, 128 or more for a failure.
        on_message: Called with what is published to us.
    """

    five = True
    receive_maximum = 65_535
    largest_packet = 268_435_455
    on_outcome: Callable[[int, int], None] = staticmethod(lambda mid, code: None)
    on_message: Callable[[Incoming], None] = staticmethod(lambda message: None)

    def send(
        self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties | None
    ) -> int:
        """Hand a message to the connection; `on_outcome` is told what becomes of the id returned."""
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != MQTT_ERR_SUCCESS:
            ended = self._disconnected.done()
            cause = self._disconnected.exception() if ended else None
            raise aiomqtt.MqttCodeError(info.rc, "Could not publish message") from cause
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
        self.on_outcome(mid, reason_code.value)

    def _on_message(self, client: Any, userdata: Any, message: MQTTMessage) -> None:
        """At once, and not by aiomqtt's queue, which throws away what is too much for it."""
        properties = message.properties
        self.on_message(
            Incoming(
                message.topic,
                bytes(message.payload),
                message.retain,
                getattr(properties, "ResponseTopic", None),
                getattr(properties, "CorrelationData", None),
                telling=self.five,
            )
        )

    async def refused_of(self, subscriptions: Sequence[Subscription]) -> list[str]:
        """Subscribe with QoS 1, not to hear ourselves, and what is retained once; what we may not."""
        if not subscriptions:
            return []
        granted = await self.subscribe([self._asked(one) for one in subscriptions])
        refused = map(_is_refused, granted)
        return [one.topic for one, no in zip(subscriptions, refused, strict=True) if no]

    def _asked(self, one: Subscription) -> tuple[str, Any]:
        if not self.five:
            return one.topic, 1
        options = SubscribeOptions(qos=1, noLocal=True, retainAsPublished=one.tells_retained)
        return one.topic, options

    async def lost(self) -> None:
        """Wait for the end of the connection.

        Raises:
            ConnectionLost: Always, if nothing worse.
        """
        await asyncio.wait([self._disconnected])
        raise self._disconnected.exception() or ConnectionLost("disconnected")

    def abandon(self, why: str) -> None:
        """Take the connection for broken: there is no goodbye, so that the broker sends the last will."""
        if not self._disconnected.done():
            self._disconnected.set_exception(ConnectionLost(why))


def member(address: BrokerAddress, client_id: str, will: tuple[str, str], *, five: bool) -> Client:
    """A client that stays.

    Args:
        address: Of the broker.
        client_id: Unique; two clients of one id throw each other out for ever.
        will: Topic and payload of the last will, which is retained.
        five: Speak MQTT 5, not 3.1.1.
    """
    topic, payload = will
    client = Client(
        **_reaching(address, V5 if five else V311),
        identifier=client_id,
        will=aiomqtt.Will(topic, payload, qos=1, retain=True),
        keepalive=KEEP_ALIVE_SECONDS,
        max_inflight_messages=65_535,  # we count ourselves
        properties=_connect_properties() if five else None,
    )
    client.five = five
    return client


def visitor(address: BrokerAddress, version: Version) -> aiomqtt.Client:
    """A client for a while, under a name that the broker or the library chooses."""
    return aiomqtt.Client(**_reaching(address, version))


def _reaching(address: BrokerAddress, version: Version) -> dict[str, Any]:
    return {
        "hostname": address.host,
        "port": address.port,
        "username": address.username,
        "password": address.password,
        "protocol": version,
        "timeout": CONNECT_TIMEOUT_SECONDS,
        "tls_context": address.tls.context() if address.tls else None,
    }


async def subscribe_as_visitor(client: aiomqtt.Client, topic: str, address: BrokerAddress) -> None:
    """Subscribe with QoS 1.

    Raises:
        InputError: No topic filter.
        BrokerError: The broker refuses.
    """
    try:
        granted = await client.subscribe(topic, qos=1)
    except ValueError as error:
        raise InputError(f"{topic!r} is not an MQTT topic filter: {error}") from error
    if any(map(_is_refused, granted)):
        raise BrokerError(
            f"MQTT broker {address}: refuses the subscription to {topic}; check its access rules"
        )


def _is_refused(granted: int | ReasonCode) -> bool:
    """By what SUBACK says of a topic filter (MQTT 5, section 3.9.3)."""
    return (granted.value if isinstance(granted, ReasonCode) else granted) >= 128


class PublishProperties:
    """MQTT 5 properties of what is published; made once, because results are many.

    Args:
        expiry: Seconds after which the broker forgets a live result that no subscriber took.
    """

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


def is_refusal(error: BaseException) -> bool:
    """Whether the broker is there, and something about it or us has to be changed by somebody."""
    refused = _connect_code(error) in REFUSED_LOGIN
    return refused or "CERTIFICATE" in str(error) or isinstance(error, ConfigurationError)


def explain(error: BaseException, address: BrokerAddress) -> BrokerError:
    """What a connection error means and what to do."""
    error = error.__cause__ or error  # aiomqtt says that it noticed, and there why
    if _connect_code(error) in REFUSED_LOGIN:
        wrong = "check user and password" if address.username else "it wants a user and a password"
        return BrokerError(f"MQTT broker {address}: refused the login; {wrong}")
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0]
        return BrokerError(
            f"MQTT broker {address}: its certificate is not accepted: {why or text}; renew it, or name the "
            "authority that signed it (mqtt.tls.ca_file)"
        )
    text = REASONS.get(_code(error) or 0, text)
    return BrokerError(
        f"MQTT broker {address}: {text or type(error).__name__}; check that it runs and that the address is "
        "right"
    )


def _code(error: BaseException) -> int | None:
    """MQTT's reason code."""
    if not isinstance(error, aiomqtt.MqttCodeError):
        return None
    code = error.rc
    return code.value if isinstance(code, ReasonCode) else code


def _connect_code(error: BaseException) -> int | None:
    """Of a refused connection."""
    return _code(error) if isinstance(error, aiomqtt.exceptions.MqttConnectError) else None


def version_fault(error: BaseException) -> VersionFault | None:
    """Whether a connection may have failed because of the protocol's version."""
    if _connect_code(error) in UNSUPPORTED_VERSION:
        return "refused"
    # aiomqtt's words for an answer that does not come; the network's own time-outs are called otherwise
    silent = isinstance(error, aiomqtt.MqttError) and str(error) == "Operation timed out"
    return "silent" if silent else None
