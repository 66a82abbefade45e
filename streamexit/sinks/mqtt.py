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

from streamexit.sinks.attempts import STEADY_SECONDS, Retries, Versions
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Delivery
from streamexit.sinks.mqtt_client import (
    Client,
    PublishProperties,
    Subscription,
    explain,
    is_refusal,
    member,
    version_fault,
)
from streamexit.sinks.publication import Publication
from streamexit.sinks.sending import Sending
from streamexit.wire.incoming import Incoming

log = logging.getLogger(__name__)

BrokerState = Literal["connecting", "online", "offline", "error"]
"""Of a connection. offline: the broker cannot be reached; error: it can, but will not have us, or cannot be
trusted."""

ONLINE, OFFLINE, STOPPED = "online", "offline", "stopped"

MOST_SAID = 20
"""Kinds of failures that are said before a connection lasts."""


class _Leave(Exception):
    """Takes the session's tasks down when the connection is to end in order."""


class MqttSession:
    """A connection that is kept up, and what is published over it. Lives on one event loop.

    Args:
        addresses: Of brokers; if one cannot be had the next is tried, in turn.
        client_id: Unique; two clients of one id throw each other out for ever.
        availability_topic: Retained; carries the last will.
        delivery: Of results.
        expiry: Seconds after which the broker forgets a live result that no subscriber took (MQTT 5).
        subscriptions: To what others say to us.
        on_message: Called with each message.
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
        subscriptions: Sequence[Subscription] = (),
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
        self._on_problem = on_problem
        self._retries = Retries()
        self._versions = Versions(prefer_v5=prefer_v5)
        self._retained: dict[str, bytes] = {availability_topic: ONLINE.encode()}
        self._quiet = asyncio.Event()
        self._last_word = OFFLINE
        self._finishing = False
        self._leaving = asyncio.Event()
        self._connected_at: float | None = None
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
        """Wait until all that is to be sent is confirmed, or there is no connection."""
        while self.connected and not self._delivery.quiet:
            self._quiet.clear()
            await self._quiet.wait()

    # --- the connection -------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected and publish, until `finish`."""
        while not self._finishing:
            self._leaving.clear()
            address = self.address
            five, self._connected_at = self._versions.five(address), None
            try:
                await self._stay_connected(address, five=five)
            except* Exception as group:  # whatever breaks a connection must not break the node
                log.debug("the connection to %r ended", address, exc_info=group)
                self._note_failure(_first(group), address)
            finally:
                self._lose_connection()
            if self._connected_at is not None:
                self._versions.ended(address)
            if not five or self._versions.five(address):  # else the other version is tried at once
                self.attempted.set()
                await self._pause()

    @property
    def address(self) -> BrokerAddress:
        """Of the broker whose turn it is."""
        return self.addresses[self._retries.turn % len(self.addresses)]

    def finish(self, *, meant: bool = True) -> None:
        """Let `run` end, with "stopped" as the last word, or "offline" if the end was not meant."""
        self._finishing = True
        self._leave(STOPPED if meant else OFFLINE)

    def reconnect(self) -> None:
        """Take leave of the present broker, if there is a connection, and begin anew."""
        self._retries = Retries()
        self._said.clear()
        self._leave(OFFLINE)

    def _leave(self, last_word: str) -> None:
        self._last_word = last_word
        self._leaving.set()

    async def _pause(self) -> None:
        """Until the next attempt, unless somebody wants something else."""
        if self._leaving.is_set():
            return
        lasted = None if self._connected_at is None else time.monotonic() - self._connected_at
        if lasted is not None and lasted > STEADY_SECONDS:
            self._said.clear()
        wait = self._retries.after(lasted, len(self.addresses))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait * random.uniform(0.5, 1.0)):
                await self._leaving.wait()

    async def _stay_connected(self, address: BrokerAddress, *, five: bool) -> None:
        will = self._availability_topic, OFFLINE
        client = member(address, self._client_id, will, five=five)
        try:
            await self._use(client)
        finally:
            client.let_go()

    async def _use(self, connection: Client) -> None:
        async with connection as client:
            self.connections += 1
            self._connected_at = time.monotonic()
            self.problem = ""
            client.on_message = self._on_message
            self._delivery.connected()
            try:
                await self._talk(client)
            except BaseException:
                client.abandon("given up")
                raise

    async def _talk(self, client: Client) -> None:
        """Until the connection breaks, which is an exception, or is left in order."""
        sending = Sending(
            client,
            self._delivery,
            self._properties,
            on_confirmed=self._note_confirmed,
            on_refused=self._note_refused,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(client.lost(), name="mqtt-lost")
                group.create_task(self._speak(client, sending), name="mqtt-speak")
                group.create_task(sending.watch(), name="mqtt-confirmations")
                group.create_task(self._wait_to_leave(), name="mqtt-leave")
        except* _Leave:
            # leaving in order keeps the last will from being sent: say it ourselves
            qos = 1 if sending.has_room else 0
            await client.publish(self._availability_topic, self._last_word, qos=qos, retain=True)

    async def _wait_to_leave(self) -> None:
        await self._leaving.wait()
        raise _Leave

    async def _speak(self, client: Client, sending: Sending) -> None:
        """Subscribe first: whoever reads "online" may count on being heard."""
        refused = await client.refused_of(self._subscriptions)
        self._announce()
        for topic in refused:
            self._say(f"the broker refuses the subscription to {topic}; check its access rules")
        await sending.run()

    def _announce(self) -> None:
        self.state = "online"
        log.info("connected to the broker %r", self.address)
        self.attempted.set()
        for topic, payload in self._retained.items():
            self._delivery.send(Publication(topic, payload, 1, "retained"))

    def _note_confirmed(self, one: Publication) -> None:
        if not one.payload and self._retained.get(one.topic) == b"":
            del self._retained[one.topic]
        self._note_quiet()

    def _note_refused(self, kind: str, problem: str) -> None:
        self._say(problem, kind=kind)
        self._note_quiet()

    def _note_quiet(self) -> None:
        if self._delivery.quiet:
            self._quiet.set()

    def _lose_connection(self) -> None:
        if self.state == "online":
            self.state = "connecting"
        self._delivery.disconnected()
        self._quiet.set()

    def _note_failure(self, error: BaseException, address: BrokerAddress) -> None:
        """Take an error as a hint to speak the other version of the protocol, or say it."""
        fault = version_fault(error)
        if self._connected_at is None:
            five = self._versions.five(address)
            self._versions.failed(address, fault)
            if five and fault == "refused":
                return
        self.state = "error" if is_refusal(error) else "offline"
        self._say(str(explain(error, address)))

    def _say(self, problem: str, *, kind: str = "") -> None:
        """Once per kind of failure; of connections each sentence is one."""
        self.problem = problem
        if (kind or problem) not in self._said and len(self._said) < MOST_SAID:
            self._said.add(kind or problem)
            self._on_problem(problem)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
