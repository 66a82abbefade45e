"""A message on its way to the broker, and the books of what became of results."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["live", "historical", "retained", "reply", "passing"]


@dataclass(slots=True, eq=False)
class Publication:
    """A message on its way.

    Attributes:
        topic: Where to.
        payload: What.
        qos: 0 or 1.
        kind: Results are live or historical; retained messages stay at the broker, replies go to
            whoever asked, passing ones are of no interest later.
        offered_at: Monotonic seconds.
        correlation: Of a reply: what the request carried.
        row: Of its copy in the spool; None while there is none.
        earlier: A result of an earlier run, which the spool held.
        over: Confirmed, refused, lost, or left to the spool.
    """

    topic: str
    payload: bytes
    qos: int
    kind: Kind
    offered_at: float = 0.0
    correlation: bytes | None = None
    row: int | None = None
    earlier: bool = False
    over: bool = False

    @property
    def is_result(self) -> bool:
        """Whether it counts as one."""
        return self.kind in ("live", "historical")


@dataclass
class DeliveryBooks:
    """Where results went. offered = confirmed + lost + those that are still here.

    Attributes:
        offered: By this run.
        confirmed: Of these.
        recovered: Confirmed results of earlier runs, which the spool held.
        lost: Of this run's, by reason; docs/wire.md has them.
        lost_earlier: Of earlier runs', whatever the reason.
    """

    offered: int = 0
    confirmed: int = 0
    recovered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    lost_earlier: int = 0

    def confirm(self, one: Publication) -> None:
        """The broker has it; what is no result is not counted."""
        if one.is_result:
            self.recovered += one.earlier
            self.confirmed += not one.earlier

    def lose(self, reason: str, count: int = 1, *, earlier: bool = False) -> None:
        """Results will not reach the broker."""
        if earlier:
            self.lost_earlier += count
        else:
            self.lost[reason] += count
