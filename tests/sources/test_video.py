"""Video files, good and bad."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from streamexit.errors import SourceError
from streamexit.metrics import DropReason
from streamexit.preprocessing import Preprocessing
from streamexit.sources.addresses import parse_address
from streamexit.sources.source import Picture
from streamexit.sources.video import VideoSource
from streamexit.testing import TOY_PREPROCESSING

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
MakeClip = Callable[..., Path]


def read(
    path: Path, preprocessing: Preprocessing = TOY_PREPROCESSING
) -> tuple[list[Picture], list[DropReason]]:
    """All pictures of a file, and why others are missing."""
    drops: list[DropReason] = []
    return list(VideoSource(parse_address(str(path)), preprocessing).pictures(drops.append)), drops


def packets(path: Path) -> int:
    """How many pictures the container holds, decodable or not."""
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def strictly_rising(pictures: list[Picture]) -> bool:
    """Whether each picture comes after the one before it."""
    times = [p.pts_seconds for p in pictures]
    return all(a < b for a, b in itertools.pairwise(times))


def encode(
    path: Path, pictures: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], **how: str
) -> Path:
    """Encode [N, H, W, 3] RGB; `how` holds codec and pix_fmt, all else is for the container."""
    codec, pix_fmt = how.pop("codec", "libx264"), how.pop("pix_fmt", "yuv420p")
    with av.open(str(path), "w", options=how) as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], pix_fmt
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def long_clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Clips of 100 noisy frames, whose data is spread evenly over the file; made once per name."""
    folder = tmp_path_factory.mktemp("long")
    noise = np.random.default_rng(0).integers(0, 256, (100, 48, 64, 3), np.uint8)

    def make(name: str) -> Path:
        path = folder / name
        if path.exists():
            return path
        if name.startswith("mjpeg"):
            return encode(path, noise, codec="mjpeg", pix_fmt="yuvj420p", movflags="faststart")
        return encode(path, noise, movflags="faststart") if "mp4" in name else encode(path, noise)

    return make


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("h264.mp4", {}),
        ("odd.avi", {"codec": "mpeg4", "size": (63, 47)}),
        ("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "size": (50, 38)}),
        ("ten_bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("gray.mp4", {"pix_fmt": "gray"}),
        ("tiny.mp4", {"size": (2, 2)}),
        ("one_pixel.mkv", {"codec": "ffv1", "size": (1, 1)}),
        ("portrait.mp4", {"size": (48, 96)}),
        ("wide.mkv", {"codec": "ffv1", "size": (2000, 2)}),
        ("rgb.mkv", {"codec": "ffv1", "pix_fmt": "bgr0", "size": (33, 17)}),
        ("broadcast.ts", {"codec": "mpeg2video"}),
    ],
)
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_every_common_format_is_read_whole(
    make_clip: MakeClip, name: str, how: dict[str, object], fit: str
) -> None:
    """Each codec, pixel format and shape gives every frame, at the network's size, in order."""
    path = make_clip(name, frames=12, **how)
    preprocessing = Preprocessing(20, 12, MEAN, STD, fit="crop" if fit == "crop" else "stretch")
    pictures, drops = read(path, preprocessing)
    assert len(pictures) == 12
    assert drops == []
    assert {(p.image.shape, str(np.asarray(p.image).dtype)) for p in pictures} == {
        ((12, 20, 3), "uint8")
    }
    times = np.array([p.pts_seconds for p in pictures])
    np.testing.assert_allclose(np.diff(times), 1 / 25, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("bikes.mp4", 250),
        ("car-detection.mp4", 377),
        ("dashcam_solidWhiteRight.mp4", 221),
        ("highway_video02.avi", 748),
        ("kinetics_R6llTwEh07w.mp4", 303),
        ("ucf_v_SoccerJuggling_g23_c01.avi", 240),
    ],
)
def test_real_videos_are_read_whole(data: Path, name: str, frames: int) -> None:
    """Real videos give their exact frame count and rising times, whatever their timestamps are."""
    pictures, drops = read(data / "videos" / name)
    assert len(pictures) == frames
    assert drops == []
    assert strictly_rising(pictures)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("limited.mp4", "libx264", "yuv420p"),
        ("full.avi", "mjpeg", "yuvj420p"),
        ("ten.mp4", "libx264", "yuv420p10le"),
    ],
)
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_colours_and_geometry_arrive(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, fit: str
) -> None:
    """Colours come as RGB in full range, left stays left, and crop cuts both ends off."""
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, :32, 0], picture[:, 32:96, 1], picture[:, 96:, 2] = 220, 220, 220
    path = encode(tmp_path / name, np.stack([picture] * 3), codec=codec, pix_fmt=pix_fmt)
    preprocessing = Preprocessing(16, 16, MEAN, STD, fit="crop" if fit == "crop" else "stretch")
    red, green, blue = np.diag([220, 220, 220])
    left, right = (red, blue) if fit == "stretch" else (green, green)
    for shown in read(path, preprocessing)[0]:
        np.testing.assert_allclose(shown.image[8, 8], green, atol=4)
        np.testing.assert_allclose(shown.image[8, [1, 14]], [left, right], atol=25)


def test_pictures_come_in_display_order(tmp_path: Path) -> None:
    """Frames that the codec reorders (B-frames) come out in the order in which they were taken."""
    grey = np.arange(20, 220, 10).astype(np.uint8)
    clip = np.broadcast_to(grey[:, None, None, None], (20, 32, 32, 3)).copy()
    pictures, _ = read(encode(tmp_path / "ramp.mp4", clip))
    brightness = [p.image.mean() for p in pictures]
    np.testing.assert_allclose(brightness, grey, atol=4)


def test_a_source_can_be_read_twice(make_clip: MakeClip) -> None:
    """Each reading opens the file anew and gives the same pictures and times."""
    source = VideoSource(parse_address(str(make_clip("twice.mp4", frames=5))), TOY_PREPROCESSING)
    first, second = (list(source.pictures(lambda _: None)) for _ in range(2))
    assert [p.pts_seconds for p in first] == [p.pts_seconds for p in second]
    np.testing.assert_array_equal([p.image for p in first], [p.image for p in second])


def write_sound(path: Path) -> None:
    """Write a file with sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        samples = np.zeros((1, 800), np.int16)
        sound = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("missing.mp4", lambda _: None, "not_found"),
        ("empty.mp4", lambda path: path.write_bytes(b""), "invalid_data"),
        ("text.mp4", lambda path: path.write_text("not a video\n" * 50), "invalid_data"),
        ("folder.mp4", lambda path: path.mkdir(), "cannot_open"),
        ("sound.wav", write_sound, "no_video"),
    ],
)
def test_what_is_no_video_is_refused_by_name(
    tmp_path: Path, name: str, write: Callable[[Path], None], reason: str
) -> None:
    """What cannot be played gives an error with its documented reason, naming the file."""
    path = tmp_path / name
    write(path)
    with pytest.raises(SourceError) as caught:
        read(path)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)


def test_a_recording_cut_off_before_its_index_is_refused(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    """An mp4 whose index, at its end, was never written cannot be opened, and the error says so."""
    whole = make_clip("index_last.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: whole.index(b"moov")])
    with pytest.raises(SourceError, match=r"cut\.mp4") as caught:
        read(path)
    assert caught.value.reason == "invalid_data"


@pytest.mark.parametrize("name", ["index_first.mp4", "mjpeg.mp4", "matroska.mkv", "transport.ts"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_every_frame_of_a_truncated_recording_is_accounted_for(
    long_clips: Callable[[str], Path], tmp_path: Path, name: str, share: float
) -> None:
    """A file cut in the middle gives what is there, counts what is listed, and says it is cut."""
    whole = long_clips(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(share * len(whole))])
    drops: list[str] = []
    pictures: list[Picture] = []
    reason = ""
    try:
        pictures.extend(
            VideoSource(parse_address(str(path)), TOY_PREPROCESSING).pictures(drops.append)
        )
    except SourceError as error:
        reason = error.reason
    assert reason == ("truncated" if name.endswith("mp4") else "")  # the others declare no length
    assert 100 * share - 15 < len(pictures) < 100
    assert strictly_rising(pictures)
    assert len(pictures) + len(drops) == packets(path)


def test_a_recording_cut_before_its_first_picture_has_no_frames(
    long_clips: Callable[[str], Path], tmp_path: Path
) -> None:
    """A file with an index but not one whole picture is an error, not a stream of no frames."""
    whole = long_clips("index_first.mp4").read_bytes()
    path = tmp_path / "head.mp4"
    path.write_bytes(whole[: whole.index(b"mdat") + 40])
    with pytest.raises(SourceError, match=r"head\.mp4") as caught:
        read(path)
    assert caught.value.reason == "no_frames"


@pytest.mark.parametrize("name", ["index_first.mp4", "mjpeg.mp4", "matroska.mkv", "transport.ts"])
@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_cost_pictures_or_the_source_but_nothing_else(
    long_clips: Callable[[str], Path], tmp_path: Path, name: str, seed: int
) -> None:
    """Damage inside a file drops frames or is a source error that names the file, never a crash."""
    random = np.random.default_rng(seed)
    content = np.frombuffer(long_clips(name).read_bytes(), np.uint8).copy()
    places = random.integers(len(content) // 3, len(content), 40)
    content[places] ^= random.integers(1, 256, 40).astype(np.uint8)
    path = tmp_path / name
    path.write_bytes(content.tobytes())
    pictures: list[Picture] = []
    drops: list[DropReason] = []
    try:
        for picture in VideoSource(parse_address(str(path)), TOY_PREPROCESSING).pictures(
            drops.append
        ):
            pictures.append(picture)  # noqa: PERF402  # keep those before an error
    except SourceError as error:
        assert str(path) in str(error)  # noqa: PT017
    assert pictures
    assert strictly_rising(pictures)
    assert len(pictures) + len(drops) <= 102  # a header may be taken for a picture, not many


@pytest.mark.parametrize(("place", "value"), [(4, 77), (14, 0x44)], ids=["invalid", "unsupported"])
def test_one_undecodable_picture_costs_one_frame(
    long_clips: Callable[[str], Path], tmp_path: Path, place: int, value: int
) -> None:
    """A single picture that the codec cannot or will not decode is dropped; the others come."""
    content = bytearray(long_clips("mjpeg.mp4").read_bytes())
    starts = [i for i in range(len(content) - 3) if content[i : i + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 100
    frame_header = content.index(b"\xff\xc0", starts[50])
    content[frame_header + place] = value  # bits per sample, or a channel's subsampling
    path = tmp_path / "one.mp4"
    path.write_bytes(bytes(content))
    pictures, drops = read(path)
    assert (len(pictures), drops) == (99, ["decode_error"])


@pytest.mark.parametrize(
    ("url", "live"),
    [
        ("rtsp://camera/1", True),
        ("https://camera/1.m3u8", True),
        ("udp://239.0.0.1:1234", True),
        ("/videos/a.mp4", False),
        ("file:///videos/a.mp4", False),
    ],
)
def test_network_streams_are_live_and_files_are_not(url: str, live: bool) -> None:
    """Whether a source can be made to wait follows from its address, before it is opened."""
    assert VideoSource(parse_address(url), TOY_PREPROCESSING).live is live
