"""A connection to a broker that is kept up.

A session publishes what its `Delivery` has, keeps retained topics right over every reconnect, and hands on
what others publish to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Literal

from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Delivery, Publication
from streamexit.sinks.mqtt_client import (
    V5,
    V311,
    Client,
    ConnectionLost,
    Incoming,
    PublishProperties,
    explain,
    is_refusal,
    member,
    refuses_version,
    timed_out,
)

log = logging.getLogger(__name__)

BrokerState = Literal["connecting", "online", "offline", "error"]
"""Of a connection. offline: the broker cannot be reached; error: it can, but will not have us, or cannot be
trusted."""

ONLINE, OFFLINE, STOPPED = "online", "offline", "stopped"
IN_FLIGHT = 100
"""Publications that may wait for their confirmation; a broker may ask for fewer (MQTT 5, receive maximum)."""

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
STEADY_SECONDS = 2.0
OVERHEAD = 128
"""Bytes of a packet besides topic and payload, at most."""

MOST_SHORT = 3
"""Connections in a row that break at once; a broker that does that is not knocked at ever again."""


class _Finished(Exception):
    """Takes the session's tasks down when its end is wanted."""


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
        self._properties = PublishProperties(expiry)
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
        will = self._availability_topic, OFFLINE
        client = member(address, self._protocol, self._client_id, will)
        try:
            await self._use(client)
        finally:
            client.let_go()

    async def _use(self, connection: Client) -> None:
        async with connection as client:
            self.connections += 1
            self.problem = ""
            client.on_outcome = self._note_outcome
            self._delivery.connected()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._listen(client), name="mqtt-listen")
                    group.create_task(self._speak(client), name="mqtt-speak")
                    group.create_task(self._wait_for_break(), name="mqtt-break")
                    group.create_task(self._wait_for_finish(), name="mqtt-finish")
            except* _Finished:
                # leaving in order would keep the last will from being sent: say it ourselves
                await client.publish(self._availability_topic, self._last_word, qos=1, retain=True)

    async def _wait_for_finish(self) -> None:
        await self._finishing.wait()
        raise _Finished

    async def _wait_for_break(self) -> None:
        await self._broken.wait()
        raise ConnectionLost("given up, because its settings changed")

    async def _speak(self, client: Client) -> None:
        """Subscribe first: whoever reads "online" may count on being heard."""
        for topic in await client.refused_of(self._subscriptions, self._protocol):
            self._say(f"the broker refuses the subscription to {topic}; check its access rules")
        self._announce()
        await self._send_all(client)

    def _announce(self) -> None:
        self.state = "online"
        log.info("connected to the broker %r", self.address)
        self.attempted.set()
        for topic, payload in self._retained.items():
            self._delivery.send(Publication(topic, payload, 1, "retained"))

    async def _send_all(self, client: Client) -> None:
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

    def _send(self, client: Client, one: Publication) -> None:
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

    async def _listen(self, client: Client) -> None:
        """Ends with `ConnectionLost`."""
        async for message in client.incoming():
            self._on_message(message)

    def _lose_connection(self) -> None:
        if self.state == "online":
            self.state = "connecting"
        self._unconfirmed.clear()
        self._early.clear()
        self._delivery.disconnected()
        self._quiet.set()

    def _note_failure(self, error: BaseException, address: BrokerAddress, *, reached: bool) -> None:
        """Take an error as a hint to speak the other protocol version, or say it."""
        if not reached and refuses_version(error) and self._first_protocol is V5:
            was_v5 = self._protocol is V5
            self._protocol = V311 if was_v5 else V5
            if was_v5 and not timed_out(error):
                return
        self.state = "error" if is_refusal(error) else "offline"
        self._say(str(explain(error, address)))

    def _say(self, problem: str) -> None:
        self.problem = problem
        if problem not in self._said:
            self._said.add(problem)
            self._on_problem(problem)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
