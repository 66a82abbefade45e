"""Announcements, checked by Home Assistant itself.

Run it in an environment that has the `homeassistant` package: PYTHONPATH=. python -m tests.home_assistant
"""

from __future__ import annotations

import asyncio
import importlib
import json
import tempfile
from collections.abc import Iterator
from typing import Any

import voluptuous
from homeassistant.components.mqtt.schemas import DEVICE_DISCOVERY_SCHEMA
from homeassistant.const import __version__
from homeassistant.core import HomeAssistant
from homeassistant.helpers.template import Template

from streamexit.wire.homeassistant import Discovery
from streamexit.wire.topics import Topics

HEARD = {
    "stats": '{"answered": 41, "results_lost": {"queue_full": 2, "refused": 1}}',
    "state": '{"label": "truck", "probability": 0.937, "share": null}',
    "budget": '{"mean_fraction": 0.4012, "target_fraction": 0.4}',
    "status": '{"state": "disabled", "reason": "disabled", "fps": 24.9}',
}
"""Last level of a topic -> a message, cut down to what is looked at."""

READ = {
    "answered": "41",
    "lost": "3",
    "answer": "truck",
    "confidence": "93.7",
    "mean_cost": "40.1",
    "budget": "40.0",
    "condition": "disabled",
    "fps": "24.9",
    "enabled": "OFF",
}
"""Component -> what Home Assistant should make of its message."""


def complaints(hass: HomeAssistant, message: dict[str, Any]) -> Iterator[str]:
    """What Home Assistant would refuse, drop without a word, or read wrongly."""
    DEVICE_DISCOVERY_SCHEMA(message)
    shared = {name: message[name] for name in ("device", "origin")}
    for name, component in message["components"].items():
        platform = importlib.import_module(f"homeassistant.components.mqtt.{component['platform']}")
        given = {key: value for key, value in component.items() if key != "platform"}
        try:
            taken = platform.DISCOVERY_SCHEMA({**given, **shared})
        except voluptuous.Invalid as error:
            yield f"{name}: {error}"
            continue
        yield from (f"{name}: {key} is dropped" for key in given.keys() - taken.keys())
        heard = HEARD[component["state_topic"].split("/")[-1]]
        template = Template(component["value_template"], hass)
        read = template.async_render_with_possible_json_value(heard)
        if read != READ[name]:
            yield f"{name}: reads {read!r} out of {heard}, not {READ[name]!r}"


async def check() -> str:
    """A node, a camera and a recording."""
    discovery = Discovery("homeassistant", Topics("streamexit", "lab"), "1.2.3")
    announced = [discovery.of_node()]
    announced += [discovery.of_stream("gate", cheapest=0.248, live=live) for live in (True, False)]
    messages = [json.loads(payload) for _, payload in announced]
    with tempfile.TemporaryDirectory() as folder:
        hass = HomeAssistant(folder)
        found = [one for message in messages for one in complaints(hass, message)]
        await hass.async_stop(force=True)
    if found:
        raise SystemExit("\n".join(found))
    count = sum(len(message["components"]) for message in messages)
    return f"Home Assistant {__version__} takes all {count} components, and reads them right"


if __name__ == "__main__":
    print(asyncio.run(check()))
