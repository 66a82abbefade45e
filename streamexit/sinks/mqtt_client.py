"""What we need of an MQTT client. The only file that knows aiomqtt, and paho underneath."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiomqtt
from paho.mqtt.client import MQTT_ERR_SUCCESS
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from streamexit.errors import BrokerError, ConfigurationError, InputError
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Publication

Version = aiomqtt.ProtocolVersion
V5, V311 = Version.V5, Version.V311
ConnectionLost = aiomqtt.MqttError

INCOMING = 100
"""Messages to us that wait to be looked at; beyond, they are thrown away."""

LARGEST_INCOMING = 256 * 1024
"""Bytes of a packet that the broker may send us (MQTT 5, maximum packet size)."""

CONNECT_TIMEOUT_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 15

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


class Client(aiomqtt.Client):
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

    async def refused_of(self, topics: Sequence[str], version: Version) -> list[str]:
        """Subscribe with QoS 1, not to hear ourselves, and what is retained once; what we may not."""
        if not topics:
            return []
        if version is V5:
            options = SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True)
            granted = await self.subscribe([(topic, options) for topic in topics])
        else:
            granted = await self.subscribe([(topic, 1) for topic in topics])
        return [topic for topic, code in zip(topics, granted, strict=True) if _is_refused(code)]

    async def incoming(self) -> AsyncIterator[Incoming]:
        """What is published to us; ends with `ConnectionLost`."""
        async for message in self.messages:
            properties = message.properties
            yield Incoming(
                str(message.topic),
                bytes(message.payload or b""),
                bool(message.retain),
                getattr(properties, "ResponseTopic", None),
                getattr(properties, "CorrelationData", None),
            )


def member(
    address: BrokerAddress, version: Version, client_id: str, will: tuple[str, str]
) -> Client:
    """A client that stays.

    Args:
        address: Of the broker.
        version: Of the protocol.
        client_id: Unique; two clients of one id throw each other out for ever.
        will: Topic and payload of the last will, which is retained.
    """
    topic, payload = will
    return Client(
        **_reaching(address, version),
        identifier=client_id,
        will=aiomqtt.Will(topic, payload, qos=1, retain=True),
        keepalive=KEEP_ALIVE_SECONDS,
        max_inflight_messages=65_535,  # we count ourselves
        max_queued_incoming_messages=INCOMING,
        properties=_connect_properties() if version is V5 else None,
    )


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
    refused = _code(error) in REFUSED_LOGIN
    return refused or "CERTIFICATE" in str(error) or isinstance(error, ConfigurationError)


def explain(error: BaseException, address: BrokerAddress) -> BrokerError:
    """What a connection error means and what to do."""
    if _code(error) in REFUSED_LOGIN:
        wrong = "check user and password" if address.username else "it wants a user and a password"
        return BrokerError(f"MQTT broker {address}: refused the login; {wrong}")
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


def refuses_version(error: BaseException) -> bool:
    """Brokers without MQTT 5 refuse it with a code, or choke on it and say nothing."""
    return _code(error) in UNSUPPORTED_VERSION or timed_out(error)


def timed_out(error: BaseException) -> bool:
    """Whether nothing came back, which is how some brokers refuse MQTT 5."""
    return isinstance(error, aiomqtt.MqttError) and "timed out" in str(error)
