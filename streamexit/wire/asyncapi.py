"""The wire contract as an AsyncAPI 3.0 document, made from the models.

python -m streamexit.wire.asyncapi docs/asyncapi.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from streamexit.wire.commands import VERBS
from streamexit.wire.messages import MESSAGES
from streamexit.wire.schema import json_schema

WORD = {"type": "string", "enum": ["online", "offline", "stopped"]}
STREAM_WORD = {"type": "string", "enum": ["connecting", "online", "offline", "disabled", "error"]}


class Sent(NamedTuple):
    """What the node sends on a channel.

    Attributes:
        address: The topic.
        message: Its name.
        said: What it is.
        retained: Whether the broker keeps the latest.
        qos: Of MQTT; "configured" is what `mqtt.qos` says.
    """

    address: str
    message: str
    said: str
    retained: bool = False
    qos: Literal[0, 1, "configured"] = 1

    @property
    def description(self) -> str:
        """In a sentence or two."""
        return f"Retained. {self.said}" if self.retained else self.said


_STREAM = "{prefix}/{node}/stream/{stream}"

SENT = {
    "availability": Sent(
        "{prefix}/{node}/availability", "Availability", "The last will says offline.", retained=True
    ),
    "info": Sent("{prefix}/{node}/info", "Info", "What the node is.", retained=True),
    "stats": Sent("{prefix}/{node}/stats", "Stats", "Every few seconds.", qos=0),
    "streamAvailability": Sent(
        f"{_STREAM}/availability",
        "StreamAvailability",
        "Empty when the stream was removed, as are the three below.",
        retained=True,
    ),
    "status": Sent(f"{_STREAM}/status", "Status", "How the stream is doing.", retained=True),
    "state": Sent(f"{_STREAM}/state", "State", "The latest answer, on change.", retained=True),
    "budget": Sent(f"{_STREAM}/budget", "Budget", "What is spent, and why.", retained=True),
    "result": Sent(
        f"{_STREAM}/result", "Result", "One per answered frame, or fewer.", qos="configured"
    ),
    "response": Sent(
        "{prefix}/{node}/response/{verb}",
        "Response",
        "Answers to commands that named no other topic.",
    ),
}
"""By channel."""

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "budget": ("Short for set_budget.", {"oneOf": [{"type": "number"}, {"type": "object"}]}),
    "enabled": (
        "Short for enable_stream and disable_stream.",
        {"enum": ["ON", "OFF", True, False]},
    ),
    "frame_rate": ("Short for set_frame_rate.", {"type": ["number", "null"]}),
}
"""Settable -> what it is, its payload."""


def document() -> dict[str, Any]:
    """All channels, messages and schemas; the node's view: it sends results and receives commands."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {
        "Availability": _message("Availability", WORD, "text/plain"),
        "StreamAvailability": _message("StreamAvailability", STREAM_WORD, "text/plain"),
    }
    for leaf, model in MESSAGES.items():
        messages[model.__name__] = _message(model.__name__, _inlined(json_schema(leaf)))
    for name, sent in SENT.items():
        channels[name] = _channel(sent.address, sent.message, sent.description)
        operations[f"send-{name}"] = _operation("send", name)
    for verb, command in VERBS.items():
        name = f"request-{verb}"
        messages[name] = _message(name, _inlined(command.model_json_schema()))
        summary = (command.__doc__ or "").strip()
        channels[name] = _channel(f"{{prefix}}/{{node}}/request/{verb}", name, summary)
        operations[f"receive-{name}"] = _operation("receive", name) | {
            "reply": {"channel": {"$ref": "#/channels/response"}}
        }
    for setting, (summary, schema) in SETTINGS.items():
        name = f"set-{setting}"
        messages[name] = _message(name, schema)
        address = f"{{prefix}}/{{node}}/stream/{{stream}}/{setting}/set"
        channels[name] = _channel(address, name, summary)
        operations[f"receive-{name}"] = _operation("receive", name)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "streamexit",
            "version": "1",
            "description": "What a node says over MQTT, and what may be asked of it. docs/wire.md explains it.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def _message(name: str, schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"name": name, "contentType": kind, "payload": schema}


def _channel(address: str, message: str, description: str) -> dict[str, Any]:
    names = [part[1:-1] for part in address.split("/") if part.startswith("{")]
    return {
        "address": address,
        "description": description,
        "parameters": {name: {} for name in names},
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
    }


def _operation(action: str, channel: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Without definitions of its own: references inside a message would point outside of it."""
    definitions = schema.get("$defs", {})

    def replace(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return replace(definitions[node["$ref"].rpartition("/")[2]])
            return {
                key: replace(value)
                for key, value in node.items()
                if key not in ("$defs", "$schema", "discriminator")
            }
        return [replace(item) for item in node] if isinstance(node, list) else node

    result: dict[str, Any] = replace(schema)
    return result


def text() -> str:
    """As it is written."""
    return json.dumps(document(), indent=1) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
