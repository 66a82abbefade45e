"""Print the answers of all streams of all nodes: `python samples/subscriber.py [HOST [PORT]]`."""

import asyncio
import json
import sys

import aiomqtt


async def main(host: str = "127.0.0.1", port: str = "1883") -> None:
    async with aiomqtt.Client(host, int(port)) as client:
        await client.subscribe("streamexit/+/stream/+/result", qos=1)
        async for message in client.messages:
            if not message.topic.matches("streamexit/+/stream/+/result"):
                continue  # some brokers send more than was asked for
            result = json.loads(message.payload)
            answer = result["answer"]  # of a classification or of a segmentation network
            what = answer.get("label") or "/".join(answer["dominant"])
            print(result["stream"], what, result["exit"], flush=True)


asyncio.run(main(*sys.argv[1:]))
