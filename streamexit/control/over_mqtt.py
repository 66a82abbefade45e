"""Commands that come over MQTT: what a topic asks for, and where the answer goes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection
from typing import Any

from streamexit.control.dispatch import LARGEST, Dispatcher
from streamexit.errors import CommandError
from streamexit.wire.incoming import Incoming
from streamexit.wire.messages import Response
from streamexit.wire.topics import Request, Setting, Topics

log = logging.getLogger(__name__)

MOST_AT_ONCE = 100
"""Commands under way; what comes beyond is told to try later."""

Reply = Callable[[str, bytes, bytes | None], None]
"""Topic, payload, correlation data."""

SWITCH = {"on": "enable_stream", "true": "enable_stream", "1": "enable_stream"}
SWITCH |= {"off": "disable_stream", "false": "disable_stream", "0": "disable_stream"}


class MqttCommands:
    """Hands requests and settings to the dispatcher, and its responses to the broker.

    Args:
        topics: Of the node.
        dispatcher: Carries commands out.
        reply: Publishes a response.
        allowed: Verbs that are taken; None takes all.
    """

    def __init__(
        self,
        topics: Topics,
        dispatcher: Dispatcher,
        reply: Reply,
        *,
        allowed: Collection[str] | None = None,
    ) -> None:
        self._allowed = allowed
        self._topics = topics
        self._dispatcher = dispatcher
        self._reply = reply
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, asked: Request | Setting, message: Incoming) -> None:
        """Begin to carry out what a message asks for."""
        if message.retained or not (message.payload or message.telling):
            # without a payload it may be one that clears a retained command
            log.warning("%s is retained and therefore ignored: commands must not be", asked)
            return
        if len(self._tasks) >= MOST_AT_ONCE:
            error = CommandError("busy", f"{MOST_AT_ONCE} commands are under way; try again later")
            verb = _verb(asked)
            self._say(self._dispatcher.refuse(verb, error, message.payload), verb, message)
            return
        task = asyncio.create_task(self._answer(asked, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, asked: Request | Setting, message: Incoming) -> None:
        content: bytes | dict[str, Any] = message.payload
        verb = _verb(asked)
        try:
            if isinstance(asked, Setting):
                verb, content = _of_setting(asked, message.payload)
            response = await self._dispatcher.answer(
                verb, content, cause="MQTT", allowed=self._allowed
            )
        except CommandError as error:
            response = self._dispatcher.refuse(verb, error)
        self._say(response, verb, message)

    def _say(self, response: Response, verb: str, message: Incoming) -> None:
        if response.error:
            log.info("%s over MQTT is refused: %s", _as_level(verb), response.error.message)
        topic = self._topics.response(_as_level(verb))
        if message.response_topic and _may_be_published_to(message.response_topic):
            topic = message.response_topic
        self._reply(topic, response.encode(), message.correlation)


def _verb(asked: Request | Setting) -> str:
    return asked.verb if isinstance(asked, Request) else f"set_{asked.name}"


def _of_setting(asked: Setting, payload: bytes) -> tuple[str, bytes | dict[str, Any]]:
    """`stream/<id>/<name>/set` as the command that it is short for."""
    if len(payload) > LARGEST:
        return f"set_{asked.name}", payload  # which the dispatcher then says
    content = _value(payload)
    if asked.name == "budget":
        return "set_budget", {"stream": asked.stream, "budget": content}
    if asked.name == "frame_rate":
        rate = None if content in ("none", "None", "all") else content
        return "set_frame_rate", {"stream": asked.stream, "frame_rate": rate}
    if asked.name == "enabled":
        verb = SWITCH.get(str(content).strip().lower())
        if verb:
            return verb, {"stream": asked.stream}
        raise CommandError("bad_request", f"enabled: write ON or OFF, not {str(content)[:40]!r}")
    return f"set_{asked.name}", {"stream": asked.stream}


def _value(payload: bytes) -> Any:
    text = payload.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _as_level(verb: str) -> str:
    """A verb that is none may be any text; not every text may be a level of a topic."""
    return (
        verb
        if verb.replace("_", "").isalnum() and verb.isascii() and len(verb) <= 64
        else "unknown"
    )


def _may_be_published_to(topic: str) -> bool:
    return (
        0 < len(topic) <= 1000 and not any(c in topic for c in "#+\0") and not topic.startswith("$")
    )
