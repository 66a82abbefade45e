from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streamexit.exits import ExitRecord
from streamexit.frame import FrameInfo
from streamexit.prediction import VOID, Segmentation
from streamexit.preprocessing import Preprocessing
from streamexit.wire.encoding import ResultEncoder, encode_state
from streamexit.wire.maps import MapEncoder, MaskOptions
from streamexit.wire.messages import Mask, SegmentationAnswer

LABELS = ("sky", "road", "car")
STRETCH = Preprocessing(8, 4, (0, 0, 0), (1, 1, 1))
CROP = Preprocessing(4, 4, (0, 0, 0), (1, 1, 1), fit="crop")
LEFT_HALF = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
MAP = np.array([[0, 0, 0, 0, 1, 1, 1, 1]] * 2 + [[2, 2, 0, 0, 1, 1, 1, 1]] * 2, np.uint8)


def maps(preprocessing: Preprocessing = STRETCH, **options: Any) -> MapEncoder:
    """With masks as `options` say."""
    return MapEncoder(LABELS, preprocessing, {"left": LEFT_HALF}, MaskOptions(**options))


def decode_png(mask: Mask) -> NDArray[np.uint8]:
    """What a subscriber gets out of the message."""
    assert mask.png is not None
    encoded = np.frombuffer(base64.b64decode(mask.png), np.uint8)
    picture = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture.astype(np.uint8)


def decode_runs(mask: Mask) -> NDArray[np.uint8]:
    """The same from run lengths, as COCO defines them."""
    assert mask.rle is not None
    flat = np.full(mask.width * mask.height, VOID, np.uint8)
    for runs in mask.rle:
        starts = np.cumsum([0, *runs.counts])
        assert starts[-1] == len(flat)
        for begin, end in zip(starts[1::2], starts[2::2], strict=False):
            flat[begin:end] = LABELS.index(runs.label)
    return flat.reshape((mask.height, mask.width), order="F")


@pytest.mark.parametrize("encoding", ["png", "rle"])
@pytest.mark.parametrize("filled", [False, True])
def test_a_subscriber_gets_the_map_back(encoding: str, filled: bool) -> None:
    """PNG and run lengths both give the map back pixel by pixel, void included."""
    map_ = MAP.copy()
    if filled:
        map_[:, 0] = VOID
    mask, omitted = maps(encoding=encoding).mask_of(map_, (16, 8), 0.0)
    assert omitted is None
    assert mask is not None
    assert (mask.width, mask.height) == (8, 4)
    decoded = decode_png(mask) if encoding == "png" else decode_runs(mask)
    np.testing.assert_array_equal(decoded, map_)


def test_run_lengths_by_hand() -> None:
    """Down the columns, beginning with the pixels that are not of the class."""
    mask, _ = maps(encoding="rle").mask_of(np.array([[0, 0], [1, 0]], np.uint8), None, 0.0)
    assert mask is not None
    assert mask.rle is not None
    assert {runs.label: runs.counts for runs in mask.rle} == {
        "sky": [0, 1, 1, 2],
        "road": [1, 1, 2],
    }


def test_a_mask_can_have_the_size_of_the_frame() -> None:
    """Scaled to the frame; what the network's crop left out is void."""
    map_ = np.ones((4, 4), np.uint8)
    mask, _ = maps(CROP, resolution="frame").mask_of(map_, (32, 16), 0.0)
    assert mask is not None
    decoded = decode_png(mask)
    assert decoded.shape == (16, 32)
    assert (decoded[:, 8:24] == 1).all()
    assert (decoded[:, :8] == VOID).all()
    assert (decoded[:, 24:] == VOID).all()


def test_masks_come_at_most_every_so_many_seconds() -> None:
    """Time is the stream's; when it jumps back, as after a reconnect, the next mask is due."""
    encoder = maps(every_seconds=2.0)
    sent = [encoder.mask_of(MAP, None, at)[0] is not None for at in (5.0, 6.9, 7.0, 8.0, 1.0, 2.0)]
    assert sent == [True, False, True, False, True, False]


def test_a_mask_above_the_cap_is_left_out_and_said_to_be() -> None:
    """The answer names both sizes; everything else in it stays."""
    noise = np.random.default_rng(0).integers(0, 3, (4, 8)).astype(np.uint8)
    mask, omitted = maps(max_bytes=60).mask_of(noise, None, 0.0)
    assert mask is None
    assert omitted is not None
    assert "60 allowed" in omitted


def test_regions_have_shares_of_their_own() -> None:
    """Inside the left half only what lies there counts."""
    (region,) = maps().regions_of(MAP, (80, 40))
    assert region.name == "left"
    assert [(c.label, c.share) for c in region.shares] == [("sky", 0.75), ("car", 0.25)]


def test_regions_follow_the_crop() -> None:
    """A polygon is drawn on the frame; outside what the network sees it has no pixels."""
    edge = {"edge": ((0.0, 0.0), (0.2, 0.0), (0.2, 1.0), (0.0, 1.0)), "all": ((0, 0), (1, 0), (1, 1), (0, 1))}  # fmt: skip
    encoder = MapEncoder(LABELS, CROP, edge)
    outside, everything = encoder.regions_of(np.full((4, 4), 1, np.uint8), (32, 16))
    assert outside.shares == []
    assert [(c.label, c.share) for c in everything.shares] == [("road", 1.0)]


def test_regions_are_drawn_anew_when_the_frame_changes_its_size() -> None:
    """After a camera changes its format the polygon is where it was on the frame."""
    encoder = maps(CROP)
    map_ = np.array([[0, 1, 1, 1]] * 4, np.uint8)
    square = encoder.regions_of(map_, (16, 16))[0].shares
    wide = encoder.regions_of(map_, (32, 16))[0].shares
    assert [(c.label, c.share) for c in square] == [("sky", 0.5), ("road", 0.5)]
    assert [(c.label, c.share) for c in wide] == [("sky", 0.5), ("road", 0.5)]
    assert encoder.regions_of(map_, (64, 16))[0].shares != []


def test_result_and_state_of_a_map() -> None:
    """Shares fall, classes that do not occur are left out, dominant ones cover a tenth or more."""
    shares = (("sky", 0.05), ("road", 0.95), ("car", 0.0))
    frame = FrameInfo("gate", 7, 1.25, 1_700_000_000.5, size=(16, 8))
    prediction = Segmentation(shares, MAP)
    record = ExitRecord(frame, 5, 1, 0.75, 0.9, prediction, 2.0, 0.01)
    encode = ResultEncoder(
        node="lab", boot_id="b00t", pipeline="street", num_exits=4, maps=maps(every_seconds=9)
    )
    answer = encode(record, 1_700_000_001.0).answer
    assert isinstance(answer, SegmentationAnswer)
    assert [(c.label, c.share) for c in answer.shares] == [("road", 0.95), ("sky", 0.05)]
    assert answer.dominant == ["road"]
    assert (answer.width, answer.height) == (8, 4)
    assert answer.mask is not None
    assert [region.name for region in answer.regions] == ["left"]
    again = encode(record, 1_700_000_001.0).answer
    assert isinstance(again, SegmentationAnswer)
    assert again.mask is None
    assert again.mask_omitted is None
    state = encode_state(prediction, 1_700_000_000.5)
    assert (state.label, state.share, state.probability) == ("road", 0.95, None)
