"""What users write, what sources may reach, and that no password is ever shown."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamexit.errors import SourceError
from streamexit.redact import redact
from streamexit.sources.access import Access
from streamexit.sources.addresses import Address, SourceOptions, parse_address
from streamexit.sources.containers import translated
from streamexit.sources.opening import open_source
from streamexit.sources.video import VideoSource
from streamexit.testing import TOY_PREPROCESSING


@pytest.mark.parametrize(
    ("text", "kind", "location", "live"),
    [
        ("clips/a.mp4", "file", "/base/clips/a.mp4", False),
        ("/clips/a.mp4", "file", "/clips/a.mp4", False),
        ("file:///clips/a.mp4", "file", "/clips/a.mp4", False),
        ("a:b.mp4", "file", "/base/a:b.mp4", False),
        ("rtsp://cam/1", "rtsp", "rtsp://cam/1", True),
        ("RTSPS://cam/1", "rtsp", "rtsps://cam/1", True),
        ("rtmp://cam/live/1", "rtmp", "rtmp://cam/live/1", True),
        ("http://cam/video.cgi?x=1", "http", "http://cam/video.cgi?x=1", True),
        ("https://host/clip.MP4", "http", "https://host/clip.MP4", False),
        ("https://host/live/a.m3u8", "hls", "https://host/live/a.m3u8", True),
        ("udp://@239.0.0.1:1234", "udp", "udp://239.0.0.1:1234", True),
        ("udp://:1234", "udp", "udp://:1234", True),
        ("tcp://host:1234", "tcp", "tcp://host:1234", True),
        ("usb:0", "usb", "/dev/video0", True),
        ("usb:/dev/v4l/by-id/x", "usb", "/dev/v4l/by-id/x", True),
        ("/dev/video2", "usb", "/dev/video2", True),
        ("images:faces.zip", "images", "/base/faces.zip", False),
        ("watch:in", "watch", "/base/in", False),
        ("synthetic:seed=1", "synthetic", "seed=1", False),
        ("stdin", "stdin", "", False),
        ("-", "stdin", "", False),
    ],
)
def test_every_kind_is_told_by_its_text(text: str, kind: str, location: str, live: bool) -> None:
    """Kind, place and whether it can wait follow from what is written."""
    address = parse_address(text, base=Path("/base"))
    assert (address.kind, address.location, address.live) == (kind, location, live)


@pytest.mark.parametrize(
    ("text", "options", "hint"),
    [
        ("rtps://cam/1", {}, "did you mean 'rtsps?'"),
        ("concat://a|b", {}, "unknown"),
        ("data://x", {}, "unknown"),
        ("rtsp:///1", {}, "no host"),
        ("rtsp://cam:0/1", {}, "port 0"),
        ("tcp://cam", {}, "port"),
        ("usb:", {}, "usb:0"),
        ("usb:first", {}, "usb:0"),
        ("rtsp://cam:99999/1", {}, "cannot be split"),
        ("rtsp://u:a/b@cam/1", {}, "percent-encoded"),
        ("rtsp://cam/1 2", {}, "percent-encode"),
        ("rtsp://cam/1\r\nX: y", {}, r"1\\r\\nX.*control characters"),
        ("a\0b.mp4", {}, r"a\\x00b.mp4: .*control characters"),
        ("images:a\0b", {}, "control characters"),
        ("rtsp://u:alpha\0@cam/1", {}, "control characters"),
        ("a\ud800.mp4", {}, r"a\\ud800.mp4: .*control characters"),
        ("rtsp://u@cam/1", {"username": "v"}, "keep one"),
        ("rtsp://cam/1", {"password": "alpha"}, "username"),
        ("a.mp4", {"transport": "udp"}, "transport is for rtsp"),
        ("rtsp://cam/1", {"live": False}, "live is for http"),
        ("http://cam/1", {"size": (1, 1)}, "size is for usb"),
        ("usb:0", {"existing": True}, "existing is for watch"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(
    text: str, options: dict[str, Any], hint: str
) -> None:
    """One sentence that quotes what was written, without credentials."""
    with pytest.raises(SourceError, match=hint) as caught:
        parse_address(text, SourceOptions(**options))
    assert caught.value.reason == "bad_source"
    assert "alpha" not in str(caught.value)


@given(
    user=st.text(min_size=1, max_size=12),
    password=st.text(max_size=24),
    host=st.sampled_from(["cam", "192.0.2.1", "[2001:db8::1]:554", "cam:8554"]),
)
def test_any_password_reaches_the_camera_and_nobody_else(
    user: str, password: str, host: str
) -> None:
    """Given beside the URL, every character survives; no text for people holds it."""
    password = f"alpha{password}"
    if not _encodable(user + password):
        return
    options = SourceOptions(username=user, password=password)
    address = parse_address(f"rtsp://{host}/s?x=1", options)
    parts = urlsplit(address.with_credentials())
    assert unquote(parts.username or "") == user
    assert unquote(parts.password or "") == password
    assert (parts.path, parts.query) == ("/s", "x=1")
    error = translated(address, _ffmpeg_error(address))
    for shown in (str(address), repr(address), str(error), redact(address.with_credentials())):
        assert "alpha" not in shown


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ffmpeg_error(address: Address) -> Any:
    import av.error

    return av.error.FFmpegError(5, "Input/output error", address.with_credentials())


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "0.0.0.0", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200",
     "[::ffff:169.254.169.254]", "[::]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[::a9fe:a9fe]"],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp", "rtmp"])
def test_metadata_services_are_out_of_reach(scheme: str, host: str) -> None:
    """Before anything is opened."""
    with pytest.raises(SourceError, match=r"access\.networks") as caught:
        Access().check(parse_address(f"{scheme}://{host}:80/x"))
    assert caught.value.reason == "policy"


def test_names_are_checked_by_what_they_resolve_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to a metadata service is refused as its number is; a pinned address is used."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    with pytest.raises(SourceError, match=r"innocent \(169\.254\.169\.254\)"):
        Access().resolve("innocent", 80)
    allowed = Access(networks=(ip_network("169.254.169.254/32"),))
    assert allowed.resolve("innocent", 80) == ["169.254.169.254"]


def test_an_unknown_name_is_told_apart() -> None:
    """From a host that does not answer."""
    with pytest.raises(SourceError) as caught:
        next(VideoSource(parse_address("rtsp://camera.invalid/1"), None).pictures(lambda _: None))
    assert caught.value.reason == "unknown_host"


def test_schemes_can_be_restricted() -> None:
    """What is not on the list is refused, words included."""
    only = Access(schemes=frozenset({"rtsp", "images"}))
    only.check(parse_address("rtsp://cam/1"))
    only.check(parse_address("images:x"))
    for text in ("http://cam/1", "a.mp4", "synthetic:", "usb:0", "stdin", "rtsps://cam/1"):
        with pytest.raises(SourceError, match=r"access\.schemes") as caught:
            only.check(parse_address(text))
        assert caught.value.reason == "policy"


def test_files_can_be_confined(tmp_path: Path) -> None:
    """Neither .. nor a link leads out of the roots, also if the link is made after the check."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "a.mp4").write_bytes(b"a")
    (outside / "b.mp4").write_bytes(b"b")
    (inside / "link.mp4").symlink_to(outside / "b.mp4")
    access = Access(roots=(inside,))
    os.close(access.open_file(inside / "a.mp4"))
    for path in ("../out/b.mp4", "link.mp4"):
        with pytest.raises(SourceError, match=r"access\.roots") as caught:
            access.open_file(inside / path)
        assert caught.value.reason == "policy"
        with pytest.raises(SourceError):
            access.check(parse_address(path, base=inside))


def test_a_camera_is_a_device_or_lies_in_the_roots(tmp_path: Path) -> None:
    """What is called one is held to what files are held to."""
    access = Access(roots=(tmp_path,))
    access.check(parse_address("usb:0"))
    access.check(parse_address("usb:/dev/v4l/by-id/camera"))
    access.check(parse_address(f"usb:{tmp_path}/camera"))
    for text in ("usb:/etc/passwd", "usb:/dev/../etc/passwd"):
        with pytest.raises(SourceError, match=r"access\.roots"):
            access.check(parse_address(text))


def test_names_of_hosts_have_no_case() -> None:
    """Neither those that are allowed nor those that a playlist says."""
    access = Access(hosts=frozenset({"CDN.example"}))
    for host in ("cdn.example", "CDN.EXAMPLE", "Camera.example"):
        access.check_host(host, ["camera.example"])
    with pytest.raises(SourceError, match=r"access\.hosts"):
        access.check_host("other.example", ["camera.example"])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("rtsp:/viewer:alpha@cam/1", "did you mean rtsp://"),
        ("http:/cam/1", "did you mean http://"),
        ("viewer:alpha@cam/1", "did you mean rtsp://"),
    ],
)
def test_a_mistyped_url_is_no_file(text: str, hint: str) -> None:
    """It is refused with what was meant, and without its password."""
    with pytest.raises(SourceError, match=hint) as caught:
        parse_address(text)
    assert "alpha" not in str(caught.value)
    assert parse_address("./viewer:alpha@cam").kind == "file"


def test_only_files_are_opened_as_files(tmp_path: Path) -> None:
    """A pipe that nobody writes to does not hang, and a device is no file."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(SourceError, match="no file"):
            Access().open_file(path)


def test_pictures_are_confined_one_by_one(tmp_path: Path) -> None:
    """A link among the pictures of a folder does not lead out of the roots."""
    import cv2

    picture = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(picture)
    (inside / "a.png").write_bytes(picture)
    (inside / "b.png").symlink_to(tmp_path / "secret.png")
    source = open_source(
        f"images:{inside}",
        preprocessing=TOY_PREPROCESSING,
        labels=(),
        access=Access(roots=(inside,)),
    )
    with pytest.raises(SourceError, match=r"access\.roots"):
        list(source.pictures(lambda _: None))


@pytest.mark.parametrize(
    ("text", "host", "expected"),
    [
        ("rtsp://cam:554/1", None, "rtsp://v:p%40@cam:554/1"),
        ("rtsp://cam/1", "192.0.2.7", "rtsp://v:p%40@192.0.2.7/1"),
        ("rtsp://cam:554/1", "2001:db8::1", "rtsp://v:p%40@[2001:db8::1]:554/1"),
        ("rtsp://[2001:db8::2]:554/1", None, "rtsp://v:p%40@[2001:db8::2]:554/1"),
    ],
)
def test_credentials_are_put_beside_the_host(text: str, host: str | None, expected: str) -> None:
    """Whether the host is a name or an address, another or the one that is there."""
    address = parse_address(text, SourceOptions(username="v", password="p@"))
    assert address.with_credentials(host) == expected


def test_a_user_without_a_password_has_no_colon() -> None:
    """Some cameras know a name only; without either nothing is added."""
    named = parse_address("rtsp://cam/1", SourceOptions(username="v"))
    assert named.with_credentials() == "rtsp://v@cam/1"
    assert parse_address("rtsp://cam/1").with_credentials() == "rtsp://cam/1"


def test_the_user_says_whether_a_url_is_live() -> None:
    """Where the address alone would decide otherwise."""
    assert not parse_address("tcp://host:1234", SourceOptions(live=False)).live
    assert parse_address("https://host/clip.mp4", SourceOptions(live=True)).live
    assert parse_address("stdin", SourceOptions(live=True)).live
