"""Results per second through one connection: ours beside aiomqtt awaited in turn, in one run.

python -m benchmarks.publishing                # a real mosquitto on loopback, from the PATH or /usr/sbin
python -m benchmarks.publishing --rate 5000 --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import aiomqtt

from benchmarks.brokers import mosquitto
from streamexit.exits import ExitRecord
from streamexit.frame import FrameInfo
from streamexit.prediction import Classification
from streamexit.sinks.brokers import BrokerAddress
from streamexit.sinks.delivery import Delivery
from streamexit.sinks.mqtt import MqttSession
from streamexit.sinks.spool import Spool
from streamexit.wire.encoding import ResultEncoder

ENCODE = ResultEncoder(node="bench", boot_id="b" * 16, pipeline="cifar10-resnet20", num_exits=3)
TOPIC = "streamexit/bench/stream/gate/result"
ANSWER = Classification("truck", 9, 0.91, (("truck", 0.91), ("ship", 0.05), ("car", 0.02)))
TURN_SECONDS = 0.01
MOST_WAITING = 1000


def payload(seq: int) -> bytes:
    """An encoded result, made as a node makes it."""
    frame = FrameInfo("gate", seq, seq / 25, time.time())
    record = ExitRecord(frame, seq, 1, 0.9, 0.0413, ANSWER, 0.0, 0.0125)
    return ENCODE(record, time.time()).encode()


async def ours(port: int, folder: Path, rate: float, seconds: float) -> tuple[float, float]:
    """Confirmed results per second, and CPU seconds per second; rate 0 sends as fast as it can."""
    spool = Spool(folder / "spool", max_bytes=1 << 28, max_age=1e6)
    delivery = Delivery(qos=1, spool=spool, historical=bytes)
    session = MqttSession(
        [BrokerAddress("127.0.0.1", port)],
        client_id="ours",
        availability_topic="streamexit/bench/availability",
        delivery=delivery,
        expiry=3600,
    )
    tasks = [asyncio.create_task(session.run()), asyncio.create_task(delivery.run())]
    await session.attempted.wait()
    begun, busy, seq = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        due = int(passed * rate) - seq if rate else MOST_WAITING - delivery.backlog
        for _ in range(min(max(due, 0), 200)):
            delivery.offer(TOPIC, payload(seq))
            seq += 1
        await asyncio.sleep(TURN_SECONDS if rate else 0)
    took, busy = time.perf_counter() - begun, time.process_time() - busy
    confirmed = delivery.books.confirmed
    assert confirmed + delivery.backlog + delivery.kept + delivery.lost().total() == seq
    assert not delivery.lost()
    session.finish()
    await tasks[0]
    await delivery.close()
    await tasks[1]
    return confirmed / took, busy / took


async def in_turn(port: int, seconds: float) -> tuple[float, float]:
    """The same messages, each awaited before the next is sent."""
    async with aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        begun, busy, seq = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begun < seconds:
            await client.publish(TOPIC, payload(seq), qos=1)
            seq += 1
        took = time.perf_counter() - begun
        return seq / took, (time.process_time() - busy) / took


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=5000.0, help="of the sustained row")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    with mosquitto(folder) as port:
        rows = [
            ("aiomqtt, awaited in turn", asyncio.run(in_turn(port, arguments.seconds))),
            (
                "streamexit, as fast as it can",
                asyncio.run(ours(port, folder, 0, arguments.seconds)),
            ),
            (
                f"streamexit, {arguments.rate:.0f} wanted for {arguments.seconds:.0f} s",
                asyncio.run(ours(port, folder, arguments.rate, arguments.seconds)),
            ),
        ]
    first = rows[0][1][0]
    print(f"QoS 1, {len(payload(0))} bytes, {os.cpu_count()} cores, encoding included\n")
    print("| | results/s | of the first row | CPU |\n|---|---|---|---|")
    for name, (rate, busy) in rows:
        print(f"| {name} | {rate:.0f} | {rate / first:.2f} | {busy:.0%} of a core |")


if __name__ == "__main__":
    main()
