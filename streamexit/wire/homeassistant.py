"""Home Assistant's MQTT discovery: one message per device, by the device-based format.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

import json
import math
from typing import Any

from streamexit.wire.topics import Topics

WEBSITE = "https://pypi.org/project/streamexit/"
ONLY_ONLINE = "{{ 'online' if value == 'online' else 'offline' }}"


class Discovery:
    """Makes discovery messages (topic, payload) of a node and its streams.

    Args:
        prefix: Home Assistant's discovery prefix.
        topics: Of the node.
        version: Of this program.
    """

    def __init__(self, prefix: str, topics: Topics, version: str) -> None:
        self._prefix = prefix
        self._topics = topics
        self._node_id = f"streamexit_{topics.node}"
        self._origin = {"name": "streamexit", "sw_version": version, "support_url": WEBSITE}

    @property
    def own_topics(self) -> str:
        """What all topics of this node begin with."""
        return f"{self._prefix}/device/{self._node_id}"

    def of_node(self) -> tuple[str, bytes]:
        """The node as a device."""
        stats = {"state_topic": self._topics.stats, "availability": [self._node_is_online]}
        return self._message(
            self._node_id,
            {"name": f"streamexit {self._topics.node}", "model": "node"},
            {
                "answered": {
                    **_sensor("Frames answered", "{{ value_json.answered }}"),
                    **stats,
                    "state_class": "total_increasing",
                },
                "lost": {
                    **_sensor("Results lost", "{{ value_json.results_lost.values() | sum }}"),
                    **stats,
                    "state_class": "total_increasing",
                    "entity_category": "diagnostic",
                },
            },
        )

    def of_stream(self, stream_id: str, *, cheapest: float, live: bool) -> tuple[str, bytes]:
        """A stream as a device.

        Args:
            stream_id: Which.
            cheapest: Share of the full network's cost that the first exit takes: the least budget.
            live: Whether it can be disabled.
        """
        node_only = {"availability": [self._node_is_online]}
        both = {
            "availability": [self._node_is_online, self._is_online(stream_id)],
            "availability_mode": "all",
        }
        state, budget, status = (
            self._topics.stream(stream_id, leaf) for leaf in ("state", "budget", "status")
        )
        least = min(100, math.ceil(cheapest * 100))
        sure = "value_json.probability if value_json.probability is not none else value_json.share"
        components: dict[str, Any] = {
            "answer": {**_sensor("Answer", "{{ value_json.label }}"), "state_topic": state, **both},
            "confidence": {
                **_sensor("Confidence", f"{{{{ ((({sure}) or 0) * 100) | round(1) }}}}"),
                "state_topic": state,
                "unit_of_measurement": "%",
                "state_class": "measurement",
                **both,
            },
            "mean_cost": {
                **_sensor("Mean cost", _percent("mean_fraction")),
                "state_topic": budget,
                "unit_of_measurement": "%",
                "state_class": "measurement",
                **both,
            },
            "budget": {
                "platform": "number",
                "name": "Budget",
                "state_topic": budget,
                "value_template": _percent("target_fraction", (least, 100)),
                "command_topic": f"{budget}/set",
                "command_template": '{"fraction": {{ value / 100 }}}',
                "min": least,
                "max": 100,
                "step": 1,
                "mode": "slider",
                "unit_of_measurement": "%",
                "entity_category": "config",
                **node_only,
            },
            "condition": {
                **_sensor("State", "{{ value_json.state }}"),
                "state_topic": status,
                "entity_category": "diagnostic",
                **node_only,
            },
            "fps": {
                **_sensor("Frames per second", "{{ value_json.fps }}"),
                "state_topic": status,
                "state_class": "measurement",
                "entity_category": "diagnostic",
                **both,
            },
        }
        if live:
            components["enabled"] = {
                "platform": "switch",
                "name": "Enabled",
                "state_topic": status,
                "value_template": "{{ 'OFF' if value_json.reason == 'disabled' else 'ON' }}",
                "command_topic": f"{self._topics.stream(stream_id, 'enabled')}/set",
                "entity_category": "config",
                **node_only,
            }
        device = {"name": stream_id, "model": "stream", "via_device": self._node_id}
        return self._message(f"{self._node_id}_{stream_id}", device, components)

    def forget_stream(self, stream_id: str) -> tuple[str, bytes]:
        """Removes a stream's device."""
        return self._topic(f"{self._node_id}_{stream_id}"), b""

    def _message(
        self, object_id: str, device: dict[str, Any], components: dict[str, Any]
    ) -> tuple[str, bytes]:
        named = {
            name: {"unique_id": f"{object_id}_{name}", **component}
            for name, component in components.items()
        }
        payload = {
            "device": {"identifiers": [object_id], "manufacturer": "streamexit", **device},
            "origin": self._origin,
            "components": named,
            "qos": 1,
        }
        return self._topic(object_id), json.dumps(payload, separators=(",", ":")).encode()

    def _topic(self, object_id: str) -> str:
        return f"{self._prefix}/device/{object_id}/config"

    @property
    def _node_is_online(self) -> dict[str, str]:
        return {"topic": self._topics.availability, "value_template": ONLY_ONLINE}

    def _is_online(self, stream_id: str) -> dict[str, str]:
        topic = self._topics.stream(stream_id, "availability")
        return {"topic": topic, "value_template": ONLY_ONLINE}


def _sensor(name: str, template: str) -> dict[str, str]:
    return {"platform": "sensor", "name": name, "value_template": template}


def _percent(field: str, bounds: tuple[int, int] | None = None) -> str:
    """Between bounds: Home Assistant refuses a number that lies outside of them."""
    number = f"(value_json.{field} * 100) | round(1)"
    if bounds:
        number = f"([{bounds[0]}, {number}, {bounds[1]}] | sort)[1]"
    return f"{{{{ {number} if value_json.{field} is not none }}}}"
