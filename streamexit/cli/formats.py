"""Numbers for people."""

from __future__ import annotations

import re

from streamexit.errors import InputError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def duration(seconds: float) -> str:
    """90 as "1m30s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def parse_duration(text: str) -> float:
    """Read "30s", "5m", "1h" or a plain number of seconds, as seconds.

    Raises:
        InputError: Another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match.group(1)) == 0:
        raise InputError(f"--duration: {text!r} is not a duration; write 30s, 5m or 1h")
    return float(match.group(1)) * _UNITS[match.group(2) or "s"]


def bars(shares: tuple[float, ...] | list[float], *, width: int = 8) -> str:
    """Exit shares as one small bar each."""
    blocks = " ▏▎▍▌▋▊▉█"
    parts = []
    for share in shares:
        eighths = round(share * width * 8)
        bar = "█" * (eighths // 8) + (blocks[eighths % 8] if eighths % 8 else "")
        parts.append(f"{bar:<{width}}{share:4.0%}")
    return " ".join(parts)
