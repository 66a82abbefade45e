"""Print the answers of all streams of all nodes: `python samples/subscriber.py [HOST [PORT]]`.

User and password, where the broker wants them, come from STREAMEXIT_MQTT_USERNAME and STREAMEXIT_MQTT_PASSWORD.
"""

import asyncio
import json
import os
import sys

import aiomqtt


async def main(host: str = "127.0.0.1", port: str = "1883") -> None:
    user, password = (
        os.environ.get(f"STREAMEXIT_MQTT_{name}") for name in ("USERNAME", "PASSWORD")
    )
    async with aiomqtt.Client(host, int(port), username=user, password=password) as client:
        await client.subscribe("streamexit/+/stream/+/result", qos=1)
        async for message in client.messages:
            result = json.loads(message.payload)
            answer = result["answer"]  # of a classification or of a segmentation network
            what = answer.get("label") or "/".join(answer["dominant"])
            print(result["stream"], what, result["exit"], flush=True)


try:
    asyncio.run(main(*sys.argv[1:]))
except aiomqtt.MqttError as error:  # nobody there, a wrong password, ...
    sys.exit(f"the broker: {error}")
