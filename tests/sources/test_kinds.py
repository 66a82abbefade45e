"""Every kind of source, read from a real sender."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from streamexit.errors import SourceError
from streamexit.sources.access import Access
from streamexit.sources.addresses import SourceOptions, parse_address
from streamexit.sources.source import Picture, Watch
from streamexit.sources.video import VideoSource
from streamexit.testing import TOY_PREPROCESSING, ManualClock
from tests.faults.rig import free_port
from tests.sources.servers import Handler, ffmpeg, make_certificate, mjpeg_camera, web_server

MakeClip = Callable[..., Path]


def source(url: str, access: Access | None = None, **options: object) -> VideoSource:
    """A source that waits for two seconds at most."""
    address = parse_address(url, SourceOptions(**options))  # type: ignore[arg-type]
    return VideoSource(address, TOY_PREPROCESSING, access=access or Access(), timeout=2.0)


def some(where: VideoSource, count: int) -> list[Picture]:
    """The first pictures."""
    return list(islice(where.pictures(lambda reason: None), count))


def rising(pictures: list[Picture]) -> bool:
    """Whether their times rise."""
    return all(a.pts_seconds < b.pts_seconds for a, b in pairwise(pictures))


def until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait for a server without connecting to it."""
    for _ in range(200):
        listening = psutil.Process(process.pid).net_connections("tcp")
        if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in listening):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise AssertionError("the server does not listen")


@pytest.fixture
def jpegs() -> list[bytes]:
    """Twelve pictures, each a little brighter."""
    flat = (np.full((24, 32, 3), 20 * i, np.uint8) for i in range(12))
    return [cv2.imencode(".jpg", picture)[1].tobytes() for picture in flat]


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("preamble", [b"", b"\r\n", b"Pictures,\r\none by one:\r\n\r\n"])
def test_mjpeg_over_http(tmp_path: Path, jpegs: list[bytes], preamble: bytes, first: int) -> None:
    """A camera's JPEGs come one by one, in order, stamped by their arrival, however it is cut."""
    sent = [*jpegs, *jpegs[-1:] * 5]  # the end of a live stream is no matter of this test
    camera = mjpeg_camera(sent, preamble=preamble, first=first)
    with web_server(tmp_path, {"/video": camera}) as (url, _):
        live = source(f"{url}/video")
        assert live.live
        pictures = some(live, 12)
    assert len(pictures) == 12
    assert rising(pictures)
    brightness = [np.asarray(p.image).mean() for p in pictures]
    np.testing.assert_allclose(brightness, [20 * i for i in range(12)], atol=4)
    assert pictures[0].media is not None
    assert (pictures[0].media.codec, pictures[0].size) == ("mjpeg", (32, 24))


@pytest.mark.parametrize("text", [b"", b"no parts at all\r\n" * 5000])
def test_mjpeg_without_a_part(tmp_path: Path, text: bytes) -> None:
    """What says that it has parts, and has none, is an end or damaged, not a wait without end."""

    def serve(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(text)

    with web_server(tmp_path, {"/v": serve}) as (url, _), pytest.raises(SourceError) as caught:
        some(source(f"{url}/v"), 1)
    assert caught.value.reason == ("invalid_data" if text else "connection_lost")


@pytest.mark.parametrize("right", [True, False])
def test_http_with_a_password(tmp_path: Path, jpegs: list[bytes], right: bool) -> None:
    """The password goes to the server however odd it is; a wrong one is told apart from the rest."""
    password = "p@ss/w:rd #%?&"
    with web_server(tmp_path, {"/v": mjpeg_camera(jpegs)}, password=password) as (url, _):
        where = source(f"{url}/v", username="viewer", password=password if right else "alpha")
        if right:
            assert len(some(where, 12)) == 12
            return
        with pytest.raises(SourceError) as caught:
            some(where, 1)
    assert caught.value.reason == "unauthorised"
    assert "alpha" not in str(caught.value)


@pytest.mark.parametrize("flags", ["", "+faststart"])
def test_a_recording_over_http_ends(make_clip: MakeClip, flags: str) -> None:
    """A file behind a URL is a recording, wherever its index lies: read to its end, every frame."""
    clip = make_clip(f"web{flags}.mp4", frames=40, size=(320, 240))
    with web_server(clip.parent) as (url, _):
        where = source(f"{url}/{clip.name}")
        assert not where.live
        assert len(some(where, 100)) == 40


@pytest.mark.parametrize("name", ["größe.mp4", "gr%C3%B6%C3%9Fe.mp4"])
def test_a_url_may_be_written_as_people_write(
    make_clip: MakeClip, tmp_path: Path, name: str
) -> None:
    """Letters of any language, percent-encoded already or not yet."""
    shutil.copy(make_clip("plain.mp4", frames=10), tmp_path / "größe.mp4")
    with web_server(tmp_path) as (url, seen):
        assert len(some(source(f"{url}/{name}"), 100)) == 10
    assert set(seen) == {"/gr%C3%B6%C3%9Fe.mp4"}


def test_https_needs_a_certificate_that_is_trusted(tmp_path: Path, jpegs: list[bytes]) -> None:
    """An unknown certificate is refused; it can be named, or waived."""
    file = make_certificate(tmp_path)
    trusted = tmp_path / "certificate.pem"
    with web_server(tmp_path, {"/v": mjpeg_camera(jpegs)}, certificate=file) as (url, _):
        with pytest.raises(SourceError) as caught:
            some(source(f"{url}/v"), 1)
        assert caught.value.reason == "certificate"
        assert len(some(source(f"{url}/v", ca_file=trusted), 3)) == 3
        assert len(some(source(f"{url}/v", tls_verify=False), 3)) == 3


@pytest.fixture
def playlist(tmp_path: Path) -> Path:
    """Four seconds in segments of one, complete."""
    folder = tmp_path / "hls"
    folder.mkdir()
    with ffmpeg(
        *("-f", "lavfi", "-i", "testsrc=s=64x48:r=10", "-t", "4", "-c:v", "libx264", "-g", "10"),
        *("-f", "hls", "-hls_time", "1", "-hls_list_size", "0", str(folder / "live.m3u8")),
    ) as process:
        assert process.wait() == 0
    return folder


def test_hls(playlist: Path) -> None:
    """A playlist's segments are fetched one after the other; times go on over their borders."""
    with web_server(playlist) as (url, seen):
        where = source(f"{url}/live.m3u8", live=False)
        pictures = some(where, 100)
    assert len(pictures) == 40
    np.testing.assert_allclose(np.diff([p.pts_seconds for p in pictures]), 0.1, atol=1e-3)
    assert sum(path.endswith(".ts") for path in seen) == 4


@pytest.mark.parametrize("name", ["live.m3u8", "live"])
def test_live_hls_comes_at_its_own_pace(playlist: Path, name: str) -> None:
    """Frames of a segment that came at once are spread over the time that they last."""

    def unnamed(handler: object) -> None:  # told by what the server says that it is
        content = (playlist / "live.m3u8").read_bytes()
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.send_header("Content-Type", "application/vnd.apple.mpegurl")  # type: ignore[attr-defined]
        handler.send_header("Content-Length", str(len(content)))  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        handler.wfile.write(content)  # type: ignore[attr-defined]

    clock = ManualClock()
    came: list[tuple[float, float]] = []

    class Ahead(Watch):
        """Nobody sleeps: time goes on by what is waited for."""

        def wait(self, seconds: float) -> bool:
            clock.advance(max(0.0, seconds))
            return super().wait(0.0)

    with web_server(playlist, {"/live": unnamed}) as (url, _):
        address = parse_address(f"{url}/{name}")
        live = VideoSource(address, TOY_PREPROCESSING, timeout=2.0, clock=clock)
        for picture in islice(live.pictures(lambda reason: None, Ahead()), 15):
            came.append((picture.pts_seconds, clock.now))
            assert picture.lag_seconds == pytest.approx(0.0, abs=1e-6)
    assert len(came) == 15
    assert [now - came[0][1] for _, now in came] == pytest.approx(
        [pts - came[0][0] for pts, _ in came]
    )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/etc/passwd", ""),
        ("file:///etc/passwd", "only http and https"),
        ("http://localhost:{port}/a.ts", "another host"),
        ("http://169.254.169.254/latest/meta-data", "another host"),
        ("tcp://127.0.0.1:{port}", ""),
        ("concat:a.ts|b.ts", ""),
        ("gopher://127.0.0.1:{port}/x", ""),
    ],
)
def test_a_playlist_reaches_nothing_but_its_own_host(tmp_path: Path, line: str, hint: str) -> None:
    """Files of this machine and services of other hosts are not for playlists."""
    with web_server(tmp_path) as (url, seen):
        port = url.rpartition(":")[2]
        entry = line.format(port=port)
        (tmp_path / "evil.m3u8").write_text(
            "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
            f"#EXTINF:1.0,\n{entry}\n#EXT-X-ENDLIST\n"
        )
        with pytest.raises(SourceError) as caught:
            some(source(f"{url}/evil.m3u8", live=False), 1)
    if hint:
        assert caught.value.reason == "policy"
        assert hint in str(caught.value)
    assert set(seen) <= {"/evil.m3u8", "/etc/passwd"}  # of that host, which has none


def test_a_redirection_to_another_host_is_refused_unless_allowed(
    tmp_path: Path, jpegs: list[bytes]
) -> None:
    """Where a server sends us is checked as the address itself is."""
    with web_server(tmp_path, {"/v": mjpeg_camera(jpegs)}, host="127.0.0.2") as (other, _):

        def elsewhere(handler: object) -> None:
            handler.send_response(302)  # type: ignore[attr-defined]
            handler.send_header("Location", f"{other}/v")  # type: ignore[attr-defined]
            handler.end_headers()  # type: ignore[attr-defined]

        with web_server(tmp_path, {"/v": elsewhere}) as (url, _):
            with pytest.raises(SourceError) as caught:
                some(source(f"{url}/v"), 1)
            assert caught.value.reason == "policy"
            allowed = Access(hosts=frozenset({"127.0.0.2"}))
            assert len(some(source(f"{url}/v", allowed), 2)) == 2


def test_a_local_playlist_cannot_read_other_files(make_clip: MakeClip, tmp_path: Path) -> None:
    """A file is one file: what a playlist on this machine names is not opened."""
    clip = make_clip("secret.ts", frames=20)
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nfile:{clip}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{clip}'\n",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError):
            some(source(str(tmp_path / name)), 1)


def test_mpeg_ts_over_udp() -> None:
    """A multicast or unicast sender is listened to; nobody sending is a timeout."""
    port = free_port()
    with pytest.raises(SourceError) as caught:
        some(source(f"udp://127.0.0.1:{port}"), 1)
    assert caught.value.reason == "timeout"
    with ffmpeg(
        *("-re", "-f", "lavfi", "-i", "testsrc=s=64x48:r=25", "-c:v", "libx264", "-g", "10"),
        *("-tune", "zerolatency", "-f", "mpegts", f"udp://127.0.0.1:{port}?pkt_size=1316"),
    ):
        pictures = some(source(f"udp://127.0.0.1:{port}"), 10)
    assert len(pictures) == 10
    assert rising(pictures)


def test_a_port_that_is_taken_is_said_to_be() -> None:
    """By another stream, or by a node that was forgotten."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(SourceError, match="somebody listens at that port already") as caught:
            some(source(f"udp://127.0.0.1:{port}"), 1)
    assert caught.value.reason == "refused"


def test_rtmp() -> None:
    """A sender that is connected to."""
    port = free_port()
    url = f"rtmp://127.0.0.1:{port}/live/cam"
    with ffmpeg(
        *("-re", "-f", "lavfi", "-i", "testsrc=s=64x48:r=25", "-c:v", "libx264", "-g", "10"),
        *("-tune", "zerolatency", "-f", "flv", "-listen", "1", url),
    ) as process:
        until_it_listens(process, port)
        pictures = some(source(url), 10)
    assert len(pictures) == 10
    assert rising(pictures)


def test_a_raw_tcp_stream() -> None:
    """A stream without any protocol around it, ended by its sender."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with ffmpeg(
            *("-f", "lavfi", "-i", "testsrc=s=64x48:r=25", "-t", "1", "-c:v", "mpeg2video"),
            *("-f", "mpegts", "pipe:1"),
        ) as process:
            content = process.stdout.read() if process.stdout else b""
        reading = source(url, live=False).pictures(lambda reason: None)
        pictures = _read_while_serving(reading, server, content)
    assert len(pictures) == 25


def _read_while_serving(
    reading: Iterator[Picture], server: socket.socket, content: bytes
) -> list[Picture]:
    def serve() -> None:
        link, _ = server.accept()
        with link:
            link.sendall(content)

    thread = threading.Thread(target=serve)
    thread.start()
    pictures = list(reading)
    thread.join()
    return pictures


def test_stdin(make_clip: MakeClip) -> None:
    """What is piped in is read to its end."""
    clip = make_clip("piped.ts", frames=30)
    script = (
        "from streamexit.sources.addresses import parse_address\n"
        "from streamexit.sources.video import VideoSource\n"
        "from streamexit.testing import TOY_PREPROCESSING\n"
        "source = VideoSource(parse_address('stdin'), TOY_PREPROCESSING)\n"
        "print(len(list(source.pictures(print))))"
    )
    with clip.open("rb") as piped:
        done = subprocess.run(
            [sys.executable, "-c", script], stdin=piped, capture_output=True, text=True, check=True
        )
    assert done.stdout.split() == ["30"]


def test_a_usb_camera_that_is_not_there() -> None:
    """A device that nobody plugged in is not found."""
    assert not os.path.exists("/dev/video63")
    where = source("usb:63", size=(640, 480), rate=15.0, pixel_format="mjpeg")
    assert where.live
    with pytest.raises(SourceError, match="/dev/video63") as caught:
        some(where, 1)
    assert caught.value.reason == "not_found"


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile inner.ts\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "[playlist]\nFile1=inner.ts\n",
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_what_a_server_sends_cannot_make_ffmpeg_open_anything(
    make_clip: MakeClip, tmp_path: Path, content: str, live: bool
) -> None:
    """A list in place of a video: what it names is not fetched behind our back."""
    (tmp_path / "inner.ts").write_bytes(make_clip("inner.ts", frames=10).read_bytes())
    (tmp_path / "video").write_text(content)
    with web_server(tmp_path) as (url, seen), pytest.raises(SourceError):
        some(source(f"{url}/video", live=live), 1)
    assert set(seen) == {"/video"}


def test_a_playlist_behind_a_redirection(playlist: Path) -> None:
    """Its segments are looked for where it was found in the end."""
    (playlist / "x").mkdir()
    for file in playlist.glob("live*"):
        file.rename(playlist / "x" / file.name)

    def elsewhere(handler: object) -> None:
        handler.send_response(302)  # type: ignore[attr-defined]
        handler.send_header("Location", "/x/live.m3u8")  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]

    with web_server(playlist, {"/l.m3u8": elsewhere}) as (url, _):
        assert len(some(source(f"{url}/l.m3u8", live=False), 100)) == 40


@pytest.mark.parametrize("where", ["ftp://127.0.0.1:{}/v", "file:///etc/passwd", "data:,x"])
def test_a_redirection_stays_with_http(tmp_path: Path, where: str) -> None:
    """Nobody listens at another protocol's port for us."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.setblocking(False)
        location = where.format(other.getsockname()[1])

        def elsewhere(handler: object) -> None:
            handler.send_response(302)  # type: ignore[attr-defined]
            handler.send_header("Location", location)  # type: ignore[attr-defined]
            handler.end_headers()  # type: ignore[attr-defined]

        with web_server(tmp_path, {"/v": elsewhere}) as (url, _), pytest.raises(SourceError):
            some(source(f"{url}/v"), 1)
        with pytest.raises(BlockingIOError):
            other.accept()


@pytest.mark.parametrize(("second", "epochs"), [(10, 1), (140, 1)])
def test_a_live_stream_whose_clock_is_set_goes_on(tmp_path: Path, second: int, epochs: int) -> None:
    """Frames of the new clock are not taken for late ones."""
    parts = []
    for at in (100, second):
        with ffmpeg(
            *("-f", "lavfi", "-i", "testsrc=s=64x48:r=25", "-t", "1", "-c:v", "libx264", "-g", "5"),
            *("-output_ts_offset", str(at), "-f", "mpegts", str(tmp_path / f"{at}.ts")),
        ) as process:
            assert process.wait() == 0
        parts.append((tmp_path / f"{at}.ts").read_bytes())
    (tmp_path / "cam.ts").write_bytes(b"".join(parts))
    lost: list[str] = []
    with web_server(tmp_path) as (url, _):
        address = parse_address(f"{url}/cam.ts")
        live = VideoSource(address, TOY_PREPROCESSING, timeout=2.0, max_age=2.0)
        pictures = list(live.pictures(lost.append))
    assert (len(pictures), lost) == (50, [])
    assert pictures[-1].epoch == epochs
    assert rising(pictures)
    assert max(p.lag_seconds for p in pictures) < 1.0


@pytest.mark.parametrize("kind", ["playlist that stands still", "camera that falls silent"])
def test_a_reading_that_waits_for_the_web_can_be_ended(
    playlist: Path, jpegs: list[bytes], kind: str
) -> None:
    """From outside, though FFmpeg would go on asking, or waiting, for ever."""
    live = playlist / "live.m3u8"
    live.write_text(live.read_text().replace("#EXT-X-ENDLIST\n", ""))
    silent = threading.Event()

    def camera(handler: object) -> None:
        mjpeg_camera(jpegs[:2])(handler)
        silent.wait(60.0)

    watch, seen, ended = Watch(), [], threading.Event()
    with web_server(playlist, {"/v": camera}) as (url, _):
        path = "live.m3u8" if kind.startswith("playlist") else "v"
        address = parse_address(f"{url}/{path}")
        where = VideoSource(address, TOY_PREPROCESSING, timeout=60.0)

        def read() -> None:
            with contextlib.suppress(SourceError):
                for picture in where.pictures(lambda reason: None, watch):
                    seen.append(picture)
                    ended.set()

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        assert ended.wait(20.0)
        watch.stop()
        reading.join(20.0)
        silent.set()
    assert not reading.is_alive()
    assert seen


def test_a_redirection_does_not_leave_encryption(tmp_path: Path, jpegs: list[bytes]) -> None:
    """From HTTPS to HTTP, credentials would go in the clear."""
    with web_server(tmp_path, {"/v": mjpeg_camera(jpegs)}) as (plain, seen):

        def elsewhere(handler: object) -> None:
            handler.send_response(302)  # type: ignore[attr-defined]
            handler.send_header("Location", f"{plain}/v")  # type: ignore[attr-defined]
            handler.end_headers()  # type: ignore[attr-defined]

        certificate = make_certificate(tmp_path)
        with (
            web_server(tmp_path, {"/v": elsewhere}, certificate=certificate) as (url, _),
            pytest.raises(SourceError) as caught,
        ):
            some(source(f"{url}/v", tls_verify=False), 1)
    assert caught.value.reason == "policy"
    assert seen == []


def test_a_pause_with_a_new_clock_is_no_lag(tmp_path: Path) -> None:
    """A camera that restarts after five seconds goes on at once, though its own clock lost them."""
    parts = []
    for at in (100, 0):
        file = tmp_path / f"{at}.ts"
        with ffmpeg(
            *("-f", "lavfi", "-i", "testsrc=s=64x48:r=25", "-t", "1", "-c:v", "libx264", "-g", "5"),
            *("-bf", "0", "-output_ts_offset", str(at), "-f", "mpegts", str(file)),
        ) as process:
            assert process.wait() == 0
        parts.append(file.read_bytes())
    (tmp_path / "cam.ts").write_bytes(b"".join(parts))
    clock = ManualClock()
    lost: list[str] = []
    with web_server(tmp_path) as (url, _):
        live = VideoSource(
            parse_address(f"{url}/cam.ts"),
            TOY_PREPROCESSING,
            timeout=2.0,
            max_age=2.0,
            clock=clock,
        )
        count = 0
        for picture in live.pictures(lost.append):
            count += 1
            clock.advance(0.04 if count != 25 else 5.0)
            assert picture.lag_seconds < 1.0
    assert (count, lost) == (50, [])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_that_leads_to_secrets_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """What a name resolves to is checked where the connection is made, and nowhere else resolved."""
    asked: list[str] = []

    def resolve(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(SourceError) as caught:
        some(source(f"{scheme}://camera.example/v", tls_verify=False), 1)
    assert caught.value.reason == "policy"
    assert "169.254.169.254" in str(caught.value)
    assert asked == ["camera.example"]
