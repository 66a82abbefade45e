from __future__ import annotations

import pytest

from streamexit.wire.topics import Availability, Request, Setting, Topics

TOPICS = Topics("site/a", "lab")


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("site/a/lab/request/set_budget", Request("set_budget")),
        ("site/a/lab/stream/gate/budget/set", Setting("gate", "budget")),
        ("site/a/lab/stream/gate/availability", Availability("gate")),
        ("site/a/lab/stream/ga te/availability", None),
        ("site/a/lab/stream/gate/result", None),
        ("site/a/lab/stream/gate/budget/get", None),
        ("site/a/lab/stream/gate/set", None),
        ("site/a/lab/other/gate/budget/set", None),
        ("site/a/lab/request", None),
        ("site/a/lab/request/a/b", None),
        ("site/a/lab2/request/info", None),
        ("lab/request/info", None),
        ("request/info", None),
        ("", None),
    ],
)
def test_what_a_topic_asks_for(topic: str, expected: object) -> None:
    """Requests and settings of this node and no other; all else is nothing."""
    assert TOPICS.parse(topic) == expected


def test_a_node_hears_what_it_can_read() -> None:
    """Each of its filters, with names put in, is a topic that it understands."""
    for one in [*TOPICS.of_commands, TOPICS.of_availabilities]:
        assert TOPICS.parse(one.replace("+", "x")) is not None


def test_what_it_says_is_no_command() -> None:
    """None of the topics that a node publishes under is one that it would carry out."""
    said = [TOPICS.availability, TOPICS.info, TOPICS.stats, TOPICS.response("info")]
    said += [TOPICS.stream("gate", leaf) for leaf in ("result", "state", "status", "budget")]
    assert [TOPICS.parse(topic) for topic in said] == [None] * len(said)
    assert len(set(said)) == len(said)
    assert TOPICS.stats == "site/a/lab/stats"
    assert TOPICS.info == "site/a/lab/info"
    assert TOPICS.response("info") == "site/a/lab/response/info"
