"""Sends what a delivery has over one connection, and tells it what becomes of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from streamexit.sinks.delivery import Delivery
from streamexit.sinks.mqtt_client import OVER_QUOTA, Client, PublishProperties
from streamexit.sinks.publication import Publication

IN_FLIGHT = 100
"""Publications that may wait for their confirmation; a broker may ask for fewer (MQTT 5, receive maximum)."""

CONFIRM_SECONDS = 20.0
"""For which the oldest of them may be the oldest; then the connection is taken for broken."""

LOOK_SECONDS = 0.5
"""Between two looks at that."""

OVERHEAD = 128
"""Bytes of a packet besides topic, payload and correlation data, at most."""


class Sending:
    """See the module. Lives as long as the connection.

    Args:
        client: Connected.
        delivery: Of results and of what else is to be sent.
        properties: Of publications, for MQTT 5.
        on_confirmed: Called with each publication that the broker has.
        on_refused: Called with the kind of failure and a sentence, for each that it does not take.
    """

    def __init__(
        self,
        client: Client,
        delivery: Delivery,
        properties: PublishProperties,
        *,
        on_confirmed: Callable[[Publication], None],
        on_refused: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._delivery = delivery
        self._properties = properties
        self._on_confirmed = on_confirmed
        self._on_refused = on_refused
        self._window = min(IN_FLIGHT, client.receive_maximum)
        self._unconfirmed: dict[int, Publication] = {}
        self._early: dict[int, int] = {}
        client.on_outcome = self._note_outcome

    @property
    def has_room(self) -> bool:
        """Whether one more may be unconfirmed."""
        return self._delivery.under_way < self._window

    async def run(self) -> None:
        """Send in order, for ever; so many await confirmation at a time."""
        delivery = self._delivery
        while True:
            await delivery.wanted.wait()
            delivery.wanted.clear()
            while self.has_room and (one := delivery.take()):
                self._send(one)
                if delivery.under_way % 20 == 0:
                    await asyncio.sleep(0)  # let the socket be written and others have their turn

    async def watch(self) -> None:
        """A broker may answer pings and yet have lost what it was sent."""
        while self._delivery.stuck_for < CONFIRM_SECONDS:  # noqa: ASYNC110 - time passing is no event
            await asyncio.sleep(LOOK_SECONDS)
        self._client.abandon("does not confirm what is published to it")

    def _send(self, one: Publication) -> None:
        client = self._client
        properties = self._properties.of(one) if client.five else None
        try:
            size = len(one.payload) + len(one.topic.encode()) + len(one.correlation or b"")
            if size + OVERHEAD > client.largest_packet:
                raise ValueError(f"{size} bytes, and the broker takes {client.largest_packet}")
            mid = client.send(one.topic, one.payload, one.qos, one.kind == "retained", properties)
        except ValueError as error:  # sent again it would be no better
            problem = f"what should go to {one.topic[:200]} cannot be sent: {error}"
            self._refuse(one, "cannot be sent", problem)
            return
        if mid in self._early:  # it was written, or even confirmed, at once
            self._conclude(one, self._early.pop(mid))
        else:
            self._unconfirmed[mid] = one

    def _note_outcome(self, mid: int, code: int) -> None:
        one = self._unconfirmed.pop(mid, None)
        if one is None:
            self._early[mid] = code
        else:
            self._conclude(one, code)

    def _conclude(self, one: Publication, code: int) -> None:
        if code == OVER_QUOTA:
            # which passes: it stays unconfirmed, and is sent again after a while
            self._client.abandon("its quota for this client is exceeded")
        elif code >= 128:
            problem = f"the broker refuses what is published to {one.topic}; check its access rules"
            self._refuse(one, "refused", problem)
        else:
            self._delivery.confirmed(one)
            self._on_confirmed(one)

    def _refuse(self, one: Publication, kind: str, problem: str) -> None:
        self._delivery.refused(one)
        self._on_refused(kind, problem)
