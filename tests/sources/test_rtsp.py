"""RTSP cameras: transports, authentication, encryption, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from streamexit.errors import SourceError
from streamexit.sources.addresses import SourceOptions, parse_address
from streamexit.sources.source import Picture
from streamexit.sources.video import VideoSource
from streamexit.testing import TOY_PREPROCESSING
from tests.conftest import absent
from tests.faults.rig import Camera, has_rtsp_server
from tests.sources.servers import make_certificate

PASSWORD = "alpha@/:#?%& ü"


def some(url: str, count: int = 8, **options: Any) -> list[Picture]:
    """The first pictures."""
    address = parse_address(url, SourceOptions(**options))
    source = VideoSource(address, TOY_PREPROCESSING, timeout=5.0)
    return list(islice(source.pictures(lambda reason: None), count))


@pytest.fixture
def camera() -> Iterator[Camera]:
    """Not yet started."""
    if not has_rtsp_server():
        absent("GStreamer's RTSP server (apt install python3-gi gir1.2-gst-rtsp-server-1.0)")
    one = Camera(rate=15)
    yield one
    one.kill()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_transports(camera: Camera, transport: str, codec: str) -> None:
    """Pictures come over TCP, interleaved, and over UDP."""
    camera.start(codec=codec)
    pictures = some(camera.url, transport=transport)
    assert len(pictures) == 8
    assert all(a.pts_seconds < b.pts_seconds for a, b in pairwise(pictures))
    assert pictures[0].media is not None
    assert (pictures[0].media.codec, pictures[0].size) == (codec, (160, 120))


@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("encrypted", [False, True])
def test_authentication(camera: Camera, tmp_path: Path, digest: bool, encrypted: bool) -> None:
    """Basic or digest, in the clear or by RTSPS, an odd password is let in and a wrong one is not."""
    more = {"certificate": str(make_certificate(tmp_path))} if encrypted else {}
    camera.start(user="viewer", password=PASSWORD, digest=digest, **more)
    url = camera.url.replace("rtsp:", "rtsps:") if encrypted else camera.url
    assert len(some(url, username="viewer", password=PASSWORD)) == 8
    with pytest.raises(SourceError) as caught:
        some(url, username="viewer", password="alpha")
    assert caught.value.reason == "unauthorised"
    assert "alpha" not in str(caught.value)


def test_a_path_that_is_none(camera: Camera) -> None:
    """Is told apart from a camera that is away."""
    camera.start()
    with pytest.raises(SourceError) as caught:
        some(camera.url + "s")
    assert caught.value.reason == "not_found"
    camera.kill()
    with pytest.raises(SourceError) as caught:
        some(camera.url)
    assert caught.value.reason == "refused"
