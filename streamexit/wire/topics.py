"""Topic names, all in one place."""

from __future__ import annotations

from dataclasses import dataclass

ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
"""Ids of nodes and streams: nothing that means something in a topic."""


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
