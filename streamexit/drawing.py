"""Answers drawn onto their pictures: for people who want to see what a policy does."""

from __future__ import annotations

import colorsys
from collections import deque
from dataclasses import replace
from functools import cache, singledispatch

import cv2
import numpy as np
from numpy.typing import NDArray

from streamexit.exits import CostTable, ExitRecord
from streamexit.prediction import VOID, Classification, Prediction, Segmentation
from streamexit.preprocessing import Image, Preprocessing

OPACITY = 0.5
SMALLEST_SHARE = 0.005
"""Of the frame; smaller classes are not in the legend."""

MOST_LINES = 12
LEGIBLE_WIDTH = 480
"""Pixels; smaller pictures are enlarged to this where text is drawn on them."""

WHITE, GREY = (255, 255, 255), (170, 170, 170)
GOLDEN_RATIO = 0.618034


@cache
def palette(classes: int) -> NDArray[np.uint8]:
    """Colours that are easy to tell apart, RGB [256, 3]; `VOID` is black."""
    colours = np.zeros((256, 3), np.uint8)
    for k in range(min(classes, VOID)):
        hue, bright = (k * GOLDEN_RATIO) % 1, 1 - 0.25 * (k % 3)
        colours[k] = [round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, bright)]
    return colours


class Annotator:
    """Draws one stream's answers, and what they cost against the budget.

    Args:
        costs: Of the pipeline.
        budget: As a share of the full network's cost.
        window: Frames that the mean cost is taken over.
        preprocessing: Of the pipeline: where the network looked.
    """

    def __init__(
        self, costs: CostTable, *, budget: float, window: int, preprocessing: Preprocessing
    ) -> None:
        self._costs = costs
        self._budget = budget
        self._recent: deque[float] = deque(maxlen=window)
        self._preprocessing = preprocessing

    def __call__(self, picture: Image, record: ExitRecord) -> Image:
        """A copy of the picture, uint8 [H, W, 3] RGB of any size, with the answer drawn on it."""
        fraction = self._costs.fractions[record.exit]
        self._recent.append(fraction)
        mean = sum(self._recent) / len(self._recent)
        drawn = draw_answer(record.prediction, picture, self._preprocessing)
        head = (
            f"{record.frame.stream_id} #{record.frame.index}   "
            f"exit {record.exit + 1}/{len(self._costs.per_exit)}   {fraction:.0%} of full   "
            f"mean {mean:.1%}, budget {self._budget:.1%}"
        )
        draw_headline(drawn, head)
        return drawn


def draw_headline(picture: Image, text: str) -> None:
    """One line of text along the upper edge."""
    height = _line_height(picture)
    _panel(picture, 0, 0, picture.shape[1], height)
    _text(picture, text, height // 3, 0, WHITE)


def draw_scaled(
    picture: Image, prediction: Prediction, preprocessing: Preprocessing, *, width: int
) -> Image:
    """An answer on its picture brought to a width, though never enlarged beyond what makes it legible.

    Args:
        picture: uint8 [h, w, 3] RGB: as it was before it was scaled for the network, or as the network saw it.
        prediction: The answer.
        preprocessing: How the network's input was made.
        width: In pixels.
    """
    height, own = picture.shape[:2]
    if (own, height) == (preprocessing.width, preprocessing.height):
        preprocessing = replace(preprocessing, fit="stretch")
    wide = min(width, max(own, LEGIBLE_WIDTH))
    size = (wide, max(1, round(height * wide / own)))
    way = cv2.INTER_AREA if wide < own else cv2.INTER_LINEAR
    scaled = cv2.resize(picture, size, interpolation=way).astype(np.uint8, copy=False)
    return draw_answer(prediction, scaled, preprocessing)


@singledispatch
def draw_answer(prediction: Prediction, picture: Image, preprocessing: Preprocessing) -> Image:
    """A copy of the picture with one task's answer on it."""
    raise TypeError(f"no drawing for {type(prediction).__name__}")


@draw_answer.register
def _(answer: Segmentation, picture: Image, preprocessing: Preprocessing) -> Image:
    """The map, translucent, with a legend of the classes that are there."""
    height, width = picture.shape[:2]
    mask = preprocessing.restore(answer.mask, width, height, fill=VOID)
    colours = palette(len(answer.shares))
    mixed = cv2.addWeighted(picture, 1 - OPACITY, colours[mask], OPACITY, 0).astype(np.uint8)
    drawn = np.where((mask == VOID)[..., None], picture // 2, mixed)
    seen = [(k, *item) for k, item in enumerate(answer.shares) if item[1] >= SMALLEST_SHARE]
    lines = sorted(seen, key=lambda line: -line[2])[:MOST_LINES]
    step = _line_height(drawn)
    wide = 8 * step
    _panel(drawn, 0, step, min(wide, width), step * (1 + len(lines)))
    for row, (k, label, share) in enumerate(lines, start=1):
        top = row * step
        swatch = tuple(int(c) for c in colours[k])
        corner = (step // 3 + step // 2, top + 3 * step // 4)
        cv2.rectangle(drawn, (step // 3, top + step // 4), corner, swatch, cv2.FILLED)
        _text(drawn, f"{label} {share:.0%}", step + step // 3, top, WHITE)
    return drawn


@draw_answer.register
def _(answer: Classification, picture: Image, preprocessing: Preprocessing) -> Image:
    """The most probable classes, with bars."""
    drawn = picture.copy()
    step = _line_height(drawn)
    wide = min(11 * step, drawn.shape[1])
    _panel(drawn, 0, step, wide, step * (1 + len(answer.top)))
    for row, (label, probability) in enumerate(answer.top, start=1):
        top = row * step
        bar = (round(wide * min(max(probability, 0.0), 1.0)), top + step - 2)
        cv2.rectangle(drawn, (0, top + step - max(3, step // 6)), bar, GREY, cv2.FILLED)
        _text(drawn, f"{label} {probability:.0%}", step // 3, top, WHITE)
    return drawn


def _line_height(picture: Image) -> int:
    return max(12, int(picture.shape[0]) // 20)


def _panel(picture: Image, left: int, top: int, right: int, bottom: int) -> None:
    """Darken a rectangle, so that text can be read on it."""
    picture[top:bottom, left:right] //= 3


def _text(picture: Image, text: str, left: int, top: int, colour: tuple[int, int, int]) -> None:
    """One line of text in the line of pixels that begins at `top`."""
    step = _line_height(picture)
    scale, baseline = step / 36, (left, top + round(0.72 * step))
    thickness = max(1, step // 24)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(picture, text, baseline, font, scale, colour, thickness, cv2.LINE_AA)
