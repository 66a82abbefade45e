"""From the program's records to wire messages."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Literal

from streamexit.exits import ExitRecord
from streamexit.frame import FrameInfo
from streamexit.prediction import Classification, Prediction, Segmentation
from streamexit.wire.maps import MapEncoder
from streamexit.wire.messages import (
    ClassificationAnswer,
    ClassShare,
    Cost,
    Result,
    SegmentationAnswer,
    State,
    TopClass,
    timestamp,
)

DOMINANT = 0.1
"""Share of the frame from which a class is named among the dominant ones."""

NOBODY = 2.0
"""Stands for a threshold of +infinity: scores end at 1."""


@dataclass(frozen=True, slots=True)
class Unpublished:
    """What a stream has left out on purpose.

    Attributes:
        ever: Answers since the start; they have no `seq`, because a gap means a loss.
        answers: Since the last that was published.
        dropped: Frames dropped before those.
    """

    ever: int = 0
    answers: int = 0
    dropped: int = 0


NOTHING_UNPUBLISHED = Unpublished()


class ResultEncoder:
    """Makes `Result` messages for one stream.

    Args:
        node: Node id.
        boot_id: New at each start; with it (boot_id, stream, epoch, seq) is unique for ever.
        pipeline: Name.
        num_exits: K.
        maps: What of segmentation maps is sent beyond the class shares of the frame.
        cost_unit: Of the records' costs.
    """

    def __init__(
        self,
        *,
        node: str,
        boot_id: str,
        pipeline: str,
        num_exits: int,
        maps: MapEncoder | None = None,
        cost_unit: Literal["gflops", "milliseconds"] = "gflops",
    ) -> None:
        self._node = node
        self._boot_id = boot_id
        self._pipeline = pipeline
        self._num_exits = num_exits
        self._maps = maps
        self._cost_unit: Literal["gflops", "milliseconds"] = cost_unit

    def __call__(
        self,
        record: ExitRecord,
        published_at: float,
        *,
        unpublished: Unpublished = NOTHING_UNPUBLISHED,
    ) -> Result:
        """The message for `record`; exits count from 1 on the wire.

        Args:
            record: Of the frame.
            published_at: Unix seconds.
            unpublished: What was left out before.
        """
        frame = record.frame
        return Result(
            node=self._node,
            boot_id=self._boot_id,
            stream=frame.stream_id,
            epoch=frame.epoch,
            seq=record.seq - unpublished.ever,
            frame=frame.index,
            pts_s=round(frame.pts_seconds, 6),
            captured_at=timestamp(frame.captured_at),
            published_at=timestamp(published_at),
            pipeline=self._pipeline,
            exit=record.exit + 1,
            exits=self._num_exits,
            score=_share(record.score),
            cost=Cost(value=record.cost, unit=self._cost_unit),
            latency_ms=round(record.latency_seconds * 1000, 3),
            answer=encode_answer(record.prediction, frame, self._maps),
            dropped_since_last=unpublished.dropped + frame.dropped_before,
            unpublished_since_last=unpublished.answers,
        )


def as_historical(payload: bytes, published_at: float) -> bytes:
    """An encoded result as it is sent late: marked, and with the time of that (Unix seconds)."""
    message = json.loads(payload)
    message |= {"historical": True, "published_at": timestamp(published_at)}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


@singledispatch
def encode_answer(
    prediction: Prediction, frame: FrameInfo, maps: MapEncoder | None
) -> ClassificationAnswer | SegmentationAnswer:
    """A task's answer as it is sent."""
    raise TypeError(f"no message for {type(prediction).__name__}")


@encode_answer.register
def _(answer: Classification, frame: FrameInfo, maps: MapEncoder | None) -> ClassificationAnswer:
    return ClassificationAnswer(
        label=answer.label,
        index=answer.index,
        probability=_share(answer.probability),
        top=[TopClass(label=label, probability=_share(p)) for label, p in answer.top],
    )


@encode_answer.register
def _(answer: Segmentation, frame: FrameInfo, maps: MapEncoder | None) -> SegmentationAnswer:
    height, width = answer.mask.shape
    falling = sorted(answer.shares, key=lambda item: -item[1])
    mask, omitted = (
        maps.mask_of(answer.mask, frame.size, frame.pts_seconds) if maps else (None, None)
    )
    return SegmentationAnswer(
        width=width,
        height=height,
        shares=[ClassShare(label=label, share=share) for label, share in falling if share > 0],
        dominant=[label for label, share in falling if share >= DOMINANT],
        regions=maps.regions_of(answer.mask, frame.size) if maps else [],
        mask=mask,
        mask_omitted=omitted,
    )


@singledispatch
def encode_state(prediction: Prediction, since: float) -> State:
    """The answer in short; `since` is Unix time."""
    raise TypeError(f"no message for {type(prediction).__name__}")


@encode_state.register
def _(answer: Classification, since: float) -> State:
    return State(label=answer.label, probability=_share(answer.probability), since=timestamp(since))


@encode_state.register
def _(answer: Segmentation, since: float) -> State:
    label, share = answer.headline
    return State(label=label, share=_share(share), since=timestamp(since))


def wire_thresholds(thresholds: tuple[float, ...]) -> list[float | None]:
    """Thresholds without infinities: null for "always", 2 for "never"."""
    return [NOBODY if t == math.inf else None if t == -math.inf else t for t in thresholds]


def _share(number: float) -> float:
    """Six digits; a NaN, which an overflowing network may give and nobody is sure of, is sent as 0."""
    return round(number, 6) if number == number else 0.0
