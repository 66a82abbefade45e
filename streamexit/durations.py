"""Durations as people write them: "30s", "5m", "1h", "500ms"."""

from __future__ import annotations

import re

_UNITS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|[smh]?)")


def parse_duration(text: str) -> float:
    """Seconds; a plain number is one of seconds.

    Raises:
        ValueError: Another form, or nothing.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match.group(1)) == 0:
        raise ValueError(f"{text!r} is not a duration; write 30s, 5m or 1h")
    return float(match.group(1)) * _UNITS[match.group(2)]
