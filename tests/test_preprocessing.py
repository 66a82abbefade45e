"""How a picture becomes the network's input."""

from __future__ import annotations

import numpy as np
import pytest
from av.video.frame import VideoFrame
from hypothesis import given
from hypothesis import strategies as st

from streamexit.preprocessing import Image, InputConverter, Preprocessing
from streamexit.testing import TOY_PREPROCESSING

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
STRETCH = Preprocessing(32, 24, MEAN, STD)
CROP = Preprocessing(32, 24, MEAN, STD, fit="crop")
SIDES = st.integers(1, 4000)


def noise(width: int, height: int) -> Image:
    """A picture whose every pixel differs from its neighbours."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("preprocessing", [STRETCH, CROP])
def test_a_picture_of_the_right_size_is_not_touched(preprocessing: Preprocessing) -> None:
    """An array that already has the network's size comes back pixel for pixel."""
    picture = noise(32, 24)
    converted = InputConverter(preprocessing).from_array(picture.copy())
    np.testing.assert_array_equal(converted, picture)


@pytest.mark.parametrize("preprocessing", [STRETCH, CROP])
@pytest.mark.parametrize("size", [(32, 24), (64, 48), (63, 47), (200, 10), (10, 200), (1, 1)])
def test_frames_and_arrays_give_the_same_pixels(
    preprocessing: Preprocessing, size: tuple[int, int]
) -> None:
    """A picture gives the same input whether it arrives as a video frame or as an array."""
    picture = noise(*size)
    from_frame = InputConverter(preprocessing)(VideoFrame.from_ndarray(picture, format="rgb24"))
    from_array = InputConverter(preprocessing).from_array(picture)
    assert from_array.shape == (24, 32, 3)
    assert from_array.dtype == np.uint8
    assert from_array.flags.c_contiguous
    np.testing.assert_array_equal(from_frame, from_array)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "gbrp"])
def test_video_pixels_look_like_the_same_picture_as_an_array(pix_fmt: str) -> None:
    """Fine colour that a video frame does hold reaches the network as it does from a picture."""
    picture = np.zeros((64, 64, 3), np.uint8)
    stripe = np.arange(64) // 2 % 2
    picture[:, stripe == 0], picture[:, stripe == 1] = (220, 0, 0), (0, 0, 220)
    preprocessing = Preprocessing(32, 32, MEAN, STD)
    frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
    from_array = InputConverter(preprocessing).from_array(picture)
    np.testing.assert_allclose(InputConverter(preprocessing)(frame), from_array, atol=8)


@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize(("fit", "edge"), [("stretch", (RED, BLUE)), ("crop", (GREEN, GREEN))])
def test_what_each_fit_shows_of_an_oblong_picture(
    fit: str, edge: tuple[tuple[int, int, int], tuple[int, int, int]], portrait: bool
) -> None:
    """Of a picture twice as long as broad, stretch shows both ends and crop the middle half."""
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, :32], picture[:, 32:96], picture[:, 96:] = RED, GREEN, BLUE
    preprocessing = Preprocessing(16, 16, MEAN, STD, fit="crop" if fit == "crop" else "stretch")
    turned = np.ascontiguousarray(picture.transpose(1, 0, 2)) if portrait else picture
    converted = InputConverter(preprocessing).from_array(turned)
    along = converted[:, 8] if portrait else converted[8]
    np.testing.assert_allclose(along[[0, 8, 15]], [edge[0], GREEN, edge[1]], atol=3)


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    """A fine chequerboard shrinks to its mean grey, so that small structures do not flicker."""
    board = np.indices((96, 96)).sum(axis=0) % 2 * 255
    picture = np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8)
    converted = InputConverter(TOY_PREPROCESSING).from_array(picture)
    np.testing.assert_allclose(converted, 127.5, atol=3)


def test_a_stream_may_change_its_size() -> None:
    """One converter gives what a fresh one would give when the picture size changes on the way."""
    shared = InputConverter(CROP)
    for size in [(64, 48), (48, 64), (64, 48), (100, 30)]:
        fresh = InputConverter(CROP).from_array(noise(*size))
        np.testing.assert_array_equal(shared.from_array(noise(*size)), fresh)


@given(SIDES, SIDES, SIDES, SIDES)
def test_crop_covers_the_input_and_keeps_the_aspect_ratio(
    width: int, height: int, to_width: int, to_height: int
) -> None:
    """Before the cut a picture covers the input, fits it on one side, and is not distorted."""
    scaled = Preprocessing(to_width, to_height, MEAN, STD, fit="crop").scaled_size(width, height)
    assert scaled[0] >= to_width
    assert scaled[1] >= to_height
    assert scaled[0] == to_width or scaled[1] == to_height
    scale = max(to_width / width, to_height / height)
    assert abs(scaled[0] - width * scale) <= 0.51
    assert abs(scaled[1] - height * scale) <= 0.51


@given(SIDES, SIDES)
def test_stretch_always_scales_to_the_input_size(width: int, height: int) -> None:
    """Whatever comes, stretch scales it to exactly the input size."""
    assert STRETCH.scaled_size(width, height) == (32, 24)


LETTERBOX = Preprocessing(32, 24, MEAN, STD, fit="letterbox")


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((320, 240), (slice(0, 24), slice(0, 32))),
        ((320, 120), (slice(6, 18), slice(0, 32))),
        ((100, 200), (slice(0, 24), slice(10, 22))),
        ((1, 4000), (slice(0, 24), slice(15, 16))),
    ],
)
def test_letterbox_shows_all_of_the_picture_between_black_sides(
    size: tuple[int, int], shown: tuple[slice, slice]
) -> None:
    """The whole picture is there, centred, at its own aspect ratio; the rest of the input is black."""
    picture = np.full((size[1], size[0], 3), 200, np.uint8)
    converted = InputConverter(LETTERBOX).from_array(picture)
    assert LETTERBOX.overlap(*size).of_input == shown
    expected = np.zeros((24, 32, 3), np.uint8)
    expected[shown] = 200
    np.testing.assert_array_equal(converted, expected)


@pytest.mark.parametrize("preprocessing", [STRETCH, CROP, LETTERBOX])
@given(width=SIDES, height=SIDES)
def test_overlap_is_as_large_on_both_sides(
    preprocessing: Preprocessing, width: int, height: int
) -> None:
    """Input and scaled picture share a rectangle that lies inside both and fills one of them."""
    overlap = preprocessing.overlap(width, height)
    scaled = preprocessing.scaled_size(width, height)[::-1]
    for here, there, ours, theirs in zip(*overlap, (24, 32), scaled, strict=True):
        assert here.stop - here.start == there.stop - there.start == min(ours, theirs)
        assert 0 <= here.start < here.stop <= ours
        assert 0 <= there.start < there.stop <= theirs


@pytest.mark.parametrize("preprocessing", [STRETCH, CROP, LETTERBOX])
@pytest.mark.parametrize("size", [(64, 48), (320, 120), (120, 320), (33, 25)])
def test_a_map_comes_back_onto_the_picture(
    preprocessing: Preprocessing, size: tuple[int, int]
) -> None:
    """What the network sees at a place of the picture is restored at that place, all else filled."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = 255
    seen = (InputConverter(preprocessing).from_array(picture)[..., 0] > 127).astype(np.uint8)
    back = preprocessing.restore(seen, width, height, fill=7)
    assert back.shape == (height, width)
    known = back != 7
    truth = picture[..., 0] > 127
    assert (back[known] == truth[known]).mean() > 0.9
    assert preprocessing.fit == "crop" or known.all()
    assert known.all() or max(width / height, height / width) > 1.4
    assert known[height // 2, width // 2]


def test_pictures_can_keep_their_size() -> None:
    """Without preprocessing a picture comes as it is."""
    picture = noise(50, 31)
    np.testing.assert_array_equal(InputConverter(None).from_array(picture), picture)
    frame = VideoFrame.from_ndarray(picture, format="rgb24")
    np.testing.assert_array_equal(InputConverter(None)(frame), picture)
