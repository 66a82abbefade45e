from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from streamexit.errors import BrokerError, InputError
from streamexit.sinks.mqtt import BrokerAddress, MqttSession, subscribe
from tests.conftest import Mosquitto

pytestmark = pytest.mark.broker

TOPIC = "t/node/availability"
LIMIT_SECONDS = 60


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine; a hang is a failure."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            await test()

    asyncio.run(limited())


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the event loop run until `condition` holds; `run` bounds it."""
    while not condition():  # noqa: ASYNC110 - there is no event for "whatever a test looks at"
        await asyncio.sleep(0)


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


@asynccontextmanager
async def running(session: MqttSession) -> AsyncIterator[None]:
    """A session with its task."""
    task = asyncio.create_task(session.run())
    try:
        yield
    finally:
        session.finish()
        await asyncio.wait([task])


def session(address: BrokerAddress, problems: list[str]) -> MqttSession:
    """A session under test."""
    return MqttSession(
        address,
        client_id="under-test",
        availability_topic=TOPIC,
        on_problem=problems.append,
    )


def test_results_arrive_in_order(mosquitto: Mosquitto) -> None:
    """A thousand results reach a subscriber, in order and confirmed; then the node says stopped."""

    async def body() -> None:
        address = BrokerAddress.parse(mosquitto.url)
        listener = Listener(address)
        mqtt = session(address, [])
        async with running(mqtt):
            await mqtt.attempted.wait()
            await listener.until(TOPIC, b"online")
            for i in range(1000):
                await mqtt.publish_result("t/result", str(i).encode())
            await mqtt.drained()
        await listener.until(TOPIC, b"stopped")
        await listener.close()
        results = [int(p) for t, p, _ in listener.messages if t == "t/result"]
        assert results == list(range(1000))
        assert mqtt.confirmed == 1000
        assert mqtt.lost.total() == 0

    run(body)


def test_broker_comes_back(mosquitto: Mosquitto) -> None:
    """After a broker's death the session reconnects, sets retained topics right, counts losses."""

    async def body() -> None:
        address = BrokerAddress.parse(mosquitto.url)
        problems: list[str] = []
        mqtt = session(address, problems)
        async with running(mqtt):
            await mqtt.attempted.wait()
            await mqtt.set_retained("t/info", b"one")
            await mqtt.publish_result("t/result", b"1")
            await mqtt.drained()
            mosquitto.kill()
            await eventually(lambda: not mqtt.connected)
            await mqtt.set_retained("t/info", b"two")
            await mqtt.publish_result("t/result", b"2")
            assert mqtt.lost == {"broker_offline": 1}
            mosquitto.start()
            await eventually(lambda: mqtt.connected)
            listener = Listener(address)
            await listener.until("t/info", b"two")
            await listener.until(TOPIC, b"online")
            await mqtt.publish_result("t/result", b"3")
            await listener.until("t/result", b"3")
            await mqtt.drained()  # a subscriber may have it before the publisher is told
            await listener.close()
        assert mqtt.connections == 2
        assert mqtt.confirmed == 2
        assert len(problems) >= 1
        assert str(mosquitto.port) in problems[0]

    run(body)


def test_last_will_is_offline(mosquitto: Mosquitto) -> None:
    """When the node vanishes without a word, the broker says offline for it."""

    async def body() -> None:
        address = BrokerAddress.parse(mosquitto.url)
        listener = Listener(address, TOPIC)
        first, second = session(address, []), session(address, [])
        async with running(first):
            await listener.until(TOPIC, b"online")
            # a second client of the same id throws the first one out, without a goodbye
            async with running(second):
                await listener.until(TOPIC, b"offline")
        await listener.close()

    run(body)


def test_refused_login_is_explained(mosquitto: Mosquitto) -> None:
    """A wrong password is named as such, once, and the session is not connected."""
    mosquitto.kill()
    mosquitto.start(extra="allow_anonymous false")

    async def body() -> None:
        problems: list[str] = []
        mqtt = session(BrokerAddress.parse(mosquitto.url, username="u", password="p"), problems)
        async with running(mqtt):
            await mqtt.attempted.wait()
            await eventually(lambda: bool(problems))
            assert not mqtt.connected
        assert "refused the login; check user and password" in problems[0]
        assert "p@" not in problems[0]

    run(body)


def test_nobody_listens() -> None:
    """Without a broker results are lost and counted, and nothing waits."""

    async def body() -> None:
        problems: list[str] = []
        mqtt = session(BrokerAddress("127.0.0.1", 1), problems)
        async with running(mqtt):
            await mqtt.attempted.wait()
            for _ in range(10):
                await mqtt.publish_result("t/result", b"x")
            await mqtt.drained()
        assert mqtt.lost == {"broker_offline": 10}
        assert "mqtt://127.0.0.1:1" in problems[0]

    run(body)


def test_subscriber_without_broker_is_told() -> None:
    """Watching a broker that is not there is a clear error."""

    async def body() -> None:
        with pytest.raises(BrokerError, match=r"mqtt://127\.0\.0\.1:1: .*check that it runs"):
            await anext(subscribe(BrokerAddress("127.0.0.1", 1), "#"))

    run(body)


def test_nothing_is_forgotten_however_often_the_broker_dies(mosquitto: Mosquitto) -> None:
    """Under load, through ten deaths, each result is confirmed or counted as lost, and it goes on."""

    async def body() -> None:
        mqtt = session(BrokerAddress.parse(mosquitto.url), [])
        sent = 0
        async with running(mqtt):
            for round_ in range(10):
                await eventually(lambda: mqtt.connected)
                before = mqtt.confirmed
                for _ in range(100 + 37 * round_):
                    await mqtt.publish_result("t/result", b"x" * 200)
                    sent += 1
                await eventually(lambda before=before: mqtt.confirmed > before)  # type: ignore[misc]
                mosquitto.kill()
                await eventually(lambda: not mqtt.connected)
                mosquitto.start()
            await eventually(lambda: mqtt.connected)
            await mqtt.publish_result("t/result", b"last")
            await mqtt.drained()
        assert mqtt.confirmed + mqtt.lost.total() == sent + 1
        assert mqtt.confirmed > 10

    run(body)


def test_wrong_topic_filter_is_explained(mosquitto: Mosquitto) -> None:
    """A filter that MQTT does not allow is the user's mistake, and said to be."""

    async def body() -> None:
        stream = subscribe(BrokerAddress.parse(mosquitto.url), "a/#/b")
        with pytest.raises(InputError, match="not an MQTT topic filter"):
            await anext(stream)

    run(body)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://broker", "mqtt://broker:1883"),
        ("mqtts://broker", "mqtts://broker:8883"),
        ("mqtt://broker:99", "mqtt://broker:99"),
    ],
)
def test_addresses(url: str, shown: str) -> None:
    """Default ports by scheme; the password never shows."""
    address = BrokerAddress.parse(url, username="me", password="secret")
    assert repr(address) == shown
    assert address.password == "secret"
