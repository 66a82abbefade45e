"""`streamexit watch`: subscribe and print results readably."""

from __future__ import annotations

import asyncio
import functools
import json as jsonlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import typer

DEFAULT_TOPIC = "streamexit/+/stream/+/result"

SILENCE_SECONDS = 5.0
"""After which it is said that nothing has come."""


def watch(
    topic: Annotated[str, typer.Argument(help="A topic filter.")] = DEFAULT_TOPIC,
    url: Annotated[str, typer.Option(help="mqtt://host:port or mqtts://...")] = (
        "mqtt://127.0.0.1:1883"
    ),
    username: Annotated[str | None, typer.Option(envvar="STREAMEXIT_MQTT_USERNAME")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many messages.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document, at the end.")] = False,
) -> None:
    """Print messages as they come; the password is read from STREAMEXIT_MQTT_PASSWORD."""
    from streamexit.cli.app import print_json
    from streamexit.config.schema import MqttSection
    from streamexit.errors import InputError
    from streamexit.sinks.brokers import BrokerAddress
    from streamexit.sinks.visits import subscribe

    try:
        (checked,) = MqttSection(url=url).urls
    except ValueError as error:
        raise InputError(f"--url: {url!r}: write mqtt://host:1883 or mqtts://host:8883") from error
    password = os.environ.get("STREAMEXIT_MQTT_PASSWORD")
    address = BrokerAddress.parse(checked, username=username, password=password)
    messages: list[dict[str, Any]] = []

    async def follow() -> None:
        loop = asyncio.get_running_loop()
        hint = f"nothing under {topic} yet; does a node run, and is its prefix this one?"
        silence = loop.call_later(SILENCE_SECONDS, functools.partial(typer.echo, hint, err=True))
        stream = subscribe(address, topic)
        task = asyncio.ensure_future(
            _print_all(stream, count, messages, quiet=json, on_message=silence.cancel)
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            pass
        finally:
            silence.cancel()
            await stream.aclose()

    asyncio.run(follow())
    if json:
        print_json({"topic": topic, "messages": messages})


async def _print_all(
    stream: AsyncIterator[tuple[str, bytes, bool]],
    count: int | None,
    messages: list[dict[str, Any]],
    *,
    quiet: bool,
    on_message: Callable[[], None],
) -> None:
    async for topic, payload, retained in stream:
        on_message()
        content = _decode(payload)
        messages.append({"topic": topic, "retained": retained, "payload": content})
        if not quiet:
            messages.clear()
            typer.echo(_readable(topic, content))
            count = count - 1 if count else None
            if count == 0:
                return
        elif count and len(messages) >= count:
            return


def _decode(payload: bytes) -> Any:
    try:
        return jsonlib.loads(payload)
    except ValueError:
        return payload.decode("utf-8", "replace")


def _readable(topic: str, content: Any) -> str:
    from pydantic import ValidationError

    from streamexit.wire.messages import Result

    try:
        result = Result.model_validate(content)
    except ValidationError:
        result = None  # another message of ours, or somebody else's
    if result is not None:
        return (
            f"{result.captured_at}  {result.stream:<20} #{result.seq:<6} "
            f"exit {result.exit}/{result.exits}  {result.cost.value:.4f} {result.cost.unit}  "
            f"{result.answer.in_short()}"
        )
    text = jsonlib.dumps(content) if not isinstance(content, str) else content
    return f"{topic}  {text}"
