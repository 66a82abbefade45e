"""Topic names, all in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass

ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
"""Ids of nodes and streams: nothing that means something in a topic."""


RETAINED_OF_STREAM = ("availability", "status", "state", "budget")
"""Leaves that the broker keeps of a stream, and that are cleared when the stream is removed."""


@dataclass(frozen=True, slots=True)
class Request:
    """<root>/request/<verb>."""

    verb: str


@dataclass(frozen=True, slots=True)
class Setting:
    """<root>/stream/<id>/<name>/set."""

    stream: str
    name: str


@dataclass(frozen=True, slots=True)
class Availability:
    """<root>/stream/<id>/availability."""

    stream: str


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one node.

    Attributes:
        prefix: May hold slashes.
        node: Matches `ID_PATTERN`.
    """

    prefix: str
    node: str

    @property
    def root(self) -> str:
        """<prefix>/<node>."""
        return f"{self.prefix}/{self.node}"

    @property
    def availability(self) -> str:
        """Retained; the last will's topic."""
        return f"{self.root}/availability"

    @property
    def info(self) -> str:
        """Retained."""
        return f"{self.root}/info"

    @property
    def stats(self) -> str:
        """Every few seconds."""
        return f"{self.root}/stats"

    def stream(self, stream_id: str, leaf: str) -> str:
        """<root>/stream/<id>/<leaf>: result, state, status, budget or availability."""
        return f"{self.root}/stream/{stream_id}/{leaf}"

    def response(self, verb: str) -> str:
        """Where answers to a command go, unless it names another topic."""
        return f"{self.root}/response/{verb}"

    @property
    def of_commands(self) -> list[str]:
        """Topic filters of everything that asks this node for something."""
        return [f"{self.root}/request/+", f"{self.root}/stream/+/+/set"]

    @property
    def of_availabilities(self) -> str:
        """Topic filter of the availability of all streams that this node has, or once had."""
        return self.stream("+", "availability")

    def parse(self, topic: str) -> Request | Setting | Availability | None:
        """What a topic of this node is, of those that it listens to."""
        parts = topic.removeprefix(f"{self.root}/").split("/")
        if not topic.startswith(f"{self.root}/"):
            return None
        if len(parts) == 2 and parts[0] == "request":
            return Request(parts[1])
        if len(parts) == 4 and parts[0] == "stream" and parts[3] == "set":
            return Setting(parts[1], parts[2])
        if len(parts) == 3 and parts[0] == "stream" and parts[2] == "availability":
            return Availability(parts[1]) if re.fullmatch(ID_PATTERN, parts[1]) else None
        return None
