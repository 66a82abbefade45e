"""When a stream is wanted: hours of the week, as in "mon-fri 07:00-19:00"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_PER_DAY = 24 * 60

_SPAN = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?\s+)?"
    r"(?P<start>\d\d?:\d\d)\s*-\s*(?P<end>\d\d?:\d\d)"
)


@dataclass(frozen=True, slots=True)
class ActiveHours:
    """A span of time on some days of the week.

    Attributes:
        days: On which it begins; 0 is Monday.
        start: Minutes since midnight.
        end: The first minute outside; where it is not after `start`, it is one of the next day.
    """

    days: frozenset[int]
    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> ActiveHours:
        """Read "07:00-19:00", "sat 08:00-12:00", "mon-fri 22:00-06:00" (into the next morning).

        Raises:
            ValueError: Says what would be right.
        """
        match = _SPAN.fullmatch(text.strip().lower())
        if not match:
            raise ValueError(
                f"{text!r} is no span of time; write 07:00-19:00 or mon-fri 07:00-19:00"
            )
        first, last = match["first"], match["last"] or match["first"]
        if first is None:
            days = frozenset(range(7))
        else:
            one, other = _day(first, text), _day(last, text)
            days = frozenset((one + i) % 7 for i in range((other - one) % 7 + 1))
        return cls(days, _minutes(match["start"], text), _minutes(match["end"], text))

    def contain(self, moment: datetime) -> bool:
        """Whether `moment`, in the time zone that is meant, is inside."""
        minute, today = moment.hour * 60 + moment.minute, moment.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        begun_today = today in self.days and minute >= self.start
        begun_yesterday = (today - 1) % 7 in self.days and minute < self.end
        return begun_today or begun_yesterday


class Schedule:
    """When a stream is wanted.

    Args:
        enabled: Whether at all.
        hours: As `ActiveHours.parse` reads them; none means always.
        timezone: IANA name; None takes the machine's.

    Attributes:
        enabled: See above; may change.
    """

    def __init__(self, enabled: bool, hours: Sequence[str], timezone: str | None) -> None:
        self.enabled = enabled
        self._hours = [ActiveHours.parse(text) for text in hours]
        self._zone = ZoneInfo(timezone) if timezone else None

    def why_not(self, now: float) -> tuple[str, str] | None:
        """Reason and sentence if the stream is not wanted at `now`, Unix seconds; None if it is."""
        if not self.enabled:
            return "disabled", "it is not enabled"
        moment = datetime.fromtimestamp(now, self._zone)
        if self._hours and not any(hours.contain(moment) for hours in self._hours):
            return "inactive_hours", "outside of its active hours"
        return None


def _day(name: str, text: str) -> int:
    if name not in DAYS:
        raise ValueError(f"{text!r}: {name!r} is no day; write one of {', '.join(DAYS)}")
    return DAYS.index(name)


def _minutes(clock: str, text: str) -> int:
    hours, minutes = (int(part) for part in clock.split(":"))
    total = 60 * hours + minutes
    if minutes > 59 or total > MINUTES_PER_DAY:
        raise ValueError(f"{text!r}: {clock} is no time of day; write 00:00 to 24:00")
    return total
