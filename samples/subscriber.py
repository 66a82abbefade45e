"""Print the answers of all streams of all nodes: `python samples/subscriber.py [HOST [PORT]]`."""

import asyncio
import json
import sys

import aiomqtt


async def main(host: str = "127.0.0.1", port: str = "1883") -> None:
    async with aiomqtt.Client(host, int(port)) as client:
        await client.subscribe("streamexit/+/stream/+/result", qos=1)
        async for message in client.messages:
            result = json.loads(message.payload)
            print(result["stream"], result["answer"]["label"], result["exit"], flush=True)


asyncio.run(main(*sys.argv[1:]))
