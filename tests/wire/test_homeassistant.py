from __future__ import annotations

import json
from typing import Any

import pytest
from jinja2 import Environment

from streamexit.wire.homeassistant import Discovery
from streamexit.wire.topics import Topics

DISCOVERY = Discovery("homeassistant", Topics("streamexit", "lab"), "1.2.3")

COMMON = {"platform", "unique_id", "name", "availability", "availability_mode", "entity_category"}
READS = {"state_topic", "value_template"}
KEYS = {
    "sensor": COMMON | READS | {"state_class", "unit_of_measurement", "device_class"},
    "number": COMMON
    | READS
    | {"command_topic", "command_template", "min", "max", "step", "mode", "unit_of_measurement"},
    "switch": COMMON | READS | {"command_topic", "payload_on", "payload_off"},
}
"""What Home Assistant documents for each platform, as far as we use it (MQTT sensor, number, switch)."""

REQUIRED = {
    "sensor": {"state_topic"},
    "number": {"command_topic"},
    "switch": {"command_topic"},
}


def check(topic: str, payload: bytes) -> dict[str, Any]:
    """The message, by https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload."""
    prefix, kind, object_id, leaf = topic.split("/")
    assert (prefix, kind, leaf) == ("homeassistant", "device", "config")
    assert all(c.isalnum() or c in "_-" for c in object_id)
    message: dict[str, Any] = json.loads(payload)
    assert set(message) == {"device", "origin", "components", "qos"}
    assert message["origin"]["name"]  # both are mandatory
    assert message["device"]["identifiers"] == [object_id]
    for component in message["components"].values():
        platform = component["platform"]
        assert set(component) <= KEYS[platform]
        assert REQUIRED[platform] <= set(component)
        assert component.get("entity_category", "config") in ("config", "diagnostic")
        assert component.get("availability_mode", "all") in ("all", "any", "latest")
        for one in component["availability"]:
            assert set(one) <= {
                "topic",
                "value_template",
                "payload_available",
                "payload_not_available",
            }
    return message


def test_node() -> None:
    """A device with what the stats say."""
    message = check(*DISCOVERY.of_node())
    assert {c["state_topic"] for c in message["components"].values()} == {"streamexit/lab/stats"}


@pytest.mark.parametrize("live", [True, False])
def test_stream(live: bool) -> None:
    """Behind the node; its budget can be set, and a camera switched off, while it is not online, too."""
    message = check(*DISCOVERY.of_stream("gate", cheapest=0.248, live=live))
    assert message["device"]["via_device"] == DISCOVERY.of_node()[0].split("/")[2]
    components = message["components"]
    assert ("enabled" in components) == live
    budget = components["budget"]
    assert (budget["min"], budget["max"]) == (25, 100)
    assert budget["command_topic"] == "streamexit/lab/stream/gate/budget/set"
    assert [one["topic"] for one in budget["availability"]] == ["streamexit/lab/availability"]
    assert [one["topic"] for one in components["answer"]["availability"]] == [
        "streamexit/lab/availability",
        "streamexit/lab/stream/gate/availability",
    ]
    ids = [component["unique_id"] for component in components.values()]
    assert len(set(ids)) == len(ids)


def read(component: str, **message: Any) -> str:
    """What a component of a camera makes of a message, by the templates' own language."""
    components = check(*DISCOVERY.of_stream("gate", cheapest=0.248, live=True))["components"]
    template = Environment().from_string(components[component]["value_template"])
    return template.render(value_json=message)


@pytest.mark.parametrize(
    ("target", "shown"),
    [(0.4, "40.0"), (0.2486, "25"), (120.35, "100"), (1.0, "100.0"), (None, "")],
)
def test_a_budget_is_shown_within_its_range(target: float | None, shown: str) -> None:
    """Also one beyond the full network: Home Assistant would refuse the number."""
    assert read("budget", target_fraction=target) == shown


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [
        ("online", "", "ON"),
        ("disabled", "disabled", "OFF"),
        ("disabled", "inactive_hours", "ON"),
        ("offline", "refused", "ON"),
    ],
)
def test_a_switch_shows_what_was_switched(state: str, reason: str, shown: str) -> None:
    """Outside of its active hours a camera that is enabled is on."""
    assert read("enabled", state=state, reason=reason) == shown


def test_a_stream_is_removed_by_an_empty_message() -> None:
    """On the topic that announced it."""
    announced, _ = DISCOVERY.of_stream("gate", cheapest=0.2, live=True)
    assert DISCOVERY.forget_stream("gate") == (announced, b"")


def test_topics_of_discovery() -> None:
    """All announcements of a node begin alike, so that they can be found again."""
    topic, _ = DISCOVERY.of_node()
    assert topic.startswith(DISCOVERY.own_topics + "/")
