"""Answers on pictures: looked at by the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamexit.drawing import Annotator, palette
from streamexit.exits import CostTable, ExitRecord
from streamexit.frame import FrameInfo
from streamexit.prediction import VOID, Classification, Prediction, Segmentation
from streamexit.preprocessing import Preprocessing

INPUT = Preprocessing(40, 40, (0, 0, 0), (1, 1, 1), fit="letterbox")
COSTS = CostTable("gflops", (1.0, 4.0))
GREY = np.full((240, 480, 3), 100, np.uint8)


def draw(
    answer: Prediction, exit_: int = 0, picture: NDArray[np.uint8] = GREY
) -> NDArray[np.uint8]:
    """The answer on the picture."""
    frame = FrameInfo("gate", 3, 0.1, 0.0, size=(480, 240))
    record = ExitRecord(frame, 3, exit_, 0.5, 1.0, answer, 0.0, 0.0)
    return Annotator(COSTS, budget=0.5, window=10, preprocessing=INPUT)(picture, record)


def test_each_pixel_has_the_colour_of_its_class() -> None:
    """A map is scaled onto the picture and mixed with it half and half; void is darkened."""
    mask = np.full((40, 40), VOID, np.uint8)
    mask[10:30, :20], mask[10:30, 20:38] = 0, 1
    drawn = draw(Segmentation((("sky", 0.5), ("road", 0.45)), mask))
    colours = palette(2).astype(int)
    assert np.abs(drawn[200, 200].astype(int) - (100 + colours[0]) / 2).max() <= 1
    assert np.abs(drawn[200, 400].astype(int) - (100 + colours[1]) / 2).max() <= 1
    assert drawn[200, 470].tolist() == [50, 50, 50]
    assert (GREY == 100).all()


def test_palette_tells_classes_apart() -> None:
    """Twenty classes have twenty colours, none of them near another; void is black."""
    colours = palette(20).astype(int)
    gaps = np.abs(colours[:20, None] - colours[None, :20]).sum(2)
    assert gaps[~np.eye(20, dtype=bool)].min() > 30
    assert colours[VOID].tolist() == [0, 0, 0]


@pytest.mark.parametrize("sure", [0.2, 0.9])
def test_bars_are_as_long_as_their_probability(sure: float) -> None:
    """Two classes, two bars; the text stands beside them in the panel."""
    drawn = draw(Classification("ant", 0, sure, (("ant", sure), ("bee", 0.05))))
    panel = 11 * 12  # eleven lines wide, each a twentieth of the picture's height
    row = drawn[12 + 12 - 2, :panel].astype(int)
    bar = np.flatnonzero((row == 170).all(1))
    assert len(bar) == pytest.approx(sure * panel, abs=2)
    assert (drawn[60:, 200:] == 100).all()


def test_headline_changes_with_the_exit() -> None:
    """What a frame cost is written above it."""
    answer = Classification("ant", 0, 0.9, (("ant", 0.9),))
    assert (draw(answer, 0)[:12] != draw(answer, 1)[:12]).any()
