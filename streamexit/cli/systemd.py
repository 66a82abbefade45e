"""Telling systemd how the service is: sd_notify(3). Does nothing anywhere else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable


def notify(*lines: str) -> None:
    """Send a message such as "READY=1"; without a supervisor that listens, nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as to:
        to.sendto("\n".join(lines).encode(), address)


def reloading() -> None:
    """A reload has begun; `READY=1` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


async def feed_watchdog(why_stuck: Callable[[], str]) -> None:
    """Say that all is well, twice as often as asked for, as long as it is; for ever.

    Args:
        why_stuck: A sentence when only a restart helps; systemd then comes to know by our silence.
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    other = os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid())
    if not microseconds.isdecimal() or other:
        return
    while True:
        stuck = why_stuck()
        notify(f"STATUS={stuck}") if stuck else notify("WATCHDOG=1")
        await asyncio.sleep(int(microseconds) / 2e6)
