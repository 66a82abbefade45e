"""Commands that come over MQTT: what a topic asks for, and where the answer goes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection
from typing import Any

from streamexit.control.dispatch import LARGEST, Dispatcher
from streamexit.errors import CommandError
from streamexit.wire.topics import Request, Setting, Topics

log = logging.getLogger(__name__)

MOST_AT_ONCE = 100

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

    def take(
        self,
        asked: Request | Setting,
        payload: bytes,
        *,
        retained: bool,
        response_topic: str | None,
        correlation: bytes | None,
    ) -> None:
        """Begin to carry out what a message asks for."""
        if retained:
            log.warning("%s is retained and therefore ignored: commands must not be", asked)
            return
        if len(self._tasks) >= MOST_AT_ONCE:
            log.warning("%s is ignored: %d commands are under way", asked, len(self._tasks))
            return
        task = asyncio.create_task(self._answer(asked, payload, response_topic, correlation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self,
        asked: Request | Setting,
        payload: bytes,
        response_topic: str | None,
        correlation: bytes | None,
    ) -> None:
        content: bytes | dict[str, Any] = payload
        verb = asked.verb if isinstance(asked, Request) else f"set_{asked.name}"
        try:
            if isinstance(asked, Setting):
                verb, content = _of_setting(asked, payload)
            response = await self._dispatcher.answer(
                verb, content, cause="MQTT", allowed=self._allowed
            )
        except CommandError as error:
            response = self._dispatcher.refuse(verb, error)
        if response.error:
            log.info("%s over MQTT is refused: %s", _as_level(verb), response.error.message)
        topic = self._topics.response(_as_level(verb))
        if response_topic and _may_be_published_to(response_topic):
            topic = response_topic
        self._reply(topic, response.encode(), correlation)


def _of_setting(asked: Setting, payload: bytes) -> tuple[str, bytes | dict[str, Any]]:
    """`stream/<id>/<name>/set` as the command that it is short for."""
    if len(payload) > LARGEST:
        return f"set_{asked.name}", payload  # which the dispatcher then says
    content = _value(payload)
    if asked.name == "budget":
        return "set_budget", {"stream": asked.stream, "budget": content}
    if asked.name == "frame_rate":
        rate = None if content in ("", "none", "None", "all") else content
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
