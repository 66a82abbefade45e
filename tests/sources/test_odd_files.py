"""Odd and broken files, made by FFmpeg's command and by hand: the right frames, or the right reason."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from streamexit.errors import SourceError
from streamexit.frame import Media
from streamexit.preprocessing import Preprocessing
from streamexit.sources.addresses import parse_address
from streamexit.sources.source import Picture
from streamexit.sources.video import VideoSource
from tests.sources.servers import command

UNIT = (0.5, 0.5, 0.5)
SMALL = Preprocessing(16, 12, UNIT, UNIT)
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make a file with FFmpeg's command: "{}" stands for the folder of all of them."""
    folder = tmp_path_factory.mktemp("odd")

    def run(name: str, arguments: str) -> Path:
        path = folder / name
        if not path.exists():
            words = [word.replace("{}", str(folder)) for word in arguments.split()]
            subprocess.run(
                [command("ffmpeg"), "-v", "error", "-nostdin", "-y", *words, str(path)], check=True
            )
        return path

    return run


def read(
    path: Path, preprocessing: Preprocessing = SMALL
) -> tuple[list[Picture], Counter[str], str]:
    """Pictures, lost frames, and the reason of the error at the end, if there was one."""
    lost: Counter[str] = Counter()
    pictures: list[Picture] = []
    source = VideoSource(parse_address(str(path)), preprocessing)
    try:
        for picture in source.pictures(lambda reason: lost.update([reason])):
            pictures.append(picture)  # noqa: PERF402  # keep those before an error
    except SourceError as error:
        assert str(path) in str(error)  # noqa: PT017
        return pictures, lost, error.reason
    return pictures, lost, ""


def rising(pictures: list[Picture]) -> bool:
    """Whether times rise strictly from 0."""
    times = [p.pts_seconds for p in pictures]
    return times[:1] in ([], [0.0]) and all(a < b for a, b in pairwise(times))


TEST = "-f lavfi -i testsrc=s=64x48:r=25"
X264 = "-c:v libx264"


@pytest.mark.parametrize(
    ("name", "arguments", "frames"),
    [
        ("10bit.mp4", f"{TEST} -t 1 {X264} -pix_fmt yuv420p10le", 25),
        ("444.mp4", f"{TEST} -t 1 {X264} -pix_fmt yuv444p", 25),
        ("grey.mp4", f"{TEST} -t 1 {X264} -pix_fmt gray", 25),
        ("grey10.mkv", f"{TEST} -t 1 -c:v ffv1 -pix_fmt gray10le", 25),
        ("alpha.mkv", f"{TEST} -t 1 -c:v ffv1 -pix_fmt bgra", 25),
        ("alpha.mov", f"{TEST} -t 1 -c:v qtrle -pix_fmt argb", 25),
        ("alpha.webm", f"{TEST} -t 1 -c:v libvpx -auto-alt-ref 0 -pix_fmt yuva420p", 25),
        ("palette.gif", f"{TEST} -t 1", 25),
        ("2x2.mkv", "-f lavfi -i testsrc=s=2x2:r=25 -t 1 -c:v ffv1", 25),
        ("1920x8.mp4", f"-f lavfi -i testsrc=s=1920x8:r=25 -t 1 {X264}", 25),
        ("8x1920.mp4", f"-f lavfi -i testsrc=s=8x1920:r=25 -t 1 {X264}", 25),
        ("one.mp4", f"{TEST} -frames:v 1 {X264}", 1),
        ("still.png", f"{TEST} -frames:v 1", 1),
        ("stills.mjpeg", f"{TEST} -t 1 -c:v mjpeg -f mjpeg", 25),
        ("nopts.h264", f"{TEST} -t 1 {X264}", 25),
        ("b_frames.ts", f"{TEST} -t 2 {X264} -bf 3", 50),
        ("open_gop.ts", f"{TEST} -t 2 {X264} -g 10 -x264opts open-gop=1", 50),
        ("fields.ts", f"{TEST} -t 1 -c:v mpeg2video -flags +ildct+ilme", 25),
        ("vp8_invisible.webm", f"{TEST} -t 2 -c:v libvpx -auto-alt-ref 1 -lag-in-frames 16", 50),
        ("vp9.webm", f"{TEST} -t 1 -c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 16", 25),
        ("theora.ogg", f"{TEST} -t 1 -c:v libtheora", 25),
        ("flash.flv", f"{TEST} -t 1 -c:v flv", 25),
        ("sound_first.mkv", f"-f lavfi -i sine {TEST} -t 1 -map 0 -map 1 {X264}", 25),
    ],
)
def test_odd_ones_are_read_whole(make: Make, name: str, arguments: str, frames: int) -> None:
    """Every frame, rising times, nothing lost, whatever the pixels, sizes and codecs are."""
    pictures, lost, reason = read(make(name, arguments))
    assert (len(pictures), lost, reason) == (frames, Counter(), "")
    assert rising(pictures)
    assert {np.shape(p.image) for p in pictures} == {(12, 16, 3)}


def test_variable_rate_keeps_its_times(make: Make) -> None:
    """Frames that were left out by the recorder leave gaps, not other times."""
    arguments = f"{TEST} -t 2 -vf select='not(mod(n,3))+lt(n,20)' -fps_mode vfr {X264}"
    pictures, lost, reason = read(make("vfr.mp4", arguments))
    wanted = [n / 25 for n in range(50) if n % 3 == 0 or n < 20]
    assert (lost, reason) == (Counter(), "")
    np.testing.assert_allclose([p.pts_seconds for p in pictures], wanted, atol=1e-3)


@pytest.mark.parametrize(("second", "epochs"), [(10, 1), (131, 1), (105, 0)])
def test_clocks_that_jump(make: Make, second: int, epochs: int) -> None:
    """Back, on by half a minute, and a pause of four seconds: no frame is lost; jumps are told."""
    first = make("at100.ts", f"{TEST} -t 1 {X264} -output_ts_offset 100")
    then = make(f"at{second}.ts", f"{TEST} -t 1 {X264} -output_ts_offset {second}")
    path = first.with_name(f"to{second}.ts")
    path.write_bytes(first.read_bytes() + then.read_bytes())
    pictures, lost, reason = read(path)
    assert (len(pictures), lost, reason) == (50, Counter(), "")
    assert rising(pictures)
    assert pictures[-1].epoch == epochs
    assert pictures[-1].pts_seconds == pytest.approx(1.96 if epochs else 5.96, abs=0.1)


def test_a_size_that_changes_in_mid_stream(make: Make) -> None:
    """Each picture is scaled from the size that it has, and says it."""
    first = make("small.ts", f"{TEST} -t 1 {X264}")
    then = make("large.ts", f"-f lavfi -i testsrc=s=128x96:r=25 -t 1 {X264} -output_ts_offset 1")
    path = first.with_name("both.ts")
    path.write_bytes(first.read_bytes() + then.read_bytes())
    pictures, lost, reason = read(path)
    assert (len(pictures), lost, reason) == (50, Counter(), "")
    assert [p.size for p in pictures] == [(64, 48)] * 25 + [(128, 96)] * 25


@pytest.mark.parametrize("angle", [90, 180, 270])
@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
def test_rotation_is_applied(make: Make, angle: int, fit: str) -> None:
    """A phone's video stands as it is meant to; the same as if FFmpeg had turned the pixels."""
    upright = make("red_left.mp4", f"-f lavfi -i testsrc2=s=96x48:r=5,boxblur=8 -t 1 {X264} -qp 0")
    turned = make(f"turned{angle}.mp4", f"-i {upright} -c copy -metadata:s:v:0 rotate={angle}")
    really = make(f"really{angle}.mkv", f"-i {turned} -c:v ffv1")  # autorotates
    preprocessing = Preprocessing(24, 16, UNIT, UNIT, fit=fit)  # type: ignore[arg-type]
    pictures, _, reason = read(turned, preprocessing)
    expected, _, _ = read(really, preprocessing)
    assert reason == ""
    assert pictures[0].size == expected[0].size == ((96, 48) if angle == 180 else (48, 96))
    assert pictures[0].image.shape == (16, 24, 3)
    for picture, other in zip(pictures, expected, strict=True):
        difference = np.asarray(picture.image, int) - np.asarray(other.image, int)
        assert np.abs(difference).mean() < 4


@pytest.mark.parametrize(
    ("ratio", "size"), [("2/1", (128, 48)), ("1/2", (32, 48)), ("12/11", (70, 48))]
)
def test_pixels_that_are_not_square(make: Make, ratio: str, size: tuple[int, int]) -> None:
    """The picture is shown as wide as it is meant to be: letterboxed, it keeps that shape."""
    name = f"sar{ratio.replace('/', '_')}.mp4"
    path = make(name, f"-f lavfi -i color=white:s=64x48:r=5 -t 1 -vf setsar={ratio} {X264}")
    preprocessing = Preprocessing(64, 64, UNIT, UNIT, fit="letterbox")
    [picture, *_], _, _ = read(path, preprocessing)
    assert picture.size == size
    rows, columns = np.nonzero(np.asarray(picture.image).mean(axis=2) > 128)
    shape = (np.ptp(columns) + 1) / (np.ptp(rows) + 1)
    assert shape == pytest.approx(size[0] / size[1], rel=0.05)


def test_interlaced_material_is_stated(make: Make) -> None:
    """Not taken apart, but told."""
    path = make("interlaced.mp4", f"{TEST} -t 1 {X264} -flags +ildct+ilme -x264opts tff=1")
    pictures, lost, _ = read(path)
    assert (len(pictures), lost) == (25, Counter())
    assert pictures[-1].media == Media("h264", 64, 48, 25.0, interlaced=True)


def packed(chunks: bytes) -> bytes:
    """Pack B-frames of an AVI as DivX does: a P- and its B-frame in one chunk, then a placeholder."""
    begin = chunks.index(b"movi") + 4
    head, body, place = chunks[:begin], chunks[begin:], 0
    frames: list[bytes] = []
    while body[place : place + 4] == b"00dc":
        size = int.from_bytes(body[place + 4 : place + 8], "little")
        frames.append(body[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    start = frames[0].index(b"\x00\x00\x01\xb6")
    marker = b"\x00\x00\x01\xb2DivX503b1393p"  # how DivX says that it packs
    frames[0] = frames[0][:start] + marker + frames[0][start:]
    rest, i = b"", 0
    while i < len(frames):
        if i + 1 < len(frames) and vop_type(frames[i + 1]) == 2:
            rest += chunk(frames[i] + frames[i + 1])
            rest += chunk(b"\x00\x00\x01\xb6\x50\x4f\x7f")  # vop_coded = 0
            i += 2
        else:
            rest += chunk(frames[i])
            i += 1
    length = (4 + len(rest)).to_bytes(4, "little")
    return head[:-8] + length + b"movi" + rest


def vop_type(frame: bytes) -> int:
    """0 I, 1 P, 2 B (ISO/IEC 14496-2, 6.2.5)."""
    start = frame.rindex(b"\x00\x00\x01\xb6")
    return frame[start + 4] >> 6


def chunk(content: bytes) -> bytes:
    """One of an AVI."""
    return b"00dc" + len(content).to_bytes(4, "little") + content + b"\x00" * (len(content) % 2)


def test_avi_with_packed_b_frames(make: Make) -> None:
    """Two frames in one chunk and none in the next: all come, in order, and placeholders are no loss."""
    plain = make("plain.avi", f"{TEST} -t 1 -c:v mpeg4 -bf 1 -vtag XVID -sc_threshold 1000000000")
    expected, _, _ = read(plain)
    path = plain.with_name("packed.avi")
    path.write_bytes(packed(plain.read_bytes()))
    pictures, lost, reason = read(path)
    assert (lost, reason) == (Counter(), "")
    assert len(pictures) == len(expected) == 25
    assert rising(pictures)
    for picture, other in zip(pictures, expected, strict=True):
        np.testing.assert_array_equal(picture.image, other.image)


def test_an_attached_picture_is_no_video(make: Make) -> None:
    """A film's cover that comes as its first stream is passed over; a song's cover is no video."""
    film, cover = make("film.mp4", f"{TEST} -t 1 {X264}"), make("cover.png", f"{TEST} -frames:v 1")
    both = make(
        "covered.mp4", f"-i {film} -i {cover} -map 1 -map 0 -c copy -disposition:v:0 attached_pic"
    )
    pictures, lost, reason = read(both)
    assert (len(pictures), lost, reason) == (25, Counter(), "")
    song = make(
        "song.m4a",
        f"-f lavfi -i sine -i {cover} -t 1 -map 0 -map 1 -c:v copy -disposition:v attached_pic",
    )
    assert read(song)[2] == "no_video"


def test_metadata_that_is_not_utf_8(make: Make) -> None:
    """Does not matter."""
    path = make("title.mkv", f"{TEST} -t 1 {X264} -metadata title=ABCDEFG")
    path.write_bytes(path.read_bytes().replace(b"ABCDEFG", b"\xff\xfe\xe9\x80\xc3\x28\xa0"))
    pictures, lost, reason = read(path)
    assert (len(pictures), lost, reason) == (25, Counter(), "")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("zero.mp4", b"", "invalid_data"),
        ("text.mp4", b"this is no video\n" * 100, "invalid_data"),
        ("zeros.ts", b"\x00" * 100_000, "invalid_data"),
        ("sync_only.ts", (b"\x47" + b"\xff" * 187) * 100, "invalid_data"),
        ("archive.mkv", b"PK\x03\x04" + bytes(range(256)) * 50, "invalid_data"),
    ],
)
def test_what_is_no_video_says_so(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    """Not a word about FFmpeg's internals; no frames."""
    path = tmp_path / name
    path.write_bytes(content)
    pictures, _, found = read(path)
    assert (pictures, found) == ([], reason)


def test_only_sound(make: Make) -> None:
    """A file without any video stream."""
    assert read(make("sound.mp4", "-f lavfi -i sine -t 1"))[2] == "no_video"


@pytest.fixture(scope="module")
def noisy(make: Make) -> Make:
    """Clips of 100 frames that do not compress well, so that damage hits pictures."""

    def run(name: str, more: str = "") -> Path:
        noise = "-f lavfi -i testsrc2=s=128x96:r=25,noise=alls=60:allf=t"
        return make(f"noisy.{name}", f"{noise} -t 4 {X264} -g 25 {more}")

    return run


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("name", ["mkv", "ts", "mp4", "flv", "avi", "h264"])
def test_truncated(noisy: Make, name: str, share: float) -> None:
    """What is there is read; what is declared and missing is an error that says so."""
    whole = noisy(name).read_bytes()
    path = noisy(name).with_name(f"cut{share}.{name}")
    path.write_bytes(whole[: int(share * len(whole))])
    pictures, lost, reason = read(path)
    assert rising(pictures)
    assert abs(len(pictures) - 100 * share) < 10 or reason == "invalid_data"
    if name == "mp4":  # its index comes last
        assert (pictures, reason) == ([], "invalid_data")
    elif len(pictures) + lost.total() < 95:
        declares = name in ("avi",)
        assert reason == ("truncated" if declares else "")


@pytest.mark.parametrize("name", ["mkv", "ts", "mp4", "avi"])
@pytest.mark.parametrize("seed", range(3))
def test_bit_flips(noisy: Make, name: str, seed: int) -> None:
    """One byte in two thousand: frames are lost or the file is, and nothing is lost in silence."""
    dice = random.Random(seed)
    content = bytearray(noisy(name, "-movflags +faststart" if name == "mp4" else "").read_bytes())
    for place in range(len(content) // 3, len(content)):
        if dice.random() < 5e-4:
            content[place] ^= 1 << dice.randrange(8)
    path = noisy(name).with_name(f"flipped{seed}.{name}")
    path.write_bytes(bytes(content))
    pictures, lost, reason = read(path)
    assert rising(pictures)
    assert lost or reason
    if name in ("mp4", "avi"):  # they say how many there are
        assert len(pictures) + lost.total() >= 95 or reason == "truncated"


@pytest.mark.parametrize("seed", range(3))
def test_packet_loss(noisy: Make, seed: int) -> None:
    """Every twentieth packet of a transport stream is missing: the damage is counted."""
    dice, content = random.Random(seed), noisy("ts").read_bytes()
    packets = [content[i : i + 188] for i in range(0, len(content), 188)]
    path = noisy("ts").with_name(f"lossy{seed}.ts")
    path.write_bytes(b"".join(p for p in packets if dice.random() > 0.05))
    pictures, lost, _ = read(path)
    assert rising(pictures)
    assert lost["decode_error"] > 5
    assert 90 <= len(pictures) + lost.total() <= 101


def test_what_a_decoder_swallows_is_counted(noisy: Make) -> None:
    """A stream that begins between two key frames: its first packets give neither picture nor error."""
    content = noisy("ts").read_bytes()
    path = noisy("ts").with_name("middle.ts")
    path.write_bytes(content[188 * (len(content) // 188 * 2 // 5) :])
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    pictures, lost, _ = read(path)
    assert len(pictures) + lost.total() == packets
    assert lost["decode_error"] > 5


@pytest.mark.parametrize(("side", "refused"), [(16, False), (16_000, True)])
def test_a_picture_of_absurd_size_is_refused(make: Make, side: int, refused: bool) -> None:
    """A header that asks for a quarter of a billion pixels gets no memory; an honest one is read."""
    path = make("jpegs.avi", "-f lavfi -i testsrc=s=16x16:r=25 -t 0.2 -c:v mjpeg")
    content, size = bytearray(path.read_bytes()), side.to_bytes(2, "big")
    place = content.find(b"\xff\xc0")
    while place >= 0:
        content[place + 5 : place + 9] = size + size  # height and width (ITU-T T.81, B.2.2)
        place = content.find(b"\xff\xc0", place + 1)
    changed = path.with_name(f"{side}.avi")
    changed.write_bytes(bytes(content))
    pictures, lost, reason = read(changed)
    assert (len(pictures), lost.total(), reason) == ((0, 5, "no_frames") if refused else (5, 0, ""))
