from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from streamexit.errors import BrokerError, ConfigurationError, InputError
from streamexit.sinks import mqtt as module
from streamexit.sinks import mqtt_client as client_module
from streamexit.sinks.brokers import BrokerAddress, TlsOptions
from streamexit.sinks.mqtt_client import Subscription
from streamexit.sinks.sending import CONFIRM_SECONDS
from streamexit.sinks.visits import subscribe
from streamexit.wire.incoming import Incoming
from tests.certificates import make_certificates
from tests.conftest import Mosquitto, absent
from tests.sinks.brokers import (
    CONNECT,
    DISCONNECT,
    PUBLISH,
    SUBSCRIBE,
    TOPIC,
    Listener,
    Packet,
    Publisher,
    ScriptedBroker,
    running,
)
from tests.sinks.rig import eventually, run

pytestmark = pytest.mark.broker


def test_results_arrive_in_order(mosquitto: Mosquitto) -> None:
    """A thousand results reach a subscriber, in order and confirmed; then the node says stopped."""

    async def body() -> None:
        address = BrokerAddress.parse(mosquitto.url)
        listener = Listener(address)
        mqtt = Publisher(address, [])
        async with running(mqtt):
            await mqtt.attempted.wait()
            await listener.until(TOPIC, b"online")
            for i in range(1000):
                mqtt.offer(i)
            await mqtt.drained()
        await listener.until(TOPIC, b"stopped")
        await listener.close()
        results = [int(p) for t, p, _ in listener.messages if t == "t/result"]
        assert results == list(range(1000))
        assert mqtt.confirmed == 1000
        assert mqtt.delivery.lost() == {}

    run(body)


def test_broker_comes_back(mosquitto: Mosquitto) -> None:
    """After a broker's death the session reconnects, sets retained topics right, sends what was kept."""

    async def body() -> None:
        address = BrokerAddress.parse(mosquitto.url)
        problems: list[str] = []
        mqtt = Publisher(address, problems)
        async with running(mqtt):
            await mqtt.attempted.wait()
            mqtt.set_retained("t/info", b"one")
            mqtt.offer("1")
            await mqtt.drained()
            mosquitto.kill()
            await eventually(lambda: not mqtt.connected)
            mqtt.set_retained("t/info", b"two")
            mqtt.offer("2")
            assert mqtt.delivery.kept == 1
            mosquitto.start()
            await eventually(lambda: mqtt.connected)
            listener = Listener(address)
            await listener.until("t/info", b"two")
            await listener.until(TOPIC, b"online")
            mqtt.offer("3")
            await listener.until("t/result", b"3")
            await mqtt.drained()  # a subscriber may have it before the publisher is told
            await listener.close()
        assert mqtt.connections == 2
        assert mqtt.confirmed == 3
        assert len(problems) >= 1
        assert str(mosquitto.port) in problems[0]

    run(body)


@pytest.mark.parametrize("prefer_v5", [True, False])
def test_whoever_reads_online_is_heard(prefer_v5: bool) -> None:
    """A session publishes nothing before the broker has confirmed its subscriptions."""

    async def body() -> None:
        async with ScriptedBroker() as broker:
            broker.subscribing.clear()
            topics = [Subscription("t/ask"), Subscription("t/set")]
            mqtt = Publisher(broker.address, [], subscriptions=topics, prefer_v5=prefer_v5)
            async with running(mqtt):
                await eventually(lambda: len(broker.got) == 2)  # CONNECT and SUBSCRIBE
                mqtt.offer("early")
                for _ in range(100):  # in which it could be sent and read
                    await asyncio.sleep(0)
                assert not mqtt.connected
                assert broker.of(PUBLISH) == []
                broker.subscribing.set()
                await eventually(lambda: mqtt.confirmed == 1)
            assert [packet.topic for packet in broker.of(PUBLISH)][:2] == [TOPIC, "t/result"]

    run(body)


def test_last_will_is_offline(mosquitto: Mosquitto) -> None:
    """When the node vanishes without a word, the broker says offline for it."""

    async def body() -> None:
        address = BrokerAddress.parse(mosquitto.url)
        listener = Listener(address, TOPIC)
        first, second = Publisher(address, []), Publisher(address, [])
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
        mqtt = Publisher(BrokerAddress.parse(mosquitto.url, username="u", password="p"), problems)
        async with running(mqtt):
            await mqtt.attempted.wait()
            await eventually(lambda: bool(problems))
            assert (mqtt.connected, mqtt.state) == (False, "error")
        assert "refused the login; check user and password" in problems[0]
        assert "p@" not in problems[0]

    run(body)


def test_nobody_listens() -> None:
    """Without a broker results wait in memory, nothing else waits, and at the end they are counted."""

    async def body() -> None:
        problems: list[str] = []
        mqtt = Publisher(BrokerAddress("127.0.0.1", 1), problems)
        async with running(mqtt):
            await mqtt.attempted.wait()
            for _ in range(10):
                mqtt.offer("x")
            await mqtt.drained()
        assert mqtt.state == "offline"
        await mqtt.delivery.close()
        assert mqtt.delivery.lost() == {"not_sent": 10}
        assert "mqtt://127.0.0.1:1" in problems[0]

    run(body)


def test_subscriber_without_broker_is_told() -> None:
    """Watching a broker that is not there is a clear error."""

    async def body() -> None:
        with pytest.raises(BrokerError, match=r"mqtt://127\.0\.0\.1:1: .*check that it runs"):
            await anext(subscribe(BrokerAddress("127.0.0.1", 1), "#"))

    run(body)


def test_nothing_is_forgotten_however_often_the_broker_dies(mosquitto: Mosquitto) -> None:
    """Under load, through five deaths, each result is confirmed in the end."""

    async def body() -> None:
        mqtt = Publisher(BrokerAddress.parse(mosquitto.url), [])
        sent = 0
        async with running(mqtt):
            for round_ in range(5):
                await eventually(lambda: mqtt.connected)
                before = mqtt.confirmed
                for _ in range(100 + 37 * round_):
                    mqtt.offer("x" * 200)
                    sent += 1
                await eventually(lambda before=before: mqtt.confirmed > before)  # type: ignore[misc]
                mosquitto.kill()
                await eventually(lambda: not mqtt.connected)
                mosquitto.start()
            await eventually(lambda: mqtt.connected)
            mqtt.offer("last")
            await mqtt.drained()
            await eventually(lambda: mqtt.confirmed == sent + 1)
        assert mqtt.delivery.lost() == {}

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


def test_several_brokers_in_turn(mosquitto: Mosquitto) -> None:
    """If the first cannot be had the next is used."""

    async def body() -> None:
        problems: list[str] = []
        mqtt = Publisher(
            [BrokerAddress("127.0.0.1", 1), BrokerAddress.parse(mosquitto.url)], problems
        )
        async with running(mqtt):
            await eventually(lambda: mqtt.connected)
            assert repr(mqtt.address) == mosquitto.url
            mqtt.offer(1)
            await mqtt.drained()
        assert mqtt.confirmed == 1
        assert "mqtt://127.0.0.1:1:" in problems[0]

    run(body)


def test_a_broker_that_forbids_publishing_is_heard(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """MQTT 5 says so in the confirmation: refused results are lost, and the remedy is named."""
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite t/node/#\n")
    rules.chmod(0o644)
    mosquitto.kill()
    mosquitto.start(extra=f"allow_anonymous true\nacl_file {rules}\nuser root")

    async def body() -> None:
        problems: list[str] = []
        mqtt = Publisher(BrokerAddress.parse(mosquitto.url), problems)
        async with running(mqtt):
            await eventually(lambda: mqtt.connected)
            mqtt.offer(1)
            mqtt.offer(2)
            await eventually(
                lambda: mqtt.delivery.lost() == {"refused": 2}
            )  # it breaks off each time
        assert "refuses what is published to t/result; check its access rules" in problems[0]

    run(body)


def test_a_broker_that_forbids_subscribing_is_heard(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """By the node, whose results go on, and by whoever watches, who would wait for ever."""
    plugin = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
    if plugin is None:
        absent("mosquitto's plugin for dynamic security")
    allowed = dict.fromkeys(("publishClientSend", "publishClientReceive", "unsubscribe"), True)
    rules: dict[str, Any] = {"clients": [], "roles": []}
    rules["defaultACLAccess"] = {**allowed, "subscribe": False}
    rules |= {"groups": [{"groupname": "all", "roles": []}], "anonymousGroup": "all"}
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    lines = (f"plugin {plugin}", f"plugin_opt_config_file {tmp_path}/rules.json", "user root")
    mosquitto.kill()
    mosquitto.start(extra="\n".join((*lines, "allow_anonymous true")))

    async def body() -> None:
        problems: list[str] = []
        address = BrokerAddress.parse(mosquitto.url)
        mqtt = Publisher(
            address,
            problems,
            subscriptions=[Subscription("t/request/+")],
            on_message=lambda _: None,
        )
        async with running(mqtt):
            await eventually(lambda: bool(problems))
            mqtt.offer(1)
            await mqtt.drained()
        assert mqtt.confirmed == 1
        assert "refuses the subscription to t/request/+; check its access rules" in problems[0]
        with pytest.raises(BrokerError, match="refuses the subscription to t/#"):
            await anext(subscribe(address, "t/#"))

    run(body)


def test_messages_to_us_are_handed_on(mosquitto: Mosquitto) -> None:
    """With what an answer needs, and told apart from what the broker had kept."""

    async def body() -> None:
        heard: list[Incoming] = []
        address = BrokerAddress.parse(mosquitto.url)
        other = Publisher(address, [], client_id="other", availability_topic="other/availability")
        async with running(other):
            await eventually(lambda: other.connected)
            other.set_retained("t/request/old", b"{}")
            await other.drained()
            mqtt = Publisher(
                address, [], subscriptions=[Subscription("t/request/+")], on_message=heard.append
            )
            async with running(mqtt):
                await eventually(lambda: len(heard) == 1)
                other.reply("t/request/new", b"{}", b"\x00\x01")
                await eventually(lambda: len(heard) == 2)
        old, new = heard
        assert (old.topic, old.retained, old.correlation) == ("t/request/old", True, None)
        assert (new.topic, new.retained, new.correlation) == ("t/request/new", False, b"\x00\x01")

    run(body)


def test_a_retained_topic_is_cleared_for_good(mosquitto: Mosquitto) -> None:
    """Also when the broker was away when that was wanted."""

    async def body() -> None:
        address = BrokerAddress.parse(mosquitto.url)
        mqtt = Publisher(address, [])
        async with running(mqtt):
            await eventually(lambda: mqtt.connected)
            mqtt.set_retained("t/gone", b"{}")
            mqtt.set_retained("t/stays", b"{}")
            await mqtt.drained()
            mqtt.set_retained("t/gone", b"")
            await mqtt.drained()
            listener = Listener(address, "t/#")
            await listener.until("t/stays", b"{}")
            await listener.until(TOPIC, b"online")
            await listener.close()
            assert "t/gone" not in [topic for topic, _, _ in listener.messages]

    run(body)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder of certificates."""
    return make_certificates(tmp_path)


def with_tls(broker: Mosquitto, certificates: Path, name: str, *more: str) -> None:
    """Restart a broker with a certificate."""
    if broker.process:
        broker.kill()
    lines = [f"certfile {certificates}/{name}.pem", f"keyfile {certificates}/{name}.key", *more]
    broker.start(extra="\n".join([*lines, "allow_anonymous true", "user root"]))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # paho's failed handshakes
def test_certificates_are_checked(mosquitto: Mosquitto, certificates: Path) -> None:
    """One that nobody vouches for, one that has expired, a good one, and ours where it is asked for."""

    async def body() -> None:
        problems: list[str] = []
        url = mosquitto.url.replace("mqtt", "mqtts")
        ca = certificates / "ca.pem"
        with_tls(mosquitto, certificates, "good")
        mqtt = Publisher(BrokerAddress.parse(url), problems)
        async with running(mqtt):
            await eventually(lambda: bool(problems))
            assert mqtt.state == "error"
            assert "its certificate is not accepted: " in problems[-1]
            assert "mqtt.tls.ca_file" in problems[-1]
            with_tls(mosquitto, certificates, "expired")
            mqtt.addresses = [BrokerAddress.parse(url, tls=TlsOptions(ca_file=ca))]
            mqtt.reconnect()
            await eventually(lambda: "certificate has expired; renew it" in problems[-1])
            assert not mqtt.connections
            mqtt.offer("kept")
            required = ("require_certificate true", f"cafile {ca}")
            with_tls(mosquitto, certificates, "good", *required)
            await eventually(lambda: "certificate has expired" not in problems[-1])
            assert not mqtt.connections
            ours = TlsOptions(ca_file=ca, cert_file=certificates / "client.pem",
                              key_file=certificates / "client.key")  # fmt: skip
            mqtt.addresses = [BrokerAddress.parse(url, tls=ours)]
            mqtt.reconnect()
            await eventually(lambda: mqtt.connected)
            await eventually(lambda: mqtt.confirmed == 1)

    run(body)


def test_a_certificate_file_that_is_none_is_named(tmp_path: Path) -> None:
    """With its key."""
    (tmp_path / "no.pem").write_text("nonsense")
    with pytest.raises(
        ConfigurationError, match=r"mqtt\.tls\.ca_file: .*no\.pem: holds no certificate"
    ):
        TlsOptions(ca_file=tmp_path / "no.pem").context()
    with pytest.raises(
        ConfigurationError, match=r"mqtt\.tls\.cert_file: .*absent\.pem: No such file"
    ):
        TlsOptions(cert_file=tmp_path / "absent.pem").context()


@pytest.mark.parametrize("topic", ["t/result", "t/" + "x" * 70_000])
def test_what_cannot_be_sent_stops_nothing(mosquitto: Mosquitto, topic: str) -> None:
    """Larger than the broker takes, or under an impossible topic: lost, said, and the next one goes out."""
    mosquitto.kill()
    mosquitto.start(extra="allow_anonymous true\nmax_packet_size 3000")

    async def body() -> None:
        problems: list[str] = []
        mqtt = Publisher(BrokerAddress.parse(mosquitto.url), problems)
        async with running(mqtt):
            await eventually(lambda: mqtt.connected)
            mqtt.delivery.offer(topic, b"x" * 5000)
            mqtt.offer("small")
            await mqtt.drained()
        assert mqtt.confirmed == 1
        assert mqtt.delivery.lost() == {"refused": 1}
        assert mqtt.connections == 1
        assert "cannot be sent" in problems[0]

    run(body)


def test_another_broker_is_a_goodbye_to_the_old_one(mosquitto: Mosquitto) -> None:
    """The old one does not keep "online" for ever, and nothing is called a failure."""

    async def body() -> None:
        problems: list[str] = []
        async with ScriptedBroker() as other:
            address = BrokerAddress.parse(mosquitto.url)
            listener = Listener(address, TOPIC)
            mqtt = Publisher(address, problems)
            async with running(mqtt):
                await listener.until(TOPIC, b"online")
                mqtt.addresses = [other.address]
                mqtt.reconnect()
                await listener.until(TOPIC, b"offline")
                await eventually(lambda: mqtt.connected and mqtt.connections == 2)
            await listener.close()
            assert other.of(DISCONNECT)
        assert problems == []

    run(body)


@pytest.mark.parametrize("where", ["hearing", "sending"])
def test_a_defect_does_not_look_like_a_goodbye(mosquitto: Mosquitto, where: str) -> None:
    """Whatever ends a connection, the broker says offline for us, and it is made again."""

    async def body() -> None:
        problems: list[str] = []
        address = BrokerAddress.parse(mosquitto.url)

        def fail(what: object) -> bytes:
            raise ZeroDivisionError("a defect")

        mqtt = Publisher(address, problems, subscriptions=[Subscription("t/ask")], on_message=fail)
        if where == "sending":
            mqtt.delivery._historical_of = fail
            mqtt.offer("kept")
        listener = Listener(address, TOPIC)
        other = Publisher(address, [], client_id="other", availability_topic="other/availability")
        async with running(other):
            await eventually(lambda: other.connected)
            async with running(mqtt):
                await listener.until(TOPIC, b"online")
                if where == "hearing":
                    other.reply("t/ask", b"{}")
                await listener.until(TOPIC, b"offline")
                await eventually(lambda: mqtt.connections == 2)
        await listener.close()
        assert "a defect" in problems[0]

    run(body)


def test_the_reason_that_the_broker_gives_is_said() -> None:
    """Here: that another client has the same id."""

    async def body() -> None:
        problems: list[str] = []
        async with ScriptedBroker() as broker:
            mqtt = Publisher(broker.address, problems)
            async with running(mqtt):
                await eventually(lambda: mqtt.connected)
                broker.disconnect(142)
                await eventually(lambda: bool(problems))
            assert "another client has the same id (mqtt.client_id)" in problems[0]
            listener = asyncio.create_task(anext(subscribe(broker.address, "t/#")))
            await eventually(lambda: len(broker.of(SUBSCRIBE)) == 1)
            broker.disconnect(142)
            with pytest.raises(BrokerError, match="another client has the same id"):
                await listener

    run(body)


def test_a_broker_that_was_busy_is_spoken_to_in_5_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence makes it try 3.1.1 next; after a connection in that 5 comes first again."""
    monkeypatch.setattr(client_module, "CONNECT_TIMEOUT_SECONDS", 0.5)
    silent = True

    async def body() -> None:
        def connects(packet: Packet) -> int | None:
            return None if packet.version == 5 and silent else 0

        nonlocal silent
        async with ScriptedBroker(connects=connects) as broker:
            problems: list[str] = []
            mqtt = Publisher(broker.address, problems)
            async with running(mqtt):
                await eventually(lambda: mqtt.connected)
                silent = False
                mqtt.reconnect()
                await eventually(lambda: mqtt.connections == 2)
            versions = [packet.version for packet in broker.of(CONNECT)]
            assert versions == [5, 4, 5]
            assert len(problems) == 1

    run(body)


def test_a_burst_of_messages_is_heard_to_the_last(mosquitto: Mosquitto) -> None:
    """However many come before anybody looks at them."""
    mosquitto.kill()
    mosquitto.start(extra="allow_anonymous true\nmax_inflight_messages 0")

    async def body() -> None:
        heard: list[Incoming] = []
        address = BrokerAddress.parse(mosquitto.url)
        mqtt = Publisher(address, [], subscriptions=[Subscription("t/+")], on_message=heard.append)
        other = Publisher(address, [], client_id="other", availability_topic="other/availability")
        async with running(mqtt), running(other):
            await eventually(lambda: mqtt.connected and other.connected)
            for n in range(500):
                other.reply("t/ask", str(n).encode())
            await eventually(lambda: len(heard) == 500)
        assert [int(message.payload) for message in heard] == list(range(500))

    run(body)


def test_a_confirmation_that_never_comes_ends_the_connection() -> None:
    """The broker answers everything else; on the next connection all is confirmed."""

    async def body() -> None:
        now, forgotten = 0.0, b"3"

        def confirms(packet: Packet) -> int | None:
            forget = packet.body.endswith(forgotten) and broker.connections == 1
            return None if forget else 0

        problems: list[str] = []
        async with ScriptedBroker(confirms=confirms) as broker:
            mqtt = Publisher(broker.address, problems, clock=lambda: now)
            async with running(mqtt):
                await eventually(lambda: mqtt.connected)
                for n in range(10):
                    mqtt.offer(n)
                await eventually(lambda: mqtt.confirmed == 9)
                assert mqtt.connections == 1
                now += CONFIRM_SECONDS
                await eventually(lambda: mqtt.connections == 2)
                now += 1  # so that late results may go
                await eventually(lambda: mqtt.confirmed == 10)
        assert "does not confirm what is published to it" in problems[0]

    run(body)


def test_a_reply_that_is_too_large_with_its_correlation_is_not_sent(mosquitto: Mosquitto) -> None:
    """The broker would end the connection because of it."""
    mosquitto.kill()
    mosquitto.start(extra="allow_anonymous true\nmax_packet_size 3000")

    async def body() -> None:
        problems: list[str] = []
        mqtt = Publisher(BrokerAddress.parse(mosquitto.url), problems)
        async with running(mqtt):
            await eventually(lambda: mqtt.connected)
            mqtt.reply("t/response/info", b"x" * 1000, b"c" * 2500)
            mqtt.offer("next")
            await eventually(lambda: mqtt.confirmed == 1)
        assert mqtt.connections == 1
        assert "t/response/info cannot be sent" in problems[0]

    run(body)


RECEIVE_MAXIMUM_2 = bytes([0x21, 0, 2])


def test_the_last_word_does_not_wait_for_a_broker_that_confirms_nothing() -> None:
    """It is sent all the same, but not as one more that is unconfirmed."""

    async def body() -> None:
        async with ScriptedBroker(
            properties=RECEIVE_MAXIMUM_2, confirms=lambda packet: None
        ) as broker:
            mqtt = Publisher(broker.address, [])
            async with running(mqtt):
                await eventually(lambda: mqtt.connected)
                for n in range(5):
                    mqtt.offer(n)
                await eventually(lambda: len(broker.of(PUBLISH)) == 2)
            await eventually(lambda: bool(broker.of(DISCONNECT)))
            *others, last = broker.of(PUBLISH)
            assert (last.topic, last.body[-7:], last.qos) == (TOPIC, b"stopped", 0)
            assert [packet.qos for packet in others] == [1, 1]

    run(body)


def test_what_cannot_be_sent_is_said_once(mosquitto: Mosquitto) -> None:
    """Whatever its size and topic; waiting for the end of it ends."""
    mosquitto.kill()
    mosquitto.start(extra="allow_anonymous true\nmax_packet_size 3000")

    async def body() -> None:
        problems: list[str] = []
        mqtt = Publisher(BrokerAddress.parse(mosquitto.url), problems)
        async with running(mqtt):
            await eventually(lambda: mqtt.connected)
            await mqtt.drained()
            for n in range(50):
                mqtt.delivery.offer(f"t/{n}", b"x" * (5000 + n))
            await mqtt.drained()
        assert mqtt.delivery.lost() == {"refused": 50}
        assert len(problems) == 1

    run(body)


def test_kinds_of_failures_are_said_up_to_a_bound() -> None:
    """However many there are."""
    problems: list[str] = []
    mqtt = Publisher(BrokerAddress("127.0.0.1", 1), problems)
    for n in range(2 * module.MOST_SAID):
        mqtt._say(f"failure {n}")
    assert len(problems) == module.MOST_SAID


def test_a_quota_that_is_exceeded_costs_nothing() -> None:
    """It passes: the result is kept, and sent again on another connection."""

    async def body() -> None:
        def confirms(packet: Packet) -> int:
            return 0x97 if packet.topic == "t/result" and broker.connections == 1 else 0

        problems: list[str] = []
        async with ScriptedBroker(confirms=confirms) as broker:
            mqtt = Publisher(broker.address, problems)
            async with running(mqtt):
                await eventually(lambda: mqtt.connected)
                mqtt.offer(1)
                await eventually(lambda: mqtt.confirmed == 1)
        assert mqtt.connections == 2
        assert mqtt.delivery.lost() == {}
        assert "quota for this client is exceeded" in problems[0]

    run(body)


def test_a_retained_message_is_told_apart_only_where_that_is_wanted(mosquitto: Mosquitto) -> None:
    """A command that is retained must be known also when it is published; a birth message counts then."""

    async def body() -> None:
        heard: list[Incoming] = []
        address = BrokerAddress.parse(mosquitto.url)
        topics = [Subscription("t/ask"), Subscription("home/status", tells_retained=False)]
        mqtt = Publisher(address, [], subscriptions=topics, on_message=heard.append)
        other = Publisher(address, [], client_id="other", availability_topic="other/availability")
        async with running(mqtt), running(other):
            await eventually(lambda: mqtt.connected and other.connected)
            other.set_retained("t/ask", b"{}")
            other.set_retained("home/status", b"online")
            await eventually(lambda: len(heard) == 2)
        assert {message.topic: message.retained for message in heard} == {
            "t/ask": True,
            "home/status": False,
        }
        assert all(message.telling for message in heard)

    run(body)
