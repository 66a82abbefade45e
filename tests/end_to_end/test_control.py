"""One node, asked for everything: over MQTT and HTTP, by friends and by others, and in a browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.conftest import ROOT, MakeClip, Mosquitto, absent
from tests.end_to_end.test_mqtt_node import SCHEMAS, start
from tests.faults.rig import free_port

pytestmark = pytest.mark.broker

LIMIT_SECONDS = 60
SECRET = "hunter2-hunter2-hunter2"
CHROMIUM = "/usr/bin/chromium"


@dataclass
class House:
    """A node with three streams, its broker, and what was heard."""

    folder: Path
    broker: Mosquitto
    page: str
    process: subprocess.Popen[str] = field(init=False)
    heard: list[tuple[str, bytes, bool, Any]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def get(self, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body, headers of a GET."""
        return self._ask(urllib.request.Request(f"{self.page}{path}", headers=headers))

    def command(self, verb: str, **content: Any) -> dict[str, Any]:
        """A command over HTTP; the status has to fit the answer."""
        request = urllib.request.Request(
            f"{self.page}/api/commands/{verb}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        status, body, _ = self._ask(request)
        answer: dict[str, Any] = json.loads(body)
        SCHEMAS["response"].validate(answer)
        assert (status == 200) == (answer["status"] == "ok")
        return answer

    def _ask(self, request: urllib.request.Request) -> tuple[int, bytes, dict[str, str]]:
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as response:
                return response.status, response.read(), dict(response.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until something heard makes it true."""
        with self.news:
            assert self.news.wait_for(condition, LIMIT_SECONDS), "nothing of the kind was heard"
            return condition()

    def latest(self, topic: str) -> Any:
        """Of what was heard of this node under a topic, decoded; None for nothing, or a cleared one."""
        for heard, payload, _, _ in reversed(self.heard):
            if heard == f"site/a/test/{topic}":
                return json.loads(payload) if payload[:1] == b"{" else payload.decode() or None
        return None

    def publish(self, topic: str, payload: str | bytes, **how: Any) -> None:
        """As another client."""

        async def body() -> None:
            async with aiomqtt.Client(
                "127.0.0.1", self.broker.port, protocol=aiomqtt.ProtocolVersion.V5
            ) as client:
                await client.publish(topic, payload, qos=1, **how)

        asyncio.run(body())

    def responses(self, verb: str) -> list[dict[str, Any]]:
        """All that were heard."""
        return [json.loads(p) for t, p, _, _ in self.heard if t == f"site/a/test/response/{verb}"]


async def _listen(house: House, ready: threading.Event, over: threading.Event) -> None:
    async with aiomqtt.Client(
        "127.0.0.1",
        house.broker.port,
        protocol=aiomqtt.ProtocolVersion.V5,
        identifier="listener",
    ) as client:
        await client.subscribe("#", qos=1)
        ready.set()
        async for message in client.messages:
            with house.news:
                payload = bytes(message.payload or b"")
                house.heard.append(
                    (str(message.topic), payload, message.retain, message.properties)
                )
                house.news.notify_all()
            if over.is_set():
                return


@contextmanager
def broker_in(folder: Path) -> Iterator[Mosquitto]:
    """A mosquitto of a module's own."""
    broker = Mosquitto(folder, free_port())
    broker.start()
    try:
        yield broker
    finally:
        if broker.process:
            broker.kill()


@pytest.fixture(scope="module")
def house(
    tmp_path_factory: pytest.TempPathFactory, toy_pipeline: Path, make_clip: MakeClip
) -> Iterator[House]:
    """A node that runs for all tests of this file."""
    if not shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin"):
        absent("mosquitto (apt install mosquitto)")
    folder = tmp_path_factory.mktemp("house")
    clip = make_clip("watched.mp4", frames=200, size=(128, 96))
    with (
        broker_in(folder) as broker,
        socket.socket() as refusing,  # bound, and nobody listens
        pytest.MonkeyPatch.context() as patch,
    ):
        refusing.bind(("127.0.0.1", 0))
        gone, port = refusing.getsockname()[1], free_port()
        patch.setenv("STATE_DIRECTORY", str(folder / "state"))
        patch.setenv("CAMERA_PASSWORD", SECRET)
        config = folder / "node.yaml"
        config.write_text(
            f"""
node: {{id: test, prefix: site/a}}
mqtt: {{url: "{broker.url}"}}
http: {{port: {port}}}
homeassistant: {{}}
stats_every_s: 0.5
pipelines: {{toy: {toy_pipeline}}}
streams:
  - {{id: clip, source: {clip}, pipeline: toy, budget: {{fraction: 0.7}}, loop: true}}
  - {{id: made, source: "synthetic:seed=1,frames=1000000", pipeline: toy, budget: {{fraction: 0.9}},
      publish: on_change}}
  - {{id: gone, source: "rtsp://viewer:${{CAMERA_PASSWORD}}@127.0.0.1:{gone}/x", pipeline: toy,
      budget: {{fraction: 0.9}}}}
"""
        )
        house = House(folder, broker, f"http://127.0.0.1:{port}")
        house.publish("site/a/test/stream/orphan/availability", "online", retain=True)
        ready, over = threading.Event(), threading.Event()

        def listen() -> None:
            with contextlib.suppress(aiomqtt.MqttError):  # the broker ends with the fixture
                asyncio.run(_listen(house, ready, over))

        threading.Thread(target=listen, daemon=True).start()
        assert ready.wait(LIMIT_SECONDS)
        house.process = start(config)
        try:
            house.until(lambda: house.latest("availability") == "online")  # it hears us from now on
            house.until(lambda: house.latest("stream/clip/budget"))
            yield house
        finally:
            house.process.terminate()
            _, log = house.process.communicate(timeout=LIMIT_SECONDS)
            house.until(lambda: house.latest("availability") == "stopped")
            over.set()
            assert house.process.returncode in (0, 2), log
            assert "Traceback" not in log
            assert SECRET not in log
            said = b"".join(t.encode() + p for t, p, _, _ in house.heard)
            assert SECRET.encode() not in said


def test_every_message_fits_its_schema_and_has_its_properties(house: House) -> None:
    """Content type, expiry of live results; and what is retained is what the contract says."""
    wanted = {*SCHEMAS} - {"response"}
    house.until(lambda: {topic.split("/")[-1] for topic, *_ in house.heard} >= wanted)
    document = json.loads((ROOT / "docs" / "asyncapi.json").read_text(encoding="utf-8"))
    addresses = {
        re.compile(
            re.sub(r"\{[^}]*\}", "[^/]+", channel["address"]).replace("[^/]+", ".+", 1) + "$"
        )
        for channel in document["channels"].values()
    }
    for topic, payload, _, properties in list(house.heard):
        if topic.startswith("homeassistant/") or not payload:
            continue
        if "/request/" in topic or topic.endswith("/set"):
            continue  # what a test has sent
        assert any(address.match(topic) for address in addresses), topic
        leaf = topic.split("/")[-1]
        if payload[:1] == b"{":
            assert properties.ContentType == "application/json"
            assert properties.PayloadFormatIndicator == 1
        if leaf in SCHEMAS:
            SCHEMAS[leaf].validate(json.loads(payload))
        if leaf == "result":
            assert 3500 < properties.MessageExpiryInterval <= 3600
            assert properties.UserProperty == [("historical", "false")]


@pytest.mark.parametrize(
    ("setting", "payload", "expected"),
    [
        ("enabled", "maybe", "enabled: write ON or OFF, not 'maybe'"),
        ("budget", "9" * 70_000, "70000 bytes are more than"),
        ("budget", "much", "budget: write a number"),
    ],
)
def test_a_setting_that_is_none_is_answered(
    house: House, setting: str, payload: str, expected: str
) -> None:
    """With what would be right."""
    verb = f"set_{setting}"
    seen = len(house.heard)
    house.publish(f"site/a/test/stream/clip/{setting}/set", payload)

    def answered() -> Any:
        news = (m for m in house.heard[seen:] if m[0].endswith(f"/response/{verb}"))
        return next(news, None)

    error = json.loads(house.until(answered)[1])["error"]
    assert error["code"] == "bad_request"
    assert expected in error["message"]


def test_a_request_is_answered_where_it_wants(house: House) -> None:
    """MQTT 5: response topic and correlation data."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic, properties.CorrelationData = "me/answers", b"42"
    house.publish("site/a/test/request/info", "{}", properties=properties)

    def answered() -> Any:
        return next((m for m in house.heard if m[0] == "me/answers"), None)

    _, payload, _, found = house.until(answered)
    assert found.CorrelationData == b"42"
    assert json.loads(payload)["data"]["info"]["node"] == "test"


def test_a_budget_is_set_and_held(house: House) -> None:
    """By a bare number on the stream's own topic; then by HTTP; the reason is told."""
    house.publish("site/a/test/stream/clip/budget/set", "0.8")
    budget = house.until(
        lambda: (b := house.latest("stream/clip/budget"))["target_fraction"] == 0.8 and b
    )
    assert re.fullmatch(r"budget fraction=0\.\d+ -> fraction=0\.8: by MQTT", budget["last_change"])
    assert house.command("set_budget", stream="clip", budget={"fraction": 0.6})["data"]["changed"]
    assert not house.command("set_budget", stream="clip", budget=0.6)["data"]["changed"]
    house.until(lambda: house.latest("stream/clip/budget")["target_fraction"] == 0.6)
    house.until(
        lambda: (
            (mean := house.latest("stream/clip/budget")["mean_fraction"]) is not None
            and abs(mean - 0.6) < 0.03
        )
    )
    refused = house.command("set_budget", stream="clip", budget=0.001)
    assert refused["error"]["code"] == "invalid"
    assert "out of reach" in refused["error"]["message"]


def test_streams_come_and_go(house: House) -> None:
    """Added, answered, removed with their topics, and added again with numbers that go on."""
    new: dict[str, Any] = {
        "id": "new",
        "source": "synthetic:seed=5,frames=1000000",
        "pipeline": "toy",
    }
    wrong = house.command("add_stream", stream={**new, "budget": {"fraction": 0.001}})
    assert wrong["error"]["message"].startswith("stream.budget: 0.001")
    new["budget"] = {"fraction": 0.8}
    assert house.command("add_stream", stream=new, persist=True)["data"] == {"changed": True}
    assert house.command("add_stream", stream=new)["data"] == {"changed": False}
    conflict = house.command("add_stream", stream={**new, "window": 50})
    assert conflict["error"]["code"] == "conflict"
    house.until(lambda: house.latest("stream/new/result"))
    assert "new" in house.latest("info")["streams"]
    house.until(lambda: house.latest("stream/new/result")["seq"] > 20)
    assert house.command("remove_stream", stream="new")["status"] == "ok"
    house.until(lambda: house.latest("stream/new/availability") is None)
    assert house.command("remove_stream", stream="new")["error"]["code"] == "unknown_stream"
    assert [house.latest(f"stream/new/{leaf}") for leaf in ("status", "state", "budget")] == [
        None
    ] * 3
    last = house.latest("stream/new/result")
    assert house.command("add_stream", stream=new)["status"] == "ok"
    again = house.until(
        lambda: (r := house.latest("stream/new/result"))["epoch"] > last["epoch"] and r
    )
    numbers = [
        (m["epoch"], m["seq"])
        for t, p, _, _ in house.heard
        if t.endswith("stream/new/result") and (m := json.loads(p))
    ]
    assert [seq for _, seq in numbers] == list(range(numbers[0][1], numbers[-1][1] + 1))
    assert again["epoch"] == last["epoch"] + 1
    assert "new" in (house.folder / "node.overlay.yaml").read_text()
    assert house.command("remove_stream", stream="new", persist=True)["status"] == "ok"
    assert "new" not in (house.folder / "node.overlay.yaml").read_text()


def test_frame_rate_is_set_while_frames_come(house: House) -> None:
    """And back again, without opening the source anew."""
    epoch = house.until(lambda: house.latest("stream/made/status"))["epoch"]
    assert house.command("set_frame_rate", stream="made", frame_rate=2)["status"] == "ok"
    house.until(lambda: house.latest("stream/made/status")["fps"] < 4)
    house.publish("site/a/test/stream/made/frame_rate/set", "null")
    house.until(lambda: house.latest("stream/made/status")["fps"] > 4)
    assert house.latest("stream/made/status")["epoch"] == epoch


def test_a_camera_is_switched_off_and_on(house: House) -> None:
    """Also one that cannot be reached; a recording cannot be."""
    assert house.command("disable_stream", stream="gone")["data"]["changed"]
    house.until(lambda: house.latest("stream/gone/availability") == "disabled")
    assert not house.command("disable_stream", stream="gone")["data"]["changed"]
    house.publish("site/a/test/stream/gone/enabled/set", "ON")
    house.until(
        lambda: house.latest("stream/gone/availability") in ("connecting", "offline", "error")
    )
    assert "remove_stream" in house.command("disable_stream", stream="clip")["error"]["message"]


def test_a_snapshot_shows_the_source(house: House) -> None:
    """A JPEG, at the source's own size or as wide as asked for."""
    status, jpeg, headers = house.get("/api/streams/clip/snapshot.jpg")
    assert (status, headers["content-type"], jpeg[:2]) == (200, "image/jpeg", b"\xff\xd8")
    data = house.command("snapshot", stream="clip", width=100)["data"]
    assert (data["width"], data["height"]) == (100, 75)
    status, body, _ = house.get("/api/streams/gone/snapshot.jpg")
    assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable")


def test_a_preview_moves(house: House) -> None:
    """Motion JPEG: one picture after the other on one connection."""
    url = f"{house.page}/api/streams/clip/preview.mjpeg"
    with urllib.request.urlopen(url, timeout=LIMIT_SECONDS) as response:
        boundary = response.headers["content-type"].partition("boundary=")[2].encode()
        begun = b""
        while begun.count(b"--" + boundary) < 4:
            begun += response.read(1000)
    pictures = begun.split(b"--" + boundary)[1:4]
    assert len({picture.partition(b"\r\n\r\n")[2] for picture in pictures}) > 1


def test_metrics_and_health(house: House) -> None:
    """What Prometheus reads agrees with what MQTT says."""
    assert house.get("/livez")[:2] == (200, b"ok\n")
    house.until(lambda: house.get("/readyz")[:2] == (200, b"ok\n"))
    house.until(lambda: house.latest("stream/clip/budget")["state"] == "on_budget")
    on_budget = 'streamexit_stream_budget_state{state="on_budget",stream="clip"} 1.0'
    text = house.until(lambda: on_budget in (t := house.get("/metrics")[1].decode()) and t)
    assert 'streamexit_stream_latency_seconds_bucket{le="+Inf",stream="clip"}' in text
    exits = re.findall(r'streamexit_stream_exits_total\{exit="\d",stream="clip"\} ([0-9.]+)', text)
    (answered,) = re.findall(r'streamexit_stream_answered_total\{stream="clip"\} ([0-9.]+)', text)
    assert sum(float(n) for n in exits) == pytest.approx(float(answered), abs=30)
    assert "streamexit_broker_connected 1.0" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/node", {"Host": "evil.example"}, 403),
        ("/api/node", {"Origin": "http://evil.example"}, 403),
        ("/metrics", {"Host": "evil.example:8420"}, 403),
        ("/../../../etc/passwd", {}, 404),
        ("/%2e%2e/%2e%2e/app.py", {}, 404),
        ("/api/streams/nobody/snapshot.jpg", {}, 404),
        ("/api/streams/%2e%2e/history", {}, 200),
    ],
)
def test_who_may_not(house: House, path: str, headers: dict[str, str], status: int) -> None:
    """Names that others control, other pages in the same browser, and places outside of the page."""
    found, body, answered = house.get(path, **headers)
    assert found == status
    assert b"root:" not in body
    assert "content-security-policy" in {name.lower() for name in answered}


def test_a_hostile_client_changes_nothing(house: House) -> None:
    """Malformed, huge, retained, unknown, repeated and concurrent: answered or ignored, and it goes on."""
    house.publish("site/a/test/request/remove_stream", '{"stream": "clip"}', retain=True)
    for payload in (b"\xff" * 10, b"[" * 5000, b"x" * 100_000, b'{"stream": 5}', b"null", b""):
        for topic in (
            "request/set_budget",
            "stream/clip/budget/set",
            "request/none",
            "stream/%/x/set",
        ):
            house.publish(f"site/a/test/{topic}", payload)
    for _ in range(30):
        house.publish("site/a/test/request/set_budget", '{"stream": "clip", "budget": 0.65}')
    house.publish(
        "site/a/test/request/set_budget", '{"stream": "clip", "budget": 0.66, "transaction": "z"}'
    )
    house.until(lambda: any(r["transaction"] == "z" for r in house.responses("set_budget")))
    seen = len(house.heard)
    house.until(lambda: any(t.endswith("clip/result") for t, _, _, _ in house.heard[seen:]))
    house.publish("site/a/test/request/remove_stream", b"", retain=True)
    house.until(lambda: house.get("/readyz")[:2] == (200, b"ok\n"))
    assert house.process.poll() is None


def test_orphans_of_an_earlier_run_are_cleared(house: House) -> None:
    """A stream that is not configured any more does not stay "online" for ever."""
    house.until(lambda: len([t for t, p, _, _ in house.heard if "/orphan/" in t and not p]) == 4)


def test_home_assistant_hears_of_us(house: House) -> None:
    """And again when it has restarted."""
    topic = "homeassistant/device/streamexit_test_clip/config"
    house.until(lambda: any(t == topic and p for t, p, _, _ in house.heard))
    before = sum(t == topic for t, _, _, _ in house.heard)
    house.publish("homeassistant/status", "online")
    house.until(lambda: sum(t == topic for t, _, _, _ in house.heard) > before)


def test_a_file_that_is_read_again_takes_effect(house: House) -> None:
    """Budgets at once, streams added and removed, what takes a restart is named, a mistake changes nothing."""
    config = house.folder / "node.yaml"
    text = config.read_text()
    try:
        config.write_text(
            text.replace("id: made", "id: renamed").replace(
                "stats_every_s: 0.5", "stats_every_s: 1"
            )
        )
        data = house.command("reload")["data"]
        assert (data["added"], data["removed"]) == (["renamed"], ["made"])
        assert data["needs_restart"] == ["stats_every_s"]
        config.write_text(text.replace("fraction: 0.9", "fraction: 0.00001"))
        assert house.command("reload")["error"]["code"] == "invalid"
        streams = json.loads(house.get("/api/streams")[1])["streams"]
        assert [one["id"] for one in streams] == ["clip", "gone", "renamed"]
    finally:
        config.write_text(text)
        assert house.command("reload")["data"]["added"] == ["made"]


def test_the_page_shows_the_node_and_sets_a_budget(house: House) -> None:
    """In a real browser: streams appear, a budget takes effect, a dead stream is unmistakable."""
    if not Path(CHROMIUM).exists():
        absent("Chromium (apt install chromium)")
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{house.page}/")
        expect(page.get_by_test_id("node-id")).to_contain_text("test")
        clip = page.get_by_test_id("stream-clip")
        expect(clip.get_by_test_id("state")).to_contain_text("online")
        expect(page.get_by_test_id("stream-gone").get_by_test_id("state")).not_to_contain_text(
            "online"
        )
        expect(page.get_by_test_id("stream-gone")).to_contain_text("refused")
        expect(clip.get_by_test_id("picture")).to_be_visible()
        clip.get_by_test_id("budget-input").fill("75")
        clip.get_by_test_id("budget-set").click()
        house.until(lambda: house.latest("stream/clip/budget")["target_fraction"] == 0.75)
        clip.get_by_test_id("budget-input").fill("1")
        clip.get_by_test_id("budget-set").click()
        expect(clip.get_by_test_id("budget-message")).to_contain_text("out of reach")
        assert house.command("set_budget", stream="clip", budget=0.7)["status"] == "ok"
        browser.close()
    assert complaints == []


def test_whatever_is_asked_over_http_is_answered(house: House) -> None:
    """Schemathesis, by the OpenAPI document: no answer is a failure of the server, each is as described."""
    command = [sys.executable, "-m", "schemathesis.cli", "run"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    done = subprocess.run(
        [
            *command,
            f"{house.page}/api/openapi.json",
            f"--checks={checks},response_schema_conformance",
            "--max-examples=10",
            "--phases=fuzzing",
            "--exclude-path-regex=preview",
            "--seed=1",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    house.until(lambda: house.get("/readyz")[0] == 200)
