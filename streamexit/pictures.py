"""The latest picture of a stream with its answer, waited for and drawn."""

from __future__ import annotations

import asyncio
import time

import cv2

from streamexit.attached import AttachedStream, Look
from streamexit.drawing import draw_headline, draw_scaled
from streamexit.errors import CommandError

PICTURE_SECONDS = 3.0
"""How long a picture may take to come."""

LOOK_SECONDS = 0.02
FRESH_SECONDS = 1.0
JPEG_QUALITY = 80


async def latest_look(stream: AttachedStream, *, after: Look | None = None) -> Look:
    """The latest picture with its answer, newer than another if one is given.

    Raises:
        CommandError: None has come in time.
    """
    stream.demand.show_for(PICTURE_SECONDS)
    begun = time.monotonic()
    while True:
        look = stream.look
        if look is not None and look is not after and _is_fresh(look, after, begun):
            return look
        if time.monotonic() - begun > PICTURE_SECONDS or stream.finished:
            break
        await asyncio.sleep(LOOK_SECONDS)
    if stream.look is not None and after is None:
        return stream.look  # of a stream that stands still: the last there was
    state = stream.state
    raise CommandError(
        "unavailable",
        f"stream {stream.id!r} has no picture now: {state.state} "
        f"{state.message or state.reason}".strip(),
    )


def draw(stream: AttachedStream, look: Look, width: int) -> tuple[bytes, tuple[int, int]]:
    """A JPEG of a picture with its answer drawn in, and its width and height. Any thread."""
    preprocessing = stream.plan.pipeline.network.preprocessing
    record, costs = look.record, stream.plan.costs
    drawn = draw_scaled(look.picture, record.prediction, preprocessing, width=width)
    headline = (
        f"{record.frame.stream_id} #{record.frame.index}   exit {record.exit + 1}/{len(costs.per_exit)}   "
        f"{costs.fractions[record.exit]:.0%} of full"
    )
    draw_headline(drawn, headline)
    bgr = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return encoded.tobytes(), (drawn.shape[1], drawn.shape[0])


def _is_fresh(look: Look, after: Look | None, begun: float) -> bool:
    """Newer than another, or, without one, of about now."""
    return after is not None or look.seen_at > begun - FRESH_SECONDS
