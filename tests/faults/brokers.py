"""A node whose broker fails, a collector that misses nothing, and what became of the results.

The node reaches the broker through TLS and a proxy, the collector directly: so the collector is always there first,
and what it has not got the node has not delivered.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.certificates import make_certificates
from tests.conftest import Mosquitto
from tests.faults.proxy import Proxy, Weather
from tests.faults.rig import PATIENCE, RunningNode, free_port

CONFIG = """
node: {{id: durable}}
mqtt: {{url: "mqtts://127.0.0.1:{port}", username: node, password: "${{MQTT_PASSWORD}}", tls: {{ca_file: ca.pem}}, spool: {spool}}}
http: {{port: {http}}}
secrets: secrets.env
stats_every_s: 1
pipelines: {{toy: {pipeline}}}
streams:
"""


class Collector:
    """Gets all results, whatever the broker goes through."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.results: list[dict[str, Any]] = []
        self.retained: dict[str, str] = {}
        self.news = threading.Condition()
        self._begin()

    def _begin(self) -> None:
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="collector", protocol=paho.MQTTv5
        )
        self._client.username_pw_set("collector", "collector")
        self._ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe("streamexit/#", qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._note
        self._client.connect("127.0.0.1", self._port, keepalive=600)
        self._client.loop_start()
        assert self._ready.wait(PATIENCE)

    def _note(self, client: paho.Client, data: Any, message: paho.MQTTMessage) -> None:
        with self.news:
            if message.topic.endswith("/result"):
                self.results.append(json.loads(message.payload))
            else:
                self.retained[message.topic.removeprefix("streamexit/durable/")] = (
                    message.payload.decode()
                )
            self.news.notify_all()

    def begin_again(self) -> None:
        """After the broker was away."""
        self.close()
        self._begin()

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def until(self, condition: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait for what comes."""
        with self.news:
            assert self.news.wait_for(condition, patience), "what was waited for did not come"


@dataclass
class Town:
    """Broker, proxy, node and collector."""

    folder: Path
    broker: Mosquitto
    tls_port: int
    proxy: Proxy
    collector: Collector
    config: Path
    http: int
    node: RunningNode

    def start_broker(self, *, certificate: str = "good") -> None:
        """With logins, and as root: it reads files that only we may."""
        start(self.broker, self.folder, self.tls_port, certificate)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        url = f"http://127.0.0.1:{self.http}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            lines = response.read().decode().splitlines()
        values = [
            line.rpartition(" ")[2] for line in lines if line.startswith(f"streamexit_{name}")
        ]
        return sum(float(value) for value in values)

    def rate(self, seconds: float) -> float:
        """Frames answered per second, over some time."""
        before, begun = self.metric("stream_answered_total"), time.monotonic()
        time.sleep(seconds)
        return (self.metric("stream_answered_total") - before) / (time.monotonic() - begun)

    def cut_off(self) -> None:
        """Nothing reaches the broker any more."""
        self.proxy.weather = Weather(refuse=True)
        self.proxy.cut(reset=True)

    def connect_again(self) -> None:
        """It does, once the collector is there."""
        self.collector.begin_again()
        self.proxy.weather = Weather()

    def restart_node(self) -> None:
        """Another process, the same configuration."""
        self.node = RunningNode(self.config)

    def until_drained(self) -> None:
        """Nothing is kept any more."""
        deadline = time.monotonic() + 2 * PATIENCE
        while not self._is_drained():
            assert time.monotonic() < deadline, "the spool is not drained"
            time.sleep(0.2)

    def _is_drained(self) -> bool:
        try:
            return self.metric("broker_connected") > 0 and not self.metric("spool_results")
        except OSError:  # it has just been started
            return False


@dataclass
class Ledger:
    """What became of the results.

    Attributes:
        got: Results, each counted once.
        missing: Numbers between the first and the last of a run and stream that never came.
        duplicates: That came more than once; recognised by (boot_id, stream, epoch, seq).
        late: Marked as historical.
        disordered: Live or late ones behind a later one of their stream, first copies only.
    """

    got: int = 0
    missing: int = 0
    duplicates: int = 0
    late: int = 0
    disordered: int = 0


def ledger(results: list[dict[str, Any]]) -> Ledger:
    """Of everything that the collector got."""
    found, seen = Ledger(), set[tuple[str, str, int, int]]()
    numbers: dict[tuple[str, str], list[int]] = {}
    last: dict[tuple[str, str, bool], int] = {}
    for result in results:
        key = result["boot_id"], result["stream"], result["epoch"], result["seq"]
        if key in seen:
            found.duplicates += 1
            continue
        seen.add(key)
        found.got += 1
        found.late += result["historical"]
        numbers.setdefault(key[:2], []).append(result["seq"])
        lane = (*key[:2], result["historical"])
        found.disordered += result["seq"] < last.get(lane, -1)
        last[lane] = result["seq"]
    found.missing = sum(max(n) + 1 - len(n) for n in numbers.values())
    return found


@contextmanager
def town(
    folder: Path,
    pipeline: Path,
    *,
    streams: int = 2,
    rate: float = 25,
    spool: dict[str, Any] | None = None,
) -> Iterator[Town]:
    """All of it, running, with the first results through."""
    passwords = folder / "passwords"
    passwords.write_text("")
    passwords.chmod(0o644)
    for user, password in (("node", "right"), ("collector", "collector")):
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, password], check=True)
    make_certificates(folder)
    broker, tls_port = Mosquitto(folder, free_port()), free_port()
    start(broker, folder, tls_port, "good")
    proxy, http, config = Proxy(tls_port), free_port(), folder / "node.yaml"
    (folder / "secrets.env").write_text("MQTT_PASSWORD=right\n")
    settings = {"file": "results.spool", "results_per_s": 2000, **(spool or {})}
    lines = [
        CONFIG.format(port=proxy.port, http=http, pipeline=pipeline, spool=json.dumps(settings))
    ]
    for i in range(streams):
        source = f"synthetic:seed={i},frames=100000000"
        one = {"id": f"s{i}", "source": source, "rate": rate, "pipeline": "toy"}
        lines.append(f"  - {json.dumps({**one, 'budget': {'fraction': 0.7}})}\n")
    config.write_text("".join(lines))
    collector = Collector(broker.port)
    place = Town(folder, broker, tls_port, proxy, collector, config, http, RunningNode(config))
    try:
        collector.until(lambda: len(collector.results) > 20 * streams)
        yield place
    finally:
        place.node.kill()
        collector.close()
        proxy.close()
        if broker.process:
            broker.kill()


def start(broker: Mosquitto, folder: Path, tls_port: int, certificate: str) -> None:
    """With a second listener, which speaks TLS."""
    lines = f"""allow_anonymous false
        password_file {folder}/passwords
        user root
        listener {tls_port} 127.0.0.1
        certfile {folder}/{certificate}.pem
        keyfile {folder}/{certificate}.key"""
    broker.start(extra="\n".join(line.strip() for line in lines.splitlines()))


# --- what happens ---------------------------------------------------------------------------------------


def killed(place: Town, seconds: float) -> None:
    """The broker dies, and comes back empty."""
    place.cut_off()
    place.broker.kill()
    time.sleep(seconds)
    place.start_broker()
    place.connect_again()


def stopped(place: Town, seconds: float) -> None:
    """The broker stands still, connections open, and goes on."""
    process = place.broker.process
    assert process
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)


def locked_out(place: Town, seconds: float) -> None:
    """The broker wants another password; then the node's secret is changed, and read again."""
    place.cut_off()
    place.broker.kill()
    passwords = place.folder / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", str(passwords), "node", "new"], check=True)
    place.start_broker()
    place.connect_again()
    time.sleep(seconds)
    (place.folder / "secrets.env").write_text("MQTT_PASSWORD=new\n")
    place.node.process.send_signal(signal.SIGHUP)


def certificate_expired(place: Town, seconds: float) -> None:
    """The broker's certificate expires, and is renewed."""
    for certificate in ("expired", "good"):
        place.cut_off()
        place.broker.kill()
        place.start_broker(certificate=certificate)
        place.connect_again()
        if certificate == "expired":
            time.sleep(seconds)


def node_killed(place: Town, seconds: float) -> None:
    """The node is killed in mid-outage, and started again before the broker is back."""
    place.cut_off()
    time.sleep(seconds / 2)
    place.node.kill()
    place.restart_node()
    time.sleep(seconds / 2)
    place.connect_again()


@dataclass
class Outage:
    """What an outage did.

    Attributes:
        name: Of it.
        ledger: Afterwards.
        rate_before: Frames answered per second.
        rate_during: Likewise; None where the node did not run all the time.
        lost: By the node's own books.
        retained: Whether the retained topics were right afterwards.
    """

    name: str
    ledger: Ledger
    rate_before: float
    rate_during: float | None
    lost: float
    retained: bool
    reasons: Counter[str] = field(default_factory=Counter)


def suffer(place: Town, happen: Callable[[Town, float], None], seconds: float) -> Outage:
    """Let something happen, and wait until all is well again."""
    before = place.rate(3.0)
    rates: list[float] = []
    watcher = None
    if happen is not node_killed:
        watcher = threading.Thread(target=lambda: rates.append(place.rate(seconds)), daemon=True)
        watcher.start()
    happen(place, seconds)
    if watcher:
        watcher.join()
    place.until_drained()
    count = len(place.collector.results)
    place.collector.until(lambda: len(place.collector.results) > count + 20)
    place.collector.until(lambda: _is_right(place.collector.retained))
    lost = place.metric("results_lost_total")
    return Outage(
        (happen.__doc__ or "").strip(),
        ledger(list(place.collector.results)),
        before,
        rates[0] if rates else None,
        lost,
        _is_right(place.collector.retained),
    )


def _is_right(retained: dict[str, str]) -> bool:
    return retained.get("availability") == "online" and all(
        retained.get(f"stream/{name}/availability") == "online" for name in ("s0", "s1")
    )


SCENARIOS = (killed, stopped, locked_out, certificate_expired, node_killed)

if __name__ == "__main__":
    sys.exit("python -m tests.faults --only brokers")
